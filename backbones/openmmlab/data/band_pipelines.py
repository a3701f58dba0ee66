"""Read and change pipelines that load bands: what they load, and which transforms they may have."""

from collections.abc import Mapping, Sequence
from typing import Any

from backbones.errors import InputError
from backbones.openmmlab.walk import nodes, type_name

from .bands import Bands

LOADERS = ("LoadImage", "LoadImageFromFile", "LoadRGB")
# Transforms that are defined for three channels of 8 bits, of mmdet, mmseg, mmpretrain (which
# offers torchvision's as `torchvision/NAME`) and ours.
COLOUR_ONLY = {
    # Colours, contrast, noise.
    "PhotoMetricDistortion", "YOLOXHSVRandomAug", "CLAHE", "RGB2Gray", "AdjustGamma", "Corrupt",
    "ColorTransform", "AutoContrast", "Equalize", "Posterize", "Solarize", "SolarizeAdd",
    "Sharpness", "Brightness", "Color", "Contrast", "Invert", "RandomGrayscale", "ColorJitter",
    "Lighting", "Grayscale", "RandomInvert", "RandomPosterize", "RandomSolarize",
    "RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize", "RandomPhotometricDistort",
    "GaussianBlur", "RandomErasing", "ImageAug", "TimmAugment",
    "Normalize",
    # Policies of the above.
    "RandAugment", "AutoAugment", "TrivialAugmentWide", "AugMix", "Albu", "Albumentations",
    "AlbuKeypoint",
    # Several images on one canvas of three channels.
    "Mosaic", "CachedMosaic", "RandomMosaic", "MixUp", "CachedMixUp", "InstaBoost",
}  # fmt: skip
# Geometric transforms that take three or four channels, or a fill of three: `InThrees` runs them.
# Of each, the arguments of the fill.
IN_THREES: dict[str, dict[str, Any]] = {
    "Rotate": dict(img_border_value=0),
    "ShearX": dict(img_border_value=0),
    "ShearY": dict(img_border_value=0),
    "TranslateX": dict(img_border_value=0),
    "TranslateY": dict(img_border_value=0),
    "RandomAffine": dict(border_val=(0, 0, 0)),
    "RandomRotate": dict(pad_val=0),
    "Expand": dict(mean=(0, 0, 0)),
    "CutOut": dict(fill_in=(0, 0, 0)),
    "RandomCutOut": dict(fill_in=(0, 0, 0)),
    "RandomCenterCropPad": dict(mean=(0, 0, 0), std=(1, 1, 1), to_rgb=False),
    "Pad": {},
}
# Classifiers' transforms, and those that do the same to bands.
OF_CLASSIFIERS = {
    "TimmAugment": "AugmentBands",
    "AugmentBands": "AugmentBands",
    "ResizeForTest": "ResizeBandsForTest",
    "ResizeBandsForTest": "ResizeBandsForTest",
}
PHOTOMETRIC = ("auto_augment", "color_jitter")  # arguments of TimmAugment
STEPS = ("pipeline", "transforms", "switch_pipeline")  # keys of lists of transforms


def loaded_bands(pipeline: Any) -> Bands | None:
    """Return the bands that a pipeline loads; None if it loads 8-bit colour."""
    for _, step in nodes(pipeline):
        if type_name(step) == "LoadImage" and step.get("bands"):
            return Bands.of(step)
    return None


def shown_bands(meta: Mapping) -> Bands | None:
    """Return the bands that a data set's meta states; None for 8-bit colour."""
    return Bands.of(dict(meta["bands"])) if meta.get("bands") else None


def refuse_colour_transforms(pipeline: Any, key: str) -> None:
    """Raise InputError if a pipeline that loads bands has a transform for 8-bit RGB alone."""
    if loaded_bands(pipeline) is None:
        return
    for _, step in nodes(pipeline):
        if _name(step) in COLOUR_ONLY:
            raise InputError(
                f"{key}: {_name(step)} is defined for 8-bit RGB, and the images have other "
                "bands; remove it",
                code="unsupported",
                where=_name(step),
            )


def with_bands(
    steps: Sequence[Any], bands: Bands, normalisation: Mapping[str, Sequence[float]]
) -> tuple[list[Any], list[str]]:
    """Return a pipeline that loads bands, ignores missing pixels and leaves 8-bit RGB's steps out.

    Args:
        steps: transforms; lists among them are branches of test-time augmentation.
        bands: what to load.
        normalisation: `mean` and `std`, which a classifier's last transform takes.

    Returns:
        The pipeline, and the names of what was left out.
    """
    made: list[Any] = []
    removed: list[str] = []

    def inside(given: Sequence[Any]) -> list[Any]:
        changed, more = with_bands(given, bands, normalisation)
        removed.extend(more)
        return changed

    for step in steps:
        if isinstance(step, list | tuple):
            made.append(inside(step))
            continue
        name = _name(step) if isinstance(step, dict) else ""
        if name in COLOUR_ONLY - OF_CLASSIFIERS.keys():
            removed.append(name)
        elif name in LOADERS:
            kept = {"backend_args": step["backend_args"]} if step.get("backend_args") else {}
            made.append(dict(type="LoadImage", **bands.settings(), **kept))
        elif name in OF_CLASSIFIERS:
            colours = PHOTOMETRIC if name == "TimmAugment" else ()
            removed += [f"{key} of {name}" for key in colours if _is_on(step.get(key, True))]
            kept = {key: value for key, value in step.items() if key not in PHOTOMETRIC}
            made.append({**kept, "type": OF_CLASSIFIERS[name], **normalisation})
        elif name in IN_THREES:
            made.append(_in_threes(step, name, bands))
        elif name == "InThrees":
            made.append({**step, "fill": bands.fill})
        elif name != "IgnoreMissing":
            if name:
                lists = {key: inside(step[key]) for key in STEPS if _is_list(step.get(key))}
                step = {**step, **lists}
            made.append(step)
            if name == "LoadAnnotations":
                made.append(dict(type="IgnoreMissing"))
    return made, removed


def _in_threes(step: dict, name: str, bands: Bands) -> dict:
    inner = {**step, **IN_THREES[name]}
    if name == "Pad":
        given = step.get("pad_val")
        inner["pad_val"] = {**(given if isinstance(given, dict) else {}), "img": 0}
    return dict(type="InThrees", transform=inner, fill=bands.fill)


def _is_on(value: Any) -> bool:
    """Return whether an argument of TimmAugment changes colours."""
    return any(value) if isinstance(value, list | tuple) else bool(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _name(step: Mapping) -> str:
    return type_name(step).split("/")[-1]
