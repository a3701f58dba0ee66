"""What a detection config needs registered: mmdet itself and our loading of images."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from . import mmcv_ops

mmcv_ops.install()


def let_mmpretrain_import() -> None:
    """Leave mmpretrain's multimodal models out where they cannot be imported.

    mmdet's ReID heads import mmpretrain if it is installed, and beside transformers 5 that import
    raises a TypeError (mmpretrain/models/multimodal/blip/language_model.py), which ends mmdet's.
    """
    try:
        broken = find_spec("mmpretrain") and int(version("transformers").split(".")[0]) >= 5
    except PackageNotFoundError:
        broken = False
    if broken:
        from mmpretrain.utils import dependency  # noqa: TID251

        dependency.WITH_MULTIMODAL = False


let_mmpretrain_import()

from mmdet.utils import register_all_modules  # noqa: E402  mmdet imports compiled operators

from . import loading  # noqa: E402, F401

register_all_modules(init_default_scope=False)
