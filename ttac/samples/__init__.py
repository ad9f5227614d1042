"""Samples from files, and the predictions that a model makes from them.

| file          | holds                                                                          |
|---------------|--------------------------------------------------------------------------------|
| `pixels`      | `--pixels`: how the user says that bytes become the model's input              |
| `images`      | arrays and folders of images, read as batches in the shape that a model takes  |
| `predictions` | entropies, classes and errors, computed from a model's outputs                 |
| `streaming`   | a stream of samples through an adapter, and the figures of that run            |
"""
