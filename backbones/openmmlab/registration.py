"""Importing mmdet or mmseg where their optional dependencies would stop them."""

import io
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from . import mmcv_ops


def register(library: str) -> None:
    """Put everything in `mmdet` or `mmseg` into the registries.

    mmcv's compiled operators are replaced where they are missing. mmpretrain, which both libraries
    import if it is installed, leaves its multimodal models out beside transformers 5: its import
    would end in a TypeError (mmpretrain/models/multimodal/blip/language_model.py).
    """
    mmcv_ops.install()
    try:
        broken = find_spec("mmpretrain") and int(version("transformers").split(".")[0]) >= 5
    except PackageNotFoundError:
        broken = False
    if broken:
        import_module("mmpretrain.utils.dependency").WITH_MULTIMODAL = False
    with redirect_stdout(io.StringIO()):  # they print which optional packages are missing
        import_module(f"{library}.utils").register_all_modules(init_default_scope=False)
