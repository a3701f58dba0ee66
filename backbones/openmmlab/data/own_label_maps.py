"""Make a segmentor's config read one's own label maps."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from PIL import Image

from backbones.errors import InputError

from .annotations import find_annotations
from .config_edits import set_class_count, typed_dicts
from .converted import below, write
from .files import one_line
from .label_folders import (
    IGNORED,
    LabelRule,
    Pair,
    converted,
    find_label_maps,
    label_rule,
    load_label_map,
    read_classes,
    read_pairs,
    values_in,
)
from .metainfo import Classes, class_colours
from .own_splits import (
    SEGMENTATION,
    log_reading,
    no_layout,
    other_task,
    require,
    take_unsplit,
)
from .validation_split import choose_validation


def use_label_maps(
    config: Config, root: Path, folder: Path, splits: Sequence[str], model: Classes
) -> None:
    """Read splits from folders of images and label maps.

    Args:
        config: a segmentor's config; changed in place.
        root: the folder that they are in.
        folder: where converted label maps and lists of pairs go.
        splits: splits to read.
        model: the classes that the config or checkpoint has.

    Raises:
        InputError: there are no label maps, or something in them is wrong.
    """
    if not find_label_maps(root):
        if kind := find_annotations(root)[0]:
            raise other_task(config, root, f"{kind} annotations", "a segmentor", SEGMENTATION)
        raise no_layout(root, SEGMENTATION)
    read = read_pairs(root)
    if only := take_unsplit(read, splits):
        chosen = choose_validation([image for image, _ in only], root, folder)
        read["train"] = [pair for pair in only if pair[0] not in chosen]
        read["val"] = [pair for pair in only if pair[0] in chosen]
    require(read, splits, root)
    classes = read_classes(root)
    values = {split: values_in(pairs, bool(classes.colours)) for split, pairs in read.items()}
    where = {value: path for found in values.values() for value, path in found.items()}
    rule = label_rule(where, classes)
    for split, found in values.items():
        if all(rule.labels.get(value, IGNORED) == IGNORED for value in found):
            maps = read[split][0][1].parent
            raise InputError(
                f"{one_line(maps)}: every pixel of its {len(read[split])} label maps is ignored: "
                f"{rule.statement}",
                code="no-data",
                where=maps,
            )
    names = model.cover(rule.names, set(rule.names), root)
    if names != rule.names:
        order = [names.index(name) for name in rule.names]
        rule.labels = {v: order[i] if i < len(order) else i for v, i in rule.labels.items()}
        rule.names, rule.palette = names, None
    palette = rule.palette or class_colours(len(rule.names)).tolist()
    reduce = rule.reduces_zero and not rule.is_plain
    as_is = reduce or rule.is_plain
    for split in splits:
        name = split if split in read else "val"
        pairs = read[name] if as_is else _convert_labels(read[name], folder / "labels" / name, rule)
        path = folder / f"{name}.txt"
        # JSON, as a name may hold a tab or a line break.
        lines = [json.dumps([below(i, root), below(m, root)]) + "\n" for i, m in pairs]
        write(path, "".join(lines))
        old = config[f"{split}_dataloader"].dataset
        config[f"{split}_dataloader"].dataset = dict(
            type="ImageLabelPairs",
            pairs=str(path),
            data_root=str(root),
            reduce_zero_label=reduce,
            metainfo=dict(classes=tuple(rule.names), palette=palette),
            pipeline=old.pipeline,
            **{key: old[key] for key in ("indices", "test_mode", "max_refetch") if key in old},
        )
    for step in typed_dicts(config._cfg_dict, "LoadAnnotations"):
        step["reduce_zero_label"] = reduce
    set_class_count(config.model, len(rule.names))
    lines = [(s, s if s in read else "val") for s in splits]
    lines = [(s, str(read[n][0][0].parent), len(read[n]), "label maps") for s, n in lines]
    log_reading(root, rule.statement, rule.names, lines)


def _convert_labels(pairs: list[Pair], folder: Path, rule: LabelRule) -> list[Pair]:
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for image, label in pairs:
        path = folder / f"{image.stem}.png"
        part = path.with_name(f".{path.name}.{os.getpid()}")
        Image.fromarray(converted(load_label_map(label), rule.labels)).save(part, format="PNG")
        part.replace(path)
        made.append((image, path))
    return made
