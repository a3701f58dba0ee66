"""Make a config read one's own data: adapt splits, classes, heads and evaluators to the folder.

What the config cannot read as it lies is written into the work dir and depends on nothing but the
folder: the same folder gives the same files, and the saved config reruns by itself.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log

from backbones.errors import InputError

from .coco_annotations import CocoAnnotations
from .coco_file import read_categories
from .config_edits import evaluators
from .converted import folder_for
from .decoding import read_label_map
from .files import IMAGES, RASTERS, files_below, one_line, spread
from .label_folders import IGNORED, read_classes
from .metainfo import Classes, class_names, dataset_class, dataset_metainfo
from .own_annotations import use_annotations
from .own_label_maps import use_label_maps
from .own_panoptic import is_panoptic, use_panoptic

LOOKED_AT = 200  # label maps per split to inspect before they count as the config's


def use_data(
    config: Config,
    root: str | os.PathLike,
    work_dir: str | os.PathLike = "work_dirs",
    trained: Mapping | None = None,
) -> None:
    """Read every split from another folder, the config's own data set or any other.

    A folder laid out like the config's own and of its classes only changes places. For any other
    the datasets, the classes of every head, evaluators and metainfo are set to what is in it.

    Args:
        config: a detector's or a segmentor's config; of a classifier's only the folder is changed.
        root: the folder; docs/own-data.md has the layouts.
        work_dir: where converted annotations and the list of a made validation split go.
        trained: content of the checkpoint to evaluate on the test split: its classes are kept if
            they cover the data's, and so is a mask head that the data has no masks for.

    Raises:
        InputError: the folder holds no data for the config's task, or something in it is wrong.
    """
    root = Path(root)
    splits = ("test",) if trained is not None else ("train", "val", "test")
    splits = tuple(split for split in splits if config.get(f"{split}_dataloader"))
    is_dense = config.get("default_scope") in ("mmdet", "mmseg")
    if not is_dense or _is_config_layout(config, root, splits):
        change_place(config, root)
        return
    # Links are not followed: labels are found by the path as it is given.
    root = Path(os.path.abspath(root))
    names = class_names(trained)
    model = Classes(names or _classes(config), trained is not None, bool(names))
    use = use_annotations
    if config.get("default_scope") == "mmseg":
        use = use_label_maps
    elif is_panoptic(config, splits):
        use = use_panoptic
    use(config, root, folder_for(Path(work_dir), root), splits, model)


def change_place(config: Config, root: Path) -> None:
    """Read every split from another folder, laid out like the config's own."""
    for split in ("train", "val", "test"):
        loader = config.get(f"{split}_dataloader")
        if loader is None:
            continue
        dataset = loader.dataset
        former = dataset.get("data_root") or ""
        dataset.data_root = str(root)
        for evaluator in evaluators(config, split):
            for key in ("ann_file", "seg_prefix"):
                if evaluator.get(key):
                    evaluator[key] = str(_moved(evaluator[key], former, dataset, root))


def _moved(file: str, former: str, dataset: dict, root: Path) -> Path:
    """Return an evaluator's file where the data set is now; one from elsewhere is the data set's.

    A panoptic data set is evaluated by the annotations of its instances too.
    """
    if former and Path(file).is_relative_to(former):
        return root / Path(file).relative_to(former)
    return root / dataset["ann_file"]


def _is_config_layout(config: Config, root: Path, splits: Sequence[str]) -> bool:
    """Return whether the folder holds the config's own files, with its classes, needing no repair.

    `check_data` has the rest.
    """
    if not root.is_dir():
        return True  # which `check_data` reports
    present = []
    for split in splits:
        dataset = config[f"{split}_dataloader"].dataset
        if file := dataset.get("ann_file"):  # absolute in a saved config of own data
            present.append(not Path(file).is_absolute() and (root / file).is_file())
        elif prefix := dataset.get("data_prefix"):
            present.append(all((root / folder).is_dir() for folder in prefix.values()))
        else:
            present.append(False)
    if not any(present) or (present[0] and not all(present)):
        return False
    if not present[0]:
        return True  # which `check_data` reports
    dataset = config[f"{splits[0]}_dataloader"].dataset
    classes = _classes(config)
    if not dataset.get("ann_file"):
        return _are_config_maps(config, root, splits, classes)
    try:
        if read_categories(root / dataset.ann_file) != list(classes):
            return False
        files = {config[f"{split}_dataloader"].dataset.ann_file for split in splits}
        return not any(_needs_repair(root / file, classes) for file in sorted(files))
    except InputError:
        return True  # which `check_data` reports


def _needs_repair(path: Path, classes: Sequence[str]) -> bool:
    issues = CocoAnnotations(path, classes).check(with_mask=True)
    return any(issue.severity == "error" for issue in issues)


def _are_config_maps(
    config: Config, root: Path, splits: Sequence[str], classes: Sequence[str]
) -> bool:
    """Return whether label maps under the config's folder names use the config's classes.

    Folders in ADE20K's layout are common: without a list of classes their values decide.

    Raises:
        InputError: there is no list of classes, and a label is none of the config's.
    """
    names = read_classes(root).names
    if names:
        return names == list(classes)
    seen: set[int] = set()
    beyond: tuple[Path, str] | None = None
    for split in splits:
        dataset = config[f"{split}_dataloader"].dataset
        pairs = _pairs_of(config, dataset, root)
        images = {Path(image) for image, _ in pairs}
        folder = dataset.data_prefix.get("img_path") or dataset.data_prefix.get("img") or ""
        if not pairs or set(files_below(root / folder, *IMAGES, *RASTERS)) - images:
            return False  # images by another suffix, which the config's data set would pass over
        reduces = bool(dataset.get("reduce_zero_label", _reduces_zero(dataset)))
        for _, path in spread(pairs, LOOKED_AT):
            try:
                labels = read_label_map(Path(path))
            except OSError:
                continue  # the run names it, or skips it where that is asked for
            if labels.ndim > 2 or labels.dtype.kind not in "bui":
                return False  # colours, which need a palette
            values = set(np.unique(labels).tolist())
            if (highest := max(values - {IGNORED}, default=0)) >= len(classes) + reduces:
                value = f" (value {highest})" if reduces else ""
                beyond = beyond or (Path(path), f"{highest - reduces}{value}")
            seen |= values
    if IGNORED in seen and seen <= {0, IGNORED}:
        return False  # a mask of one thing, drawn in white
    if beyond:
        raise InputError(
            f"{one_line(beyond[0])}: holds label {beyond[1]}, the config has {len(classes)} "
            f"classes; if these are other classes, put a classes.txt or classes.json that names "
            f"them into {one_line(root)}",
            code="bad-labels",
            where=beyond[0],
        )
    print_log(
        f"{one_line(root)}: no list of classes, and labels up to "
        f"{max(seen - {IGNORED}, default=IGNORED)}: assumed to be the config's {len(classes)} "
        "classes; add a classes.txt to name others",
        "current",
    )
    return True


def _pairs_of(config: Config, dataset: dict, root: Path) -> list[tuple[str, str]]:
    """List images and label maps as the config's data set would find them."""
    built = dataset_class(dataset, config.get("default_scope"))
    arguments = {k: v for k, v in dataset.items() if k not in ("type", "pipeline", "_scope_")}
    arguments |= dict(data_root=str(root), lazy_init=True, pipeline=[])
    infos: list[dict[str, Any]] = built(**arguments).load_data_list()
    return [(info["img_path"], info.get("seg_map_path") or "") for info in infos]


def _reduces_zero(dataset: dict) -> bool:
    steps = [step for step in dataset["pipeline"] if step.get("type") == "LoadAnnotations"]
    return any(step.get("reduce_zero_label") for step in steps)


def _classes(config: Config) -> tuple[str, ...]:
    for split in ("train", "val", "test"):
        if loader := config.get(f"{split}_dataloader"):
            metainfo = dataset_metainfo(loader.dataset, config.get("default_scope"))
            return tuple(metainfo.get("classes") or ())
    return ()
