"""Samples from files: images, arrays, pixel values, and the predictions made from them."""
