"""The demo: a small real classifier and real corrupted images that ship with ttac.

`fashion_resnet_bn.onnx` is the model, `fashion_calibration.npz` unlabelled source images, `fashion_stream.npz` the
corrupted test images.  The images are of Fashion-MNIST (Xiao et al., arXiv:1708.07747, MIT licence).
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ttac.errors import RuntimeMissingError


def file(name: str) -> Path:
    """The path of a file that ships with the demo; raises RuntimeMissingError when the installation lacks it."""
    path = Path(str(resources.files(__name__).joinpath(name)))
    if not path.is_file():
        raise RuntimeMissingError(f"the demo's `{name}` is not installed", hint="`pip install --force-reinstall ttac`")
    return path
