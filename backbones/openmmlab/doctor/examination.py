"""Checks of a config against its data, made before anything expensive starts.

`check_data` stops at the first thing that cannot work, and reads little. `examine` reads all that
a run would and says everything it finds.
"""

import json
import mmap
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from backbones.errors import InputError
from backbones.openmmlab.data.coco_annotations import CocoAnnotations
from backbones.openmmlab.data.findings import Finding, by_severity, first_of
from backbones.openmmlab.data.image_files import Header, check_images, check_left_out, read_headers
from backbones.openmmlab.data.label_maps import LabelMaps
from backbones.openmmlab.data.metainfo import dataset_class, dataset_metainfo
from backbones.openmmlab.training.total_batch import part_size, use_total_batch

from .memory import GIB, available_memory, predict_training
from .recipe import check_disk, check_recipe, check_weights, training_crop
from .stack import check_inference_dtype, check_stack

WHERE_TO_GET = "tools/prepare_data.py makes or downloads it, --data ROOT names another folder"
SPLITS = ("train", "val", "test")
T = TypeVar("T")


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


def examine(config: Config, images: int = 1000) -> list[Finding]:
    """Everything that there is to find before training, the gravest first.

    Args:
        config: a validated config; not changed.
        images: of each split whose files are opened, spread evenly over it; 0 for all.
    """
    config = deepcopy(config)
    findings = [*check_stack(), *check_inference_dtype(config), *check_recipe(config)]
    findings += [*check_disk(config), *check_weights(config)]
    headers: dict[Path, Header] = {}
    seen: list[dict] = []
    known: dict[str, Sequence[str]] = {}
    for split in SPLITS:
        loader = config.get(f"{split}_dataloader")
        if loader is None or loader.dataset in seen:
            continue
        seen.append(loader.dataset)
        found, read = _examine_split(config, split, images, known)
        findings += found
        if split == "train":
            headers = read
    findings += _examine_memory(config, headers)
    return by_severity(findings)


def examine_quickly(config: Config) -> list[Finding]:
    """What `examine` finds without opening a data file or running anything."""
    return by_severity(
        [
            *check_stack(),
            *check_inference_dtype(config),
            *check_recipe(config),
            *check_disk(config),
        ]
    )


def _examine_split(
    config: Config, split: str, images: int, known: dict[str, Sequence[str]]
) -> tuple[list[Finding], dict[Path, Header]]:
    dataset, key = config[f"{split}_dataloader"].dataset, f"{split}_dataloader.dataset"
    try:
        classes = _check_split(config, split)
    except InputError as error:
        return [Finding("error", key, str(error))], {}
    if classes is None:
        return [Finding("warning", key, "has no class names: nothing can be compared")], {}
    if contradiction := _other_classes(known, split, classes):
        findings = [Finding("error", *contradiction.split(": ", 1))]
    else:
        findings = [
            Finding("error", path, _wrong_count(path, count, split, classes).partition(": ")[2])
            for path, count in _class_counts(config.model, "model")
            if count != len(classes)
        ]
    if repeated := [name for name in dict.fromkeys(classes) if list(classes).count(name) > 1]:
        findings.append(Finding("error", f"{key}.metainfo.classes", f"{first_of(repeated)} twice"))
    scales = pipeline_scales(dataset.pipeline)
    try:
        if dataset.get("ann_file") and "seg_map_path" not in dataset.get("data_prefix", {}):
            found, headers = _examine_coco(dataset, classes, split == "train", images)
        else:
            found, headers = _examine_folder(config, dataset, classes, key, split, images)
    except InputError as error:
        return [*findings, Finding("error", key, str(error))], {}
    return [*findings, *found, *check_images(headers, key, scales)], headers


def _examine_coco(
    dataset: dict, classes: Sequence[str], training: bool, images: int
) -> tuple[list[Finding], dict[Path, Header]]:
    root = Path(dataset.get("data_root") or "")
    annotations = CocoAnnotations(root / dataset.ann_file, classes)
    with_mask = any(step.get("with_mask") for step in dataset.pipeline)
    folder = root / dataset.data_prefix.img
    paths = [folder / name for name in dict.fromkeys(annotations.names())]
    sample = set(spread(paths, images))
    # Opening is what takes long; that a file is there can be asked of all.
    headers, findings = read_headers([p for p in paths if p in sample or not p.is_file()])
    findings += annotations.check(with_mask and training)
    return [*findings, *annotations.check_sizes(folder, headers)], headers


def _examine_folder(
    config: Config, dataset: dict, classes: Sequence[str], key: str, split: str, images: int
) -> tuple[list[Finding], dict[Path, Header]]:
    """Findings about label maps beside images, or about folders of classes."""
    scope = config.get("default_scope", "mmengine")
    folders = hasattr(dataset_class(dataset, scope), "check_files")  # of classes, torchvision's
    with DefaultScope.overwrite_default_scope(scope):
        built = DATASETS.build({**deepcopy(dataset), **({} if folders else {"lazy_init": True})})
    if folders:
        paths = [Path(path) for path, _ in built.samples]
        headers, findings = read_headers(spread(paths, images))
        return [*findings, *check_left_out(Path(built.root), paths, built.extensions)], headers
    infos = built.load_data_list()
    if not infos:
        suffix = f"{built.img_suffix}" if hasattr(built, "img_suffix") else ""
        return [Finding("error", key, f"finds no image{f' *{suffix}' if suffix else ''}")], {}
    pairs = [(Path(info["img_path"]), Path(info.get("seg_map_path") or "")) for info in infos]
    chosen = spread(pairs, images)
    headers, findings = read_headers([image for image, _ in chosen])
    reduces = getattr(built, "reduce_zero_label", None)
    if reduces is not None:
        findings += _loads_alike(dataset, reduces, key)
        maps = LabelMaps(chosen, classes, reduces, key, len(chosen) == len(pairs))
        findings += maps.check(headers, split == "train")
    return findings, headers


def _loads_alike(dataset: dict, reduces: bool, key: str) -> Iterator[Finding]:
    for i, step in enumerate(dataset.pipeline):
        asked = step.get("reduce_zero_label")
        if step["type"] == "LoadAnnotations" and asked is not None and asked != reduces:
            yield Finding(
                "error",
                f"{key}.pipeline.{i}.reduce_zero_label",
                f"{asked}, but the data set's is {reduces}",
                "make them equal: mmseg asserts it at the first image",
            )


def _examine_memory(config: Config, headers: dict[Path, Header]) -> Iterator[Finding]:
    if config.get("train_dataloader") is None or config.get("optim_wrapper") is None:
        return
    size = training_size(config, headers)
    if size is None:
        return
    if config.get("strategy") == "fsdp":
        yield Finding("note", "strategy", "memory of a step is not predicted under fsdp")
        return
    images = part_size(config)
    try:
        use_total_batch(config)
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
        yield Finding("note", "model", f"memory of a step cannot be predicted ({reason})")
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
        yield Finding("error", key, said, advice)
    elif needed > 0.9 * free:
        yield Finding("warning", key, said, "it may run out now and then; make batch_size smaller")
    else:
        yield Finding("note", key, said)


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


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of these, evenly spaced; all of them if there are no more or `count` is 0."""
    if count == 0 or len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _check_files(dataset: dict, key: str, classes: tuple[str, ...]) -> None:
    root = Path(dataset.get("data_root") or "")
    if not root.is_dir():
        raise InputError(f"{root}: no such data folder ({key}.data_root); {WHERE_TO_GET}")
    for name, folder in dataset.get("data_prefix", {}).items():
        if folder and not (root / folder).is_dir():
            raise InputError(f"{root / folder}: no such folder ({key}.data_prefix.{name})")
    annotations = dataset.get("ann_file") or ""
    if annotations.endswith(".json"):
        check_coco(root / annotations, classes, f"{key}.ann_file")
    elif annotations and not (root / annotations).exists():  # a list of names
        raise InputError(f"{root / annotations}: no such file ({key}.ann_file)")


def check_coco(path: Path, classes: tuple[str, ...], key: str) -> None:
    """Check that a COCO annotation file is whole and names exactly the model's classes.

    Only its end and its categories are parsed: COCO's own file has 450 MB.

    Raises:
        InputError: it is missing, cut off, or its categories are others.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such annotation file ({key}); {WHERE_TO_GET}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the annotation file is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if not text[-64:].rstrip().endswith(b"}"):
            raise InputError(f"{path}: the annotation file is cut off; copy or download it again")
        start = text.find(b'"categories"')
        if start < 0:
            raise InputError(f"{path}: has no categories; it is not a COCO annotation file")
        start = text.find(b"[", start)
        try:
            # Categories of the largest public sets fit in a megabyte.
            categories, _ = json.JSONDecoder().raw_decode(text[start : start + 2**20].decode())
            names = [category["name"] for category in categories]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: categories cannot be read ({error})") from None
    unknown = [name for name in names if name not in classes]
    lacking = [name for name in classes if name not in names]
    if unknown or lacking:
        parts = []
        if unknown:
            parts.append(f"has {len(unknown)} the config does not ({', '.join(unknown[:3])})")
        if lacking:
            parts.append(f"lacks {len(lacking)} of the config's ({', '.join(lacking[:3])})")
        raise InputError(
            f"{path}: {len(names)} categories against {len(classes)} classes: it "
            f"{' and '.join(parts)}; set metainfo.classes and every num_classes"
        )


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
