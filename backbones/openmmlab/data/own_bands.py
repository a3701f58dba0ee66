"""Make a config read images of any bands: loaders, normalisation and the network's channels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from backbones.errors import InputError
from backbones.openmmlab.walk import nodes, type_name
from backbones.weights import read_checkpoint

from .band_statistics import measure
from .bands import Bands
from .files import RASTERS, one_line, read_text, spread
from .rasters import open_raster

LISTED = "bands.json"  # in a data set's folder
LOOKED_AT = 8  # images that say whether a data set is more than 8-bit colour
# Those of the libraries take means of one or three bands.
PREPROCESSORS = {
    "DetDataPreprocessor": "BandsDetDataPreprocessor",
    "SegDataPreProcessor": "BandsSegDataPreProcessor",
}
LOADERS = ("LoadImage", "LoadImageFromFile")
# Transforms that are defined for three channels of 8 bits.
COLOUR_ONLY = {
    "PhotoMetricDistortion", "YOLOXHSVRandomAug", "CLAHE", "RGB2Gray", "AdjustGamma",
    "ColorTransform", "AutoContrast", "Equalize", "Posterize", "Solarize", "SolarizeAdd",
    "Sharpness", "Brightness", "Color", "Contrast", "Invert", "RandAugment", "AutoAugment",
    "Albu", "Corrupt", "RandomGrayscale", "ColorJitter",
}  # fmt: skip
COLOURS = ("red", "green", "blue")


def use_bands(config: Config, root: Path | None, checkpoint: str | None = None) -> None:
    """Make a config read its images' bands, if they are more than 8-bit colour or it asks for them.

    The bands are the checkpoint's if it was trained on some; otherwise those of the config's key
    `bands`, or all of the images'. Normalisation is measured on the training images.

    Args:
        config: changed in place; its splits are set already.
        root: the data set's folder, which may hold `bands.json`; None for the config's own data.
        checkpoint: checkpoint of the model to evaluate.

    Raises:
        InputError: the images differ, a band or nodata value does not exist, or the config has a
            transform that is defined for RGB alone and no folder was given.
    """
    trained = _trained_on(checkpoint) if checkpoint else None
    if trained is None and not config.get("bands") and (root is None or not _is_deep(config, root)):
        return
    if trained is not None:
        bands, mean, std = trained
    else:
        bands, mean, std = _measured(config, root)
    _leave_colour_out(config)
    step = dict(
        type="LoadImage", bands=bands.chosen, band_names=bands.names, band_dtype=bands.dtype,
        nodata=bands.nodata, fill=bands.fill, composite=bands.composite,
    )  # fmt: skip
    for _, node in nodes(_data_parts(config)):
        for key in ("pipeline", "transforms"):
            if isinstance(node.get(key), list):
                node[key] = _with_bands(node[key], step)
        if isinstance(node.get("metainfo"), dict):
            node["metainfo"]["bands"] = dict(
                {key: value for key, value in step.items() if key != "type"}, mean=mean, std=std
            )
    preprocessor = config.model.data_preprocessor
    name = type_name(preprocessor)
    preprocessor["type"] = PREPROCESSORS.get(name, name)
    preprocessor.update(mean=mean, std=std, bgr_to_rgb=False, rgb_to_bgr=False)
    config.model.backbone["in_channels"] = len(bands.chosen)


def loaded_bands(pipeline: Any) -> Bands | None:
    """Return the bands that a pipeline loads; None if it loads 8-bit colour."""
    for _, step in nodes(pipeline):
        if type_name(step) == "LoadImage" and step.get("bands"):
            return Bands(
                tuple(step["bands"]), tuple(step["band_names"]), step.get("band_dtype", "uint8"),
                step.get("nodata"), tuple(step.get("fill") or ()),
                tuple(step["composite"]) if step.get("composite") else None,
            )  # fmt: skip
    return None


def refuse_colour_transforms(pipeline: Any, key: str) -> None:
    """Raise InputError if a pipeline that loads bands has a transform for 8-bit RGB alone."""
    if loaded_bands(pipeline) is None:
        return
    for _, step in nodes(pipeline):
        if type_name(step) in COLOUR_ONLY:
            raise InputError(
                f"{key}: {type_name(step)} is defined for 8-bit RGB, and the images have other "
                "bands; remove it",
                code="unsupported",
                where=type_name(step),
            )


def training_images(config: Config, split: str = "train") -> list[Path]:
    """List the images of a split of pairs, COCO annotations or a folder of images."""
    loader = config.get(f"{split}_dataloader")
    dataset = loader.dataset if loader else {}
    while "dataset" in dataset and "type" in dataset:
        dataset = dataset["dataset"]
    root = Path(dataset.get("data_root") or "")
    prefix = dataset.get("data_prefix") or {}
    if pairs := dataset.get("pairs"):
        lines = read_text(Path(pairs)).splitlines()
        return [
            root / (json.loads(x)[0] if x.startswith('["') else x.split("\t")[0]) for x in lines
        ]
    if str(dataset.get("ann_file") or "").endswith(".json"):
        path = root / dataset["ann_file"]
        try:
            images = json.loads(read_text(path))["images"]
            return [root / prefix.get("img", "") / image["file_name"] for image in images]
        except (InputError, ValueError, KeyError, TypeError):
            return []  # which `check_data` reports
    folder = root / (prefix.get("img_path") or prefix.get("img") or "")
    return sorted(folder.rglob(f"*{dataset.get('img_suffix', '.jpg')}")) if prefix else []


def _trained_on(checkpoint: str) -> tuple[Bands, list[float], list[float]] | None:
    content = read_checkpoint(checkpoint)
    meta = content.get("meta") if isinstance(content, dict) else None
    meta = meta.get("dataset_meta") if isinstance(meta, dict) else None
    saved = meta.get("bands") if isinstance(meta, dict) else None
    if not saved:
        return None
    bands = loaded_bands([dict(type="LoadImage", **saved)])
    assert bands is not None
    return bands, list(saved["mean"]), list(saved["std"])


def _is_deep(config: Config, root: Path) -> bool:
    """Return whether every image looked at has more than the RGB decoder keeps."""
    if (root / LISTED).is_file():
        return True
    paths = training_images(config) or training_images(config, "test")
    opened = spread(paths, LOOKED_AT)
    return bool(opened) and all(map(_is_raster, opened))


def _is_raster(path: Path) -> bool:
    suffix = path.suffix.lower()
    try:
        if suffix == ".png":
            with path.open("rb") as file:
                return file.read(25)[24:] == b"\x10"  # bits of a sample
        if suffix in (".tif", ".tiff"):
            with open_raster(path) as raster:
                return raster.dtype != "uint8" or raster.count > 4
    except (OSError, InputError):
        return False  # which `check_data` reports
    return suffix in RASTERS


def _measured(config: Config, root: Path | None) -> tuple[Bands, list[float], list[float]]:
    paths = training_images(config) or training_images(config, "test")
    if not paths:
        raise InputError("bands: no images to read them from", code="no-data", where="bands")
    listed = _listed(root / LISTED) if root is not None and (root / LISTED).is_file() else {}
    with open_raster(paths[0]) as raster:
        names = tuple(map(str, listed.get("names") or raster.names))
        names = names or tuple(str(i + 1) for i in range(raster.count))
        if len(names) != raster.count:
            raise InputError(
                f"{one_line(paths[0])}: has {raster.count} bands, {LISTED} names {len(names)}",
                code="bad-value",
                where=paths[0],
            )
        dtype, stated = str(raster.dtype), raster.nodata
    asked = config.get("bands")
    chosen = tuple(map(str, [asked] if isinstance(asked, str | int) else asked or names))
    nodata = listed.get("nodata", stated)
    shown = listed.get("composite")
    shown = tuple(map(str, shown)) if shown and set(map(str, shown)) <= set(chosen) else None
    bands = Bands(chosen, names, dtype, nodata, composite=shown)
    found = measure(paths, bands)
    if not found.bands:
        raise InputError(
            f"{one_line(paths[0].parent)}: every pixel of the {found.images} images looked at is "
            "nodata or NaN",
            code="no-data",
            where=paths[0].parent,
        )
    print_log(
        f"{len(chosen)} of {len(names)} bands, {dtype}, measured on {found.images} images, "
        f"{found.missing:.1%} of their pixels missing",
        "current",
    )
    mean, std = [b.mean for b in found.bands], [b.std or 1.0 for b in found.bands]
    given = config.model.data_preprocessor
    lower = [name.lower() for name in chosen]
    if dtype == "uint8" and sorted(lower) == sorted(COLOURS) and len(given.get("mean") or ()) == 3:
        # The normalisation that weights pretrained on RGB expect.
        order = [COLOURS.index(name) for name in lower]
        if given.get("bgr_to_rgb"):
            mean, std = [given.mean[i] for i in order], [given.std[i] for i in order]
    fill = tuple(b.mean for b in found.bands)
    return Bands(chosen, names, dtype, nodata, fill, shown), mean, std


def _listed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except ValueError:
        content = None
    known = {"names", "nodata", "composite"}
    if not isinstance(content, dict) or not content.keys() <= known:
        raise InputError(
            f'{one_line(path)}: must be JSON such as {{"names": ["red", "nir"], "nodata": 0, '
            '"composite": ["nir"]}',
            code="broken-file",
            where=path,
        )
    nodata = content.get("nodata")
    if not isinstance(nodata, int | float | None) or isinstance(nodata, bool):
        raise InputError(f"{one_line(path)}: nodata is no number", code="bad-value", where=path)
    for key in ("names", "composite"):
        if not isinstance(content.get(key), list | None):
            raise InputError(f"{one_line(path)}: {key} is no list", code="bad-value", where=path)
    return content


def _data_parts(config: Config) -> list[Any]:
    keys = ("train_dataloader", "val_dataloader", "test_dataloader", "tta", "tta_pipeline")
    parts = [config._cfg_dict.get(key) for key in keys]
    return [dict(pipeline=p) if isinstance(p, list) else p for p in parts if p]


def _with_bands(steps: Sequence[Any], loader: dict) -> list[Any]:
    """Return a pipeline that loads bands and ignores missing pixels of label maps."""
    made: list[Any] = []
    for step in steps:
        if not isinstance(step, dict):  # branches of test-time augmentation
            made.append(_with_bands(step, loader) if isinstance(step, list) else step)
        elif type_name(step) in LOADERS:
            made.append({**loader})
        elif type_name(step) != "IgnoreMissing":
            made.append(step)
            if type_name(step) == "LoadAnnotations":
                made.append(dict(type="IgnoreMissing"))
    return made


def _leave_colour_out(config: Config) -> None:
    """Remove transforms that are defined for 8-bit RGB alone, and say so."""
    removed: dict[str, None] = {}
    for _, node in nodes(_data_parts(config)):
        for key in ("pipeline", "transforms"):
            steps = node.get(key)
            if isinstance(steps, list):
                names = [type_name(s) if isinstance(s, dict) else "" for s in steps]
                removed |= dict.fromkeys(name for name in names if name in COLOUR_ONLY)
                node[key] = [
                    s for s, name in zip(steps, names, strict=True) if name not in COLOUR_ONLY
                ]
    if removed:
        print_log(f"left out, as defined for 8-bit RGB alone: {', '.join(removed)}", "current")
