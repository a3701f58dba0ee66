"""Make a config read images of any bands: loaders, normalisation and the network's channels."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log

from backbones.errors import InputError
from backbones.openmmlab.walk import nodes, type_name

from .band_pipelines import STEPS, loaded_bands, with_bands
from .band_statistics import Sampled, measure
from .bands import COLOURS, Bands
from .files import IMAGES, RASTERS, files_below, one_line, read_text, spread
from .rasters import open_raster

LISTED = "bands.json"  # in a data set's folder
KEYS = {"names", "nodata", "composite", "colour_map"}  # of it
# Keys of a config's `bands` that states what would be measured, and those that it must have.
STATED = KEYS | {"chosen", "dtype", "mean", "std"}
NEEDED = {"names", "dtype", "mean", "std"}
DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
LOOKED_AT = 8  # images that say whether a data set is more than 8-bit colour
# Those of the libraries take means of one or three bands.
PREPROCESSORS = {
    "DetDataPreprocessor": "BandsDetDataPreprocessor",
    "SegDataPreProcessor": "BandsSegDataPreProcessor",
}
# What timm's and our classifiers are normalised by where their config does not say.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalisation(NamedTuple):
    """Hold mean and deviation of each band; a classifier's of 8 bits are those of [0, 1]."""

    mean: list[float]
    std: list[float]


def use_bands(
    config: Config,
    root: Path | None,
    trained: Mapping | None = None,
    skip_bad_images: bool = False,
) -> None:
    """Make a config read its images' bands, if they are more than 8-bit colour or it asks for them.

    The bands are the checkpoint's if it was trained on some; otherwise those of the config's key
    `bands`, or all of the images'. Normalisation is measured on the training images, unless `bands`
    is a dict, which states it with names and dtype.

    Args:
        config: changed in place; its splits are set already.
        root: the data set's folder, which may hold `bands.json`; None for the config's own data.
        trained: content of the checkpoint to evaluate.
        skip_bad_images: pass over images that cannot be read, as the run will.

    Raises:
        InputError: the images differ, or a band or nodata value does not exist.
    """
    saved = _saved_bands(trained)
    if saved is None and not config.get("bands") and (root is None or not _is_deep(config, root)):
        return
    if saved is None and root is None and loaded_bands(_data_parts(config)) is not None:
        return  # a resolved config
    given = config.get("bands")
    if saved is not None:
        bands, normalisation = Bands.of(saved), Normalisation(*(saved[k] for k in ("mean", "std")))
    elif isinstance(given, Mapping):
        bands, normalisation = _stated(config, given)
    else:
        bands, normalisation = _measured(config, root, skip_bad_images)
    mean, std = map(list, normalisation)
    removed: dict[str, None] = {}
    if config.get("tta_pipeline"):
        config.tta_pipeline, more = with_bands(config.tta_pipeline, bands, dict(mean=mean, std=std))
    for _, node in nodes(_data_parts(config)):
        for key in STEPS:
            if isinstance(node.get(key), list):
                node[key], more = with_bands(node[key], bands, dict(mean=mean, std=std))
                removed |= dict.fromkeys(more)
        if "pipeline" in node and node.get("type") and not node.keys() & {"dataset", "datasets"}:
            # Pairs: a checkpoint keeps them, and is refused with a config's own class of dicts.
            meta = list(dict(bands.settings(), mean=mean, std=std).items())
            node["metainfo"] = {**(node.get("metainfo") or {}), "bands": meta}
    if removed:
        print_log(f"left out, as defined for 8-bit RGB alone: {', '.join(removed)}", "current")
    if preprocessor := config.model.get("data_preprocessor"):
        name = type_name(preprocessor)
        preprocessor["type"] = PREPROCESSORS.get(name, name)
        preprocessor.update(mean=mean, std=std, bgr_to_rgb=False, rgb_to_bgr=False)
    network = config.model.get("backbone") or config.model["network"]
    network["in_channels"] = len(bands.chosen)


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
    if "split" in dataset:  # a folder of each class
        return files_below(root / dataset["split"], *IMAGES, *RASTERS)
    folder = root / (prefix.get("img_path") or prefix.get("img") or "")
    return sorted(folder.rglob(f"*{dataset.get('img_suffix', '.jpg')}")) if prefix else []


def _saved_bands(checkpoint: Mapping | None) -> dict[str, Any] | None:
    """Return the bands that a model was trained on, as its checkpoint states them."""
    meta = checkpoint.get("meta") if isinstance(checkpoint, Mapping) else None
    meta = meta.get("dataset_meta") if isinstance(meta, dict) else None
    saved = meta.get("bands") if isinstance(meta, dict) else None
    return dict(saved) if saved else None


def _is_deep(config: Config, root: Path) -> bool:
    """Return whether most images looked at have more than the RGB decoder keeps."""
    if (root / LISTED).is_file():
        return True
    paths = training_images(config) or training_images(config, "test")
    deep = [kind for kind in map(_is_raster, spread(paths, LOOKED_AT)) if kind is not None]
    return 2 * sum(deep) > len(deep)


def _is_raster(path: Path) -> bool | None:
    """Return whether an image is more than 8-bit colour; None if that cannot be read."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".png":
            with path.open("rb") as file:
                return file.read(25)[24:] == b"\x10"  # bits of a sample
        if suffix in (".tif", ".tiff"):
            with open_raster(path) as raster:
                return raster.dtype != "uint8" or raster.count > 4
    except (OSError, InputError):
        return None
    return suffix in RASTERS


def _measured(
    config: Config, root: Path | None, skip_bad_images: bool
) -> tuple[Bands, Normalisation]:
    paths = training_images(config) or training_images(config, "test")
    if not paths:
        raise InputError(
            "bands: no images on this disk to measure them on; give the folder as --data, or state "
            f"{', '.join(sorted(NEEDED))} in `bands`",
            code="no-data",
            where="bands",
        )
    listed = _listed(root / LISTED) if root is not None and (root / LISTED).is_file() else {}
    path = _typical(paths)
    with open_raster(path) as raster:
        names = tuple(map(str, listed.get("names") or raster.names))
        names = names or tuple(str(i + 1) for i in range(raster.count))
        if len(names) != raster.count:
            raise InputError(
                f"{one_line(path)}: has {raster.count} bands, {LISTED} names {len(names)}",
                code="bad-value",
                where=path,
            )
        dtype, stated = str(raster.dtype), raster.nodata
    asked = config.get("bands")
    chosen = tuple(map(str, [asked] if isinstance(asked, str | int) else asked or names))
    nodata = listed.get("nodata", stated)
    shown = listed.get("composite")
    shown = tuple(map(str, shown)) if shown and set(map(str, shown)) <= set(chosen) else None
    bands = Bands(chosen, names, dtype, nodata, (), shown, listed.get("colour_map"))
    found = measure(paths, bands)
    if found.refused and not skip_bad_images:
        raise found.refused[0]
    if not found.bands:
        raise InputError(
            f"{one_line(path.parent)}: every pixel of the {found.images} images looked at is "
            "nodata or NaN",
            code="no-data",
            where=path.parent,
        )
    print_log(
        f"{len(chosen)} of {len(names)} bands, {dtype}, measured on {found.images} images, "
        f"{found.missing:.1%} of their pixels missing",
        "current",
    )
    fill = tuple(b.mean for b in found.bands)
    bands = Bands(chosen, names, dtype, nodata, fill, shown, listed.get("colour_map"))
    return bands, _normalisation(config, bands, found)


def _stated(config: Config, given: Mapping[str, Any]) -> tuple[Bands, Normalisation]:
    """Return the bands and the normalisation that a config's `bands` states.

    Raises:
        InputError: a key is unknown or missing, or a value does not fit the others.
    """
    for keys, what in ((given.keys() - STATED, "unknown"), (NEEDED - given.keys(), "missing")):
        if keys:
            raise InputError(
                f"bands: {', '.join(sorted(map(one_line, keys)))}: {what}; it states "
                f"{', '.join(sorted(NEEDED))}, and may state {', '.join(sorted(STATED - NEEDED))}",
                code="bad-config",
                where="bands",
            )
    names = tuple(map(str, given["names"]))
    chosen = tuple(map(str, given.get("chosen") or names))
    statistics = {}
    for key in ("mean", "std"):
        values = given[key]
        is_list = isinstance(values, list | tuple) and len(values) == len(chosen)
        if not is_list or not all(_is_finite(v) and (key == "mean" or v > 0) for v in values):
            raise InputError(
                f"bands: {key} must be {len(chosen)} numbers"
                f"{' above 0' if key == 'std' else ''}, one of each band",
                code="bad-value",
                where=key,
            )
        statistics[key] = tuple(map(float, values))
    if given["dtype"] not in DTYPES:
        raise InputError(
            f"bands: dtype {one_line(given['dtype'])}: is none of {', '.join(DTYPES)}",
            code="bad-value",
            where="dtype",
        )
    shown = given.get("composite")
    bands = Bands(
        chosen, names, given["dtype"], given.get("nodata"), statistics["mean"],
        tuple(map(str, shown)) if shown else None, given.get("colour_map"),
    )  # fmt: skip
    scale = _scale(config, bands)
    return bands, Normalisation(*([v / scale for v in statistics[k]] for k in ("mean", "std")))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _scale(config: Config, bands: Bands) -> float:
    """Return what values are divided by before they are normalised: 255 for 8-bit classifiers."""
    return 255.0 if not config.model.get("data_preprocessor") and bands.dtype == "uint8" else 1.0


def _typical(paths: Sequence[Path]) -> Path:
    """Return an image of the number of bands and the dtype that most of those looked at have.

    Raises:
        UnreadableImage: none of them can be read.
    """
    kinds: dict[Path, tuple[int, str]] = {}
    failed: InputError | None = None
    for path in spread(paths, LOOKED_AT):
        try:
            with open_raster(path) as raster:
                kinds[path] = (raster.count, str(raster.dtype))
        except InputError as error:
            failed = failed or error
    if not kinds:
        assert failed is not None  # there is at least one path
        raise failed
    (most, _), *_ = Counter(kinds.values()).most_common(1)
    return next(path for path, kind in kinds.items() if kind == most)


def _normalisation(config: Config, bands: Bands, found: Sampled) -> Normalisation:
    """Return the measured one, or for 8-bit red, green and blue what pretrained weights expect."""
    classifies = not config.model.get("data_preprocessor")
    lower = [name.lower() for name in bands.chosen]
    if bands.dtype == "uint8" and sorted(lower) == sorted(COLOURS):
        given = config.model.get("data_preprocessor") or {}
        mean, std = given.get("mean") or (), given.get("std") or ()
        if classifies:
            steps = [s for _, s in nodes(_data_parts(config)) if s.get("mean") and s.get("std")]
            mean, std = (
                (steps[0]["mean"], steps[0]["std"]) if steps else (IMAGENET_MEAN, IMAGENET_STD)
            )
        if len(mean) == len(std) == 3 and (classifies or given.get("bgr_to_rgb")):
            order = [COLOURS.index(name) for name in lower]
            return Normalisation([mean[i] for i in order], [std[i] for i in order])
    scale = _scale(config, bands)
    mean, std = [b.mean / scale for b in found.bands], [(b.std or 1.0) / scale for b in found.bands]
    return Normalisation(mean, std)


def _listed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content.keys() <= KEYS:
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
    if not isinstance(content.get("colour_map"), str | None):
        raise InputError(f"{one_line(path)}: colour_map is no name", code="bad-value", where=path)
    return content


def _data_parts(config: Config) -> list[Any]:
    keys = ("train_dataloader", "val_dataloader", "test_dataloader", "tta", "custom_hooks")
    return [part for key in keys if (part := config._cfg_dict.get(key))]
