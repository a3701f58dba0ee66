"""Find boxes and masks in a folder in any known format and read them as COCO content."""

from pathlib import Path

from mmengine.logging import print_log

from backbones.errors import InputError

from .coco_file import has_objects
from .files import one_line
from .formats import coco, voc, yolo
from .formats.content import Annotations, Found


def find_annotations(root: Path) -> tuple[str, Found]:
    """Find the annotations in a folder.

    Returns:
        COCO, YOLO, Pascal VOC or "", and by split: JSON files, data.yaml or the folder of labels
        (under None), or folders of XML.

    Raises:
        InputError: there are none but a JSON file that cannot be read.
    """
    found, unreadable = coco.find(root)
    if found:
        return "COCO", found
    if found := yolo.find(root):
        return "YOLO", found
    if found := voc.find(root):
        return "Pascal VOC", found
    if unreadable:
        raise unreadable
    return "", {}


def read_annotations(root: Path) -> tuple[str, dict[str | None, Annotations]]:
    """Read every split's annotations in a folder; the key None stands for data without splits.

    Raises:
        InputError: there are none, two for a split, or something in them is wrong.
    """
    kind, found = find_annotations(root)
    for split, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(one_line(path.relative_to(root)) for path in paths[:3])
            raise InputError(
                f"{one_line(root)}: {len(paths)} sets of {kind} annotations for one split, "
                f"{split or 'unnamed'} ({names}); keep only one in the folder",
                code="bad-annotations",
                where=root,
            )
    if None in found and len(found) > 1:
        raise InputError(
            f"{one_line(found[None][0])}: belongs to no split, but others in {one_line(root)} "
            "do; put train, val or test into its name",
            code="bad-annotations",
            where=found[None][0],
        )
    if kind == "COCO":
        if "test" in found and len(found) > 1 and not has_objects(found["test"][0]):
            (path,) = found.pop("test")
            print_log(f"{one_line(path)}: has no objects to evaluate on", "current")
        read = {split: coco.read(root, paths[0]) for split, paths in found.items()}
    elif kind == "YOLO":
        read = yolo.read(root, found[None][0])
    elif kind == "Pascal VOC":
        read = voc.read(root, {split: paths[0] for split, paths in found.items()})
    else:
        raise InputError(
            f"{one_line(root)}: contains no COCO, YOLO or Pascal VOC annotations",
            code="no-data",
            where=root,
        )
    for split in [split for split, one in read.items() if not one.content["images"]]:
        if split != "test":
            source = read[split].source
            raise InputError(
                f"{one_line(source)}: no images for {split or 'any split'}",
                code="no-data",
                where=source,
            )
        del read[split]
    return kind, read
