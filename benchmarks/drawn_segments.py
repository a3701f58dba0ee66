"""Draw panoptic annotations on photographs that have instances: their own things, and stuff."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from backbones.openmmlab.data.shapes import encode_image

GROUNDS = 4  # bands of what no instance covers; COCO's images have about as many kinds of stuff


def draw_segments(source: Path, folder: Path, images: int) -> None:
    """Write the first photographs of source/train2017 with panoptic annotations into a folder.

    Both splits of COCO's panoptic layout hold the same photographs. Their things are the source's
    instances, small ones before large ones; what is left is divided into bands of stuff.
    """
    coco = COCO(str(source / "annotations" / "instances_train2017.json"))
    rows, annotations = [], []
    for image in sorted(coco.dataset["images"], key=lambda row: row["file_name"])[:images]:
        numbers, segments = segments_of(coco, image)
        colours = np.stack([numbers & 255, numbers >> 8, np.zeros_like(numbers)], -1)
        name = Path(image["file_name"]).with_suffix(".png").name
        rows.append({key: image[key] for key in ("id", "file_name", "width", "height")})
        annotations.append(dict(image_id=image["id"], file_name=name, segments_info=segments))
        for split in ("train2017", "val2017"):
            file = folder / "annotations" / f"panoptic_{split}" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode_image(colours.astype(np.uint8), "PNG"))
            link = folder / split / image["file_name"]
            link.parent.mkdir(exist_ok=True)
            link.symlink_to((source / "train2017" / image["file_name"]).resolve())
    things = [dict(id=c["id"], name=c["name"], isthing=1) for c in coco.dataset["categories"]]
    stuff = [dict(id=1000 + i, name=f"ground {i}", isthing=0) for i in range(GROUNDS)]
    content = dict(images=rows, annotations=annotations, categories=things + stuff)
    for split in ("train2017", "val2017"):
        (folder / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))


def segments_of(coco: COCO, image: Any) -> tuple[np.ndarray, list[dict]]:
    """Return the number of each pixel's segment, (H, W) int64 from 1, and the segments' rows."""
    bands = np.arange(image["width"]) * GROUNDS // image["width"]
    numbers = np.tile(bands + 1, (image["height"], 1))
    kinds = {i + 1: (1000 + i, 0) for i in range(GROUNDS)}
    instances = coco.imgToAnns[image["id"]]
    for row in sorted(instances, key=lambda row: -row["area"]):
        number = len(kinds) + 1
        kinds[number] = row["category_id"], row["iscrowd"]
        numbers[coco.annToMask(row).astype(bool)] = number
    segments = []
    for number, (category, crowd) in kinds.items():
        ys, xs = np.nonzero(numbers == number)
        if len(xs):
            x, y = int(xs.min()), int(ys.min())
            box = [x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y]
            row = dict(id=number, category_id=category, bbox=box, area=len(xs), iscrowd=crowd)
            segments.append(row)
    return numbers, segments
