"""A config made to read one's own data: splits, classes, heads, evaluators follow the folder.

What the config cannot read as it lies is written into the work dir, whole, and depends on nothing
but the folder: the same folder gives the same files, and the saved config reruns by itself.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from PIL import Image

from backbones.errors import InputError
from backbones.weights.checkpoints import read_checkpoint

from .annotations import Annotations, find_annotations, read_annotations
from .label_folders import (
    LabelRule,
    Pair,
    converted,
    find_label_maps,
    label_rule,
    load_label_map,
    read_classes,
    read_pairs,
)
from .metainfo import class_colours, class_names, dataset_metainfo

VALIDATION_SHARE = 0.2
SEED = 0
DETECTION = "COCO, YOLO or Pascal VOC annotations"
SEGMENTATION = "folders of images and of label maps in PNG"


@dataclass(frozen=True)
class Classes:
    """The classes that a config or a checkpoint has before the data is seen.

    Attributes:
        names: in the order of the labels.
        exist: whether a trained model has them, which is to be evaluated.
        certain: whether its checkpoint says so.
    """

    names: tuple[str, ...]
    exist: bool
    certain: bool

    def cover(self, names: list[str], used: set[str], source: Path) -> list[str]:
        """These classes, where they are the data's in another order or a model to evaluate has
        all that occur; else the data's.

        Raises:
            InputError: objects occur that the model to evaluate does not know.
        """
        if set(names) == set(self.names) or (self.exist and used <= set(self.names)):
            return list(self.names)
        if self.certain:
            stray = sorted(used - set(self.names))
            raise InputError(
                f"{source}: has {stray[0]}, which is none of the model's {len(self.names)} classes "
                f"({', '.join(self.names[:5])}, ...)"
            )
        return names


def use_data(
    config: Config,
    root: str | os.PathLike,
    work_dir: str | os.PathLike = "work_dirs",
    checkpoint: str | os.PathLike | None = None,
) -> None:
    """Read every split from another folder, the config's own data set or any other.

    A folder laid out like the config's own and of its classes only changes places. For any other
    the datasets, the classes of every head, evaluators and metainfo are set to what is in it.

    Args:
        config: of a detector or a segmentor; of a classifier the folder alone is changed.
        root: the folder; docs/own-data.md has the layouts.
        work_dir: where converted annotations and the list of a made validation split go.
        checkpoint: of a model to evaluate on the test split: its classes are kept where they cover
            the data's, and so is a mask head that the data has no masks for.

    Raises:
        InputError: the folder holds no data for the config's task, or something in it is wrong.
    """
    root = Path(root)
    splits = ("test",) if checkpoint else ("train", "val", "test")
    splits = tuple(split for split in splits if config.get(f"{split}_dataloader"))
    is_dense = config.get("default_scope") in ("mmdet", "mmseg")
    if not is_dense or _is_config_layout(config, root, splits):
        change_place(config, root)
        return
    root = root.resolve()
    trained = class_names(read_checkpoint(checkpoint)) if checkpoint else None
    model = Classes(trained or _classes(config), bool(checkpoint), bool(trained))
    use = _use_label_maps if config.get("default_scope") == "mmseg" else _use_annotations
    use(config, root, _folder(Path(work_dir), root), splits, model)


def change_place(config: Config, root: Path) -> None:
    """Read every split from another folder, laid out like the config's own."""
    for split in ("train", "val", "test"):
        loader = config.get(f"{split}_dataloader")
        if loader is None:
            continue
        dataset = loader.dataset
        dataset.data_root = str(root)
        evaluator = config.get(f"{split}_evaluator")
        if evaluator and "ann_file" in evaluator:
            evaluator.ann_file = str(root / dataset.ann_file)


def _is_config_layout(config: Config, root: Path, splits: Sequence[str]) -> bool:
    """Whether the config's own files are there, of its own classes: `check_data` has the rest."""
    if not root.is_dir():
        return True  # which `check_data` says
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
    dataset = config[f"{splits[0]}_dataloader"].dataset
    if not dataset.get("ann_file"):
        names = read_classes(root).names
        return not names or names == list(_classes(config))
    if not present[0]:
        return True
    try:
        names = _category_names(root / dataset.ann_file)
    except (ValueError, KeyError, TypeError):
        return True
    return names == list(_classes(config))


def _category_names(path: Path) -> list[str]:
    """Names of a COCO file's categories, without parsing the rest of it, which may have 450 MB."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = text.find(b"[", text.find(b'"categories"'))
        categories, _ = json.JSONDecoder().raw_decode(text[start : start + 2**20].decode())
    return [category["name"] for category in categories]


def _classes(config: Config) -> tuple[str, ...]:
    for split in ("train", "val", "test"):
        if loader := config.get(f"{split}_dataloader"):
            metainfo = dataset_metainfo(loader.dataset, config.get("default_scope"))
            return tuple(metainfo.get("classes") or ())
    return ()


def _use_annotations(
    config: Config,
    root: Path,
    folder: Path,
    splits: Sequence[str],
    model: Classes,
) -> None:
    if not find_annotations(root)[0]:
        if find_label_maps(root):
            raise _other_task(config, root, SEGMENTATION, "a detector", DETECTION)
        raise InputError(f"{root}: no {DETECTION} in it; docs/own-data.md has the layouts")
    kind, read = read_annotations(root)
    if only := _to_split(read, splits):
        read |= _split_annotations(only, root, folder)
    _require(read, splits, root)
    names = _category_order(read, model)
    with_masks = _have_masks(read)
    for split in splits:
        name = split if split in read else "val"
        one = read[name]
        path = one.source if one.as_is else folder / f"instances_{name}.json"
        if not one.as_is:
            _write(path, json.dumps(one.content))
        dataset = config[f"{split}_dataloader"].dataset
        dataset.type = "CocoDataset"
        dataset.data_root = str(root)
        dataset.ann_file = str(path)
        dataset.data_prefix = dict(img=_below(one.images, root))
        dataset.metainfo = dict(classes=names, palette=class_colours(len(names)).tolist())
        if evaluator := config.get(f"{split}_evaluator"):
            evaluator.ann_file = str(path)
    _set_class_count(config.model, len(names))
    if not with_masks:
        _leave_masks_out(config, splits, root, keep_head=model.exist)
    _say(root, kind, names, [(s, *_count(read.get(s) or read["val"])) for s in splits])


def _count(one: Annotations) -> tuple[str, int, str]:
    return str(one.source), len(one.content["images"]), f"{len(one.content['annotations'])} objects"


def _split_annotations(
    only: Annotations, root: Path, folder: Path
) -> dict[str | None, Annotations]:
    """A training and a validation split of the images of one set of annotations."""
    files = {image["id"]: only.images / image["file_name"] for image in only.content["images"]}
    chosen = _choose_validation(files.values(), root, folder)
    made: dict[str | None, Annotations] = {}
    for split in ("train", "val"):
        ids = {i for i, path in files.items() if (path in chosen) == (split == "val")}
        content = {
            **only.content,
            "images": [image for image in only.content["images"] if image["id"] in ids],
            "annotations": [r for r in only.content["annotations"] if r["image_id"] in ids],
        }
        made[split] = Annotations(only.source, only.images, content)
    return made


def _category_order(read: Mapping[str | None, Annotations], model: Classes) -> tuple[str, ...]:
    """Bring the categories of every split into one order and return it.

    mmdet numbers labels by the order of the categories in the file, whatever `metainfo` says.
    """
    base = read.get("train") or read.get("val") or read["test"]
    used: set[str] = set()
    for one in read.values():
        name_of = {c["id"]: c["name"] for c in one.content["categories"]}
        in_use = {row["category_id"] for row in one.content["annotations"]}
        if unknown := in_use - name_of.keys():
            raise InputError(f"{one.source}: category_id {min(unknown)} is of no category in it")
        used |= {name_of[i] for i in in_use}
    categories = base.content["categories"]
    names = list(dict.fromkeys(category["name"] for category in categories))
    over = {category.get("supercategory") for category in categories}
    # Roboflow's first category is the group of all others and labels nothing.
    groups = [name for name in names if name in over and name not in used and len(names) > 1]
    names = [name for name in names if name not in groups]
    if stray := used - set(names):
        where = next(
            one.source
            for one in read.values()
            if stray & {category["name"] for category in one.content["categories"]}
        )
        raise InputError(f"{where}: has objects of {sorted(stray)[0]}, which {base.source} lacks")
    names = model.cover(names, used, base.source)
    if groups:
        print_log(f"{base.source}: {groups[0]} is a group of classes, not a class", "current")
    for one in read.values():
        old = one.content["categories"]
        if [category["name"] for category in old] == names:
            continue
        one.as_is = False
        name_of = {category["id"]: category["name"] for category in old}
        one.content["categories"] = [dict(id=i, name=name) for i, name in enumerate(names, start=1)]
        one.content["annotations"] = [
            {**row, "category_id": names.index(name_of[row["category_id"]]) + 1}
            for row in one.content["annotations"]
        ]
    return tuple(names)


def _have_masks(read: Mapping[str | None, Annotations]) -> bool:
    """Whether the objects have masks; some with and some without are an error."""
    bare, masked = [], 0
    for one in read.values():
        for row in one.content["annotations"]:
            if row.get("segmentation"):
                masked += 1
            elif not row["iscrowd"]:
                bare.append((one, row))
    if bare and masked:
        one, row = bare[0]
        names = {image["id"]: image["file_name"] for image in one.content["images"]}
        raise InputError(
            f"{one.source}: {len(bare)} of {len(bare) + masked} objects have no mask, the first in "
            f"{names[row['image_id']]}; give all of them masks, or none to train on boxes alone"
        )
    return not bare and masked > 0


def _leave_masks_out(config: Config, splits: Sequence[str], root: Path, keep_head: bool) -> None:
    """Make the config one of boxes alone; a model to evaluate keeps its mask head unused."""
    for step in _dicts(config._cfg_dict, "LoadAnnotations"):
        step["with_mask"] = False
    for split in splits:
        evaluator = config.get(f"{split}_evaluator") or {}
        if "metric" in evaluator:
            evaluator.metric = ["bbox"]
    roi_head = config.model.get("roi_head") or {}
    if roi_head.get("mask_head") and not keep_head:
        roi_head.mask_head = roi_head.mask_roi_extractor = None
        print_log(f"{root}: boxes without masks: the model has no mask head", "current")
    elif roi_head.get("mask_head"):
        print_log(f"{root}: boxes without masks: only box AP is computed", "current")


def _use_label_maps(
    config: Config,
    root: Path,
    folder: Path,
    splits: Sequence[str],
    model: Classes,
) -> None:
    if not find_label_maps(root):
        if kind := find_annotations(root)[0]:
            raise _other_task(config, root, f"{kind} annotations", "a segmentor", SEGMENTATION)
        raise InputError(f"{root}: no {SEGMENTATION} in it; docs/own-data.md has the layouts")
    read = read_pairs(root)
    if only := _to_split(read, splits):
        chosen = _choose_validation([image for image, _ in only], root, folder)
        read["train"] = [pair for pair in only if pair[0] not in chosen]
        read["val"] = [pair for pair in only if pair[0] in chosen]
    _require(read, splits, root)
    rule = label_rule([p for pairs in read.values() for p in pairs], read_classes(root))
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
        lines = [f"{_below(image, root)}\t{_below(label, root)}\n" for image, label in pairs]
        _write(path, "".join(lines))
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
    for step in _dicts(config._cfg_dict, "LoadAnnotations"):
        step["reduce_zero_label"] = reduce
    _set_class_count(config.model, len(rule.names))
    lines = [(s, s if s in read else "val") for s in splits]
    lines = [(s, str(read[n][0][0].parent), len(read[n]), "label maps") for s, n in lines]
    _say(root, rule.statement, rule.names, lines)


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


def _other_task(config: Config, root: Path, found: str, model: str, wanted: str) -> InputError:
    return InputError(f"{root}: holds {found}, but {config.filename} is {model} and needs {wanted}")


def _to_split(read: dict[str | None, Any], splits: Sequence[str]) -> Any:
    """What a validation split has to be taken from; None where there is one or none is needed."""
    if None in read:
        return read.pop(None)
    if "val" in read or (splits == ("test",) and "test" in read):
        return None
    return read.get("train")


def _require(read: Mapping[str | None, Any], splits: Sequence[str], root: Path) -> None:
    for split in splits:
        if split not in read and (split == "train" or "val" not in read):
            found = ", ".join(sorted(str(name) for name in read))
            raise InputError(f"{root}: no {split} split in it, only {found}")


def _choose_validation(paths: Iterable[Path], root: Path, folder: Path) -> set[Path]:
    """A fifth of the images, the same ones every time; written to split.json.

    Copies of an image stay together, and so do Roboflow's augmentations of one (x.rf.HASH.jpg). A
    group's place in the draw hangs on its name alone, so that more images move few others.

    Raises:
        InputError: all images are one.
    """
    groups: dict[Path, Path] = {}

    def first(path: Path) -> Path:
        while groups[path] != path:
            path = groups[path]
        return path

    seen: dict[Any, Path] = {}
    paths = sorted(set(paths))
    for path in paths:
        groups[path] = path
        with path.open("rb") as file:
            content = hashlib.sha256(file.read(2**16)).digest(), path.stat().st_size
        source = path.parent, path.name.split(".rf.")[0]
        for key in (content, source) if ".rf." in path.name else (content,):
            groups[first(path)] = first(seen.setdefault(key, path))
    members: dict[Path, list[Path]] = {}
    for path in paths:
        members.setdefault(first(path), []).append(path)
    if len(members) < 2:
        raise InputError(f"{root}: {len(paths)} images are too few to set some aside to validate")

    def rank(group: Path) -> bytes:
        return hashlib.sha256(f"{SEED} {_below(group, root)}".encode()).digest()

    order = sorted(members, key=rank)
    chosen: set[Path] = set()
    for group in order[:-1]:
        if len(chosen) >= VALIDATION_SHARE * len(paths):
            break
        chosen.update(members[group])
    path = folder / "split.json"
    record = dict(root=str(root), seed=SEED, share=VALIDATION_SHARE)
    for split in ("train", "val"):
        record[split] = [_below(p, root) for p in paths if (p in chosen) == (split == "val")]
    _write(path, json.dumps(record, indent=1))
    print_log(
        f"{root}: no validation split: {len(chosen)} of {len(paths)} images set aside by seed "
        f"{SEED}, listed in {path}",
        "current",
    )
    return chosen


def _below(path: Path, root: Path) -> str:
    if not path.is_relative_to(root):
        return str(path)
    return "" if path == root else path.relative_to(root).as_posix()


def _folder(work_dir: Path, root: Path) -> Path:
    """The work dir's folder for this root: an evaluation on another leaves it alone."""
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    return work_dir.resolve() / "data" / f"{root.name}-{digest}"


def _write(path: Path, text: str) -> None:
    """Write whole; several processes of a run may write the same at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _dicts(node: Any, kind: str) -> Iterator[dict]:
    """Every dict of a type, however deep."""
    if isinstance(node, dict):
        if str(node.get("type")).endswith(kind):
            yield node
        for value in node.values():
            yield from _dicts(value, kind)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _dicts(value, kind)


def _set_class_count(node: Any, count: int) -> None:
    """Set num_classes of every head but the RPN, which knows objects only."""
    if isinstance(node, dict):
        if "num_classes" in node and "RPN" not in str(node.get("type")):
            node["num_classes"] = count
        for value in node.values():
            _set_class_count(value, count)
    elif isinstance(node, list | tuple):
        for value in node:
            _set_class_count(value, count)


def _say(root: Path, kind: str, names: Sequence[str], splits: list[tuple]) -> None:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    print_log(f"{root}: {kind}; {len(names)} classes: {shown}", "current")
    for split, source, images, what in splits:
        counted = f"{images} images, {what}" if what[0].isdigit() else f"{images} {what}"
        print_log(f"  {split}: {counted}, {source}", "current")
