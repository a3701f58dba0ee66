"""Provide the module that stands in for mmcv's compiled extension."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn

from .operators import OPERATORS

EXTENSION = "mmcv._ext"


def install() -> bool:
    """Install the stand-in as `mmcv._ext` unless mmcv has a compiled one.

    Returns True if the stand-in is in place, now or from an earlier call; False where mmcv is
    compiled or not installed. Imports neither mmcv nor torchvision. Call it before `mmcv.ops` is
    imported. A compiled mmcv that does not load is left to raise its own error.
    """
    if EXTENSION in sys.modules:
        return isinstance(sys.modules[EXTENSION], _StandIn)
    mmcv = importlib.util.find_spec("mmcv")
    if mmcv is None or PathFinder.find_spec(EXTENSION, mmcv.submodule_search_locations):
        return False
    # mmengine asks importlib for this module's spec, and mmcv asks pkgutil for the spec's loader.
    loader = _StandInLoader()
    module = importlib.util.module_from_spec(ModuleSpec(EXTENSION, loader, origin=__package__))
    loader.exec_module(module)
    sys.modules[EXTENSION] = module
    return True


def is_available(op: str) -> bool:
    """Return whether `mmcv._ext` has this function, compiled or in the stand-in."""
    return not install() or op in vars(sys.modules[EXTENSION])


def how_to_compile() -> str:
    """Return the command that installs mmcv with all its operators."""
    from mmcv import __version__

    # mmcv's setup.py compiles the ops where it can import torch, hence no build isolation; and pip
    # would take the wheel that it once built without them from its cache.
    return (
        "pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation "
        f"--no-binary onedl-mmcv onedl-mmcv=={__version__}"
    )


def get_compiler_version() -> str:
    """Return what the environment report shows for the compiler of mmcv's ops."""
    return "n/a (torchvision stand-in)"


def get_compiling_cuda_version() -> str:
    """Return what the environment report shows for the CUDA version of mmcv's ops."""
    return "n/a (torchvision stand-in)"


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

        def missing(*args, **kwargs) -> NoReturn:
            raise RuntimeError(
                f"mmcv op {name!r} is not available: this mmcv has no compiled ops, and this one "
                f"has no replacement in backbones; to compile them: {how_to_compile()}"
            )

        missing.__name__ = missing.__qualname__ = name
        return missing


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(
            OPERATORS,
            get_compiler_version=get_compiler_version,
            get_compiling_cuda_version=get_compiling_cuda_version,
        )
