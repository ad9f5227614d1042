"""Samples from files, and the predictions that a model makes from them.

| file          | holds                                                                          |
|---------------|--------------------------------------------------------------------------------|
| `pixels`      | `--pixels`: how the user says that bytes become the model's input              |
| `image_folder` | files of a folder of images, and the classes that its sub-folders name         |
| `images`      | arrays and folders of images, read as batches in the shape that a model takes  |
| `doubts`      | doubts about samples: bytes stored as floats, noise                            |
| `box_outputs` | outputs with the boxes of a detector, apart from their scores                  |
| `predictions` | entropies, classes and errors, computed from a model's outputs                 |
| `streaming`   | a stream of samples through an adapter, and the figures of that run            |
"""
