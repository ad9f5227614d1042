"""The demo: a small real classifier and real corrupted images that ship with ttac.

| file                                | holds                                                            |
|-------------------------------------|------------------------------------------------------------------|
| `show`                              | the comparison of three methods, and its bar chart               |
| `fashion_resnet_bn.onnx`            | the model; the exporter folded its norms                         |
| `fashion_resnet_bn_unfolded.onnx`   | the same model with its norms                                    |
| `fashion_resnet_gn.onnx`            | a model with GroupNorm                                           |
| `fashion_vit.onnx`                  | a vision transformer                                             |
| `fashion_rotation.onnx`             | a model with GroupNorm and a second head for rotations           |
| `fashion_calibration.npz`           | unlabelled source images                                         |
| `fashion_stream.npz`                | clean and corrupted test images with labels                      |

The images are from Fashion-MNIST (Xiao et al., arXiv:1708.07747, MIT licence).
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ttac.errors import RuntimeMissingError


def file(name: str) -> Path:
    """Return the path of a file of the demo; raises RuntimeMissingError when the installation lacks the file."""
    path = Path(str(resources.files(__name__).joinpath(name)))
    if not path.is_file():
        raise RuntimeMissingError(f"the demo's `{name}` is not installed", hint="`pip install --force-reinstall ttac`")
    return path
