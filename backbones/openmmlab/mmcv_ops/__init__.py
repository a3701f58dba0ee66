"""Compute mmcv's operators where mmcv has no compiled ones.

`pip install onedl-mmcv` builds no `mmcv._ext`. Without it `import mmcv.ops` fails, and so do
`mmdet.models` and `mmseg.models`. `install` puts a module in its place that computes the operators
of `OPERATORS` with torchvision and PyTorch, on a CPU as on a GPU. Every other one can be imported
and raises, with its name, when it is called.

The functions have the signatures of mmcv 2.3.6, ops/csrc/pytorch/pybind.cpp.
"""

from .extension import EXTENSION, how_to_compile, install, is_available
from .operators import OPERATORS

__all__ = ["EXTENSION", "OPERATORS", "how_to_compile", "install", "is_available"]
