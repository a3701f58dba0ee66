"""Checks of a config against its data, made before anything expensive starts.

`check_data` stops at the first thing that cannot work, and reads little. `examine` reads all that
a run would and says everything it finds.
"""

import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope

from backbones.errors import InputError
from backbones.openmmlab.config.global_batch import micro_batch_size, set_global_batch
from backbones.openmmlab.data.coco_dataset import (
    check_categories,
    check_coco_dataset,
    spread,
)
from backbones.openmmlab.data.image_files import Header, check_images, check_left_out, read_headers
from backbones.openmmlab.data.issues import Issue, by_severity, first_of
from backbones.openmmlab.data.label_maps import LabelMaps
from backbones.openmmlab.data.metainfo import dataset_class, dataset_metainfo

from .memory import GIB, available_memory, predict_training
from .recipe import check_disk, check_recipe, check_weights, training_crop
from .stack import check_stack

WHERE_TO_GET = "tools/prepare_data.py makes or downloads it, --data ROOT names another folder"
SPLITS = ("train", "val", "test")


def check_data(config: Config, splits: tuple[str, ...]) -> None:
    """Hold data folders, annotation files, class names and every head's class count together.

    Args:
        config: a validated config.
        splits: which of train, val and test will be read.

    Raises:
        InputError: the first thing that is missing, cut off or contradicts.
    """
    known: dict[str, Sequence[str]] = {}
    for split in splits:
        if config.get(f"{split}_dataloader") is None:
            if split == "test":
                raise InputError(f"{config.filename}: has no test_dataloader to evaluate on")
            continue
        classes = _check_split(config, split)
        if contradiction := _other_classes(known, split, classes):
            raise InputError(contradiction)
        for path, count in _class_counts(config.model, "model") if classes else ():
            if count != len(classes):
                raise InputError(_wrong_count(path, count, split, classes))
        if classes:
            _check_annotations(config, split, classes)


def _check_annotations(config: Config, split: str, classes: Sequence[str]) -> None:
    """Read a split's COCO file whole: raise the first error, log what is left out."""
    dataset, evaluator = config[f"{split}_dataloader"].dataset, config.get(f"{split}_evaluator")
    if not str(dataset.get("ann_file", "")).endswith(".json"):
        return
    issues, _ = check_coco_dataset(dataset, classes, training=split == "train", evaluator=evaluator)
    for issue in issues:
        if issue.severity == "error" and issue.code != "bad-image":
            raise issue.as_error()
    # --skip-bad-images trains on others in place of images that cannot be read.
    for issue in issues if os.environ.get("RANK", "0") == "0" else ():
        if issue.code in ("no-data", "bad-image"):
            print_log(str(issue), "current")


def _check_split(config: Config, split: str) -> Sequence[str] | None:
    """Check a split's folders and files; its class names, None if the config says none."""
    dataset, key = config[f"{split}_dataloader"].dataset, f"{split}_dataloader.dataset"
    scope = config.get("default_scope")
    built = dataset_class(dataset, scope)
    if hasattr(built, "check_files"):
        built.check_files(dataset)
    classes = dataset_metainfo(dataset, scope).get("classes")
    if classes is not None and not hasattr(built, "check_files"):
        _check_files(dataset, key, classes)
    return classes


def _other_classes(
    known: dict[str, Sequence[str]], split: str, classes: Sequence[str] | None
) -> str | None:
    """What is wrong with a split whose classes, or their order, are not the first split's.

    Labels are positions in these lists. `known` is filled as splits come.
    """
    if classes is None:
        return None
    known[split] = classes
    first = next(iter(known))
    if list(classes) == list(known[first]):
        return None
    more = [name for name in classes if name not in known[first]]
    fewer = [name for name in known[first] if name not in classes]
    parts = [f"has {first_of(more)}, which {first}_dataloader.dataset lacks"] if more else []
    parts += [f"lacks its {first_of(fewer)}"] if fewer else []
    parts = parts or [f"has the classes of {first}_dataloader.dataset in another order"]
    return (
        f"{split}_dataloader.dataset: {' and '.join(parts)}: a label would mean two things; set "
        "both to the same classes"
    )


def _wrong_count(path: str, count: int, split: str, classes: Sequence[str]) -> str:
    return (
        f"config key {path}: {count} classes, but {split}_dataloader.dataset has {len(classes)} "
        f"({', '.join(classes[:3])}, ...)"
    )


def examine(config: Config, images: int = 1000) -> list[Issue]:
    """Everything that there is to find before training, the gravest first.

    Args:
        config: a validated config; not changed.
        images: of each split whose files are opened, spread evenly over it; 0 for all.
    """
    config = deepcopy(config)
    issues = [*check_stack(), *check_recipe(config), *check_disk(config), *check_weights(config)]
    headers: dict[Path, Header] = {}
    seen: list[dict] = []
    known: dict[str, Sequence[str]] = {}
    for split in SPLITS:
        loader = config.get(f"{split}_dataloader")
        if loader is None or loader.dataset in seen:
            continue
        seen.append(loader.dataset)
        found, read = _examine_split(config, split, images, known)
        issues += found
        if split == "train":
            headers = read
    issues += _examine_memory(config, headers)
    return by_severity(issues)


def examine_quickly(config: Config) -> list[Issue]:
    """What `examine` finds without opening a data file or running anything."""
    return by_severity([*check_stack(), *check_recipe(config), *check_disk(config)])


def _examine_split(
    config: Config, split: str, images: int, known: dict[str, Sequence[str]]
) -> tuple[list[Issue], dict[Path, Header]]:
    dataset, key = config[f"{split}_dataloader"].dataset, f"{split}_dataloader.dataset"
    try:
        classes = _check_split(config, split)
    except InputError as error:
        return [Issue("error", key, str(error))], {}
    if classes is None:
        return [Issue("warning", key, "has no class names: nothing can be compared")], {}
    if contradiction := _other_classes(known, split, classes):
        issues = [Issue("error", *contradiction.split(": ", 1))]
    else:
        issues = [
            Issue("error", path, _wrong_count(path, count, split, classes).partition(": ")[2])
            for path, count in _class_counts(config.model, "model")
            if count != len(classes)
        ]
    if repeated := [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]:
        issues.append(Issue("error", f"{key}.metainfo.classes", f"{first_of(repeated)} twice"))
    scales = pipeline_scales(dataset.pipeline)
    try:
        if dataset.get("ann_file") and "seg_map_path" not in dataset.get("data_prefix", {}):
            found, headers = check_coco_dataset(
                dataset,
                classes,
                training=split == "train",
                evaluator=config.get(f"{split}_evaluator"),
                images=images,
            )
        else:
            found, headers = _examine_folder(config, dataset, classes, key, split, images)
    except InputError as error:
        return [*issues, Issue("error", key, str(error))], {}
    return [*issues, *found, *check_images(headers, key, scales)], headers


def _examine_folder(
    config: Config, dataset: dict, classes: Sequence[str], key: str, split: str, images: int
) -> tuple[list[Issue], dict[Path, Header]]:
    """Findings about label maps beside images, or about folders of classes."""
    scope = config.get("default_scope", "mmengine")
    folders = hasattr(dataset_class(dataset, scope), "check_files")  # of classes, torchvision's
    with DefaultScope.overwrite_default_scope(scope):
        built = DATASETS.build({**deepcopy(dataset), **({} if folders else {"lazy_init": True})})
    if folders:
        paths = [Path(path) for path, _ in built.samples]
        headers, issues = read_headers(spread(paths, images))
        return [*issues, *check_left_out(Path(built.root), paths, built.extensions)], headers
    infos = built.load_data_list()
    if not infos:
        suffix = f"{built.img_suffix}" if hasattr(built, "img_suffix") else ""
        return [Issue("error", key, f"finds no image{f' *{suffix}' if suffix else ''}")], {}
    pairs = [(Path(info["img_path"]), Path(info.get("seg_map_path") or "")) for info in infos]
    chosen = spread(pairs, images)
    headers, issues = read_headers([image for image, _ in chosen])
    reduces = getattr(built, "reduce_zero_label", None)
    if reduces is not None:
        issues += _loads_alike(dataset, reduces, key)
        maps = LabelMaps(chosen, classes, reduces, key, len(chosen) == len(pairs))
        issues += maps.check(headers, split == "train")
    return issues, headers


def _loads_alike(dataset: dict, reduces: bool, key: str) -> Iterator[Issue]:
    for i, step in enumerate(dataset.pipeline):
        asked = step.get("reduce_zero_label")
        if step["type"] == "LoadAnnotations" and asked is not None and asked != reduces:
            yield Issue(
                "error",
                f"{key}.pipeline.{i}.reduce_zero_label",
                f"{asked}, but the data set's is {reduces}",
                "make them equal: mmseg asserts it at the first image",
            )


def _examine_memory(config: Config, headers: dict[Path, Header]) -> Iterator[Issue]:
    if config.get("train_dataloader") is None or config.get("optim_wrapper") is None:
        return
    size = training_size(config, headers)
    if size is None:
        return
    if config.get("strategy") == "fsdp":
        yield Issue("note", "strategy", "memory of a step is not predicted under fsdp")
        return
    images = micro_batch_size(config)
    try:
        set_global_batch(config)
    except InputError:
        pass  # said already; a step of one part needs least
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        needed = predict_training(config, images, size, device).peak
    except (
        RuntimeError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        AssertionError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        yield Issue("note", "model", f"memory of a step cannot be predicted ({reason})")
        return
    free = available_memory(device)
    said = (
        f"a step of {images} images of {size[0]}x{size[1]} needs about {needed / GIB:.1f} GiB, "
        f"{free / GIB:.1f} GiB are free on the {'GPU' if device == 'cuda' else 'CPU'}"
    )
    key = "train_dataloader.batch_size"
    if needed > free:
        advice = f"--cfg-options {key}={max(1, images // 2)}: tools/train.py accumulates the rest"
        if images == 1:
            advice = (
                "--cfg-options model.backbone.with_cp=True, smaller images, or several processes "
                "with --strategy fsdp"
            )
        yield Issue("error", key, said, advice)
    elif needed > 0.9 * free:
        yield Issue("warning", key, said, "it may run out now and then; make batch_size smaller")
    else:
        yield Issue("note", key, said)


def training_size(config: Config, headers: dict[Path, Header]) -> tuple[int, int] | None:
    """(width, height) of the largest padded batch that is trained on; None if not known.

    A detector's is the largest scale of its pipeline, or the largest of `headers` without one.
    """
    pipeline = config.train_dataloader.dataset.pipeline
    if crop := training_crop(config):
        return crop[::-1]
    for step in pipeline:
        if "input_size" in step:
            return (step["input_size"],) * 2
    largest = pipeline_scales(pipeline) or [header.upright for header in headers.values()]
    if not largest:
        return None
    width, height = max(map(max, largest)), max(map(min, largest))
    divisor = (config.model.get("data_preprocessor") or {}).get("pad_size_divisor", 1)
    return -(-width // divisor) * divisor, -(-height // divisor) * divisor


def pipeline_scales(steps: Any) -> list[tuple[int, int]]:
    """(long, short) sides of every scale that a pipeline may resize to, its branches too."""
    scales = []
    for step in steps:
        if isinstance(step, list | tuple):
            scales += pipeline_scales(step)
        elif "Resize" in step["type"]:
            # A step before a crop makes the pictures that it cuts from.
            given = step.get("scales") or [step.get("scale")]
            scales += [(max(s), min(s)) for s in given if isinstance(s, list | tuple)]
        else:
            scales += pipeline_scales(step.get("transforms", ()))
    return scales


def _check_files(dataset: dict, key: str, classes: tuple[str, ...]) -> None:
    root = Path(dataset.get("data_root") or "")
    if not root.is_dir():
        raise InputError(f"{root}: no such data folder ({key}.data_root); {WHERE_TO_GET}")
    for name, folder in dataset.get("data_prefix", {}).items():
        if folder and not (root / folder).is_dir():
            raise InputError(f"{root / folder}: no such folder ({key}.data_prefix.{name})")
    annotations = dataset.get("ann_file") or ""
    if annotations.endswith(".json"):
        if not (root / annotations).is_file():
            raise InputError(
                f"{root / annotations}: no such annotation file ({key}.ann_file); {WHERE_TO_GET}",
                code="not-found",
                where=root / annotations,
            )
        check_categories(root / annotations, classes)
    elif annotations and not (root / annotations).exists():  # a list of names
        raise InputError(f"{root / annotations}: no such file ({key}.ann_file)")


def _class_counts(node: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "num_classes" and "RPN" not in str(node.get("type")):
                yield f"{path}.{key}", value
            else:
                yield from _class_counts(value, f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _class_counts(value, f"{path}.{i}")
