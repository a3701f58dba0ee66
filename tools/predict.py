#!/usr/bin/env python
"""Draw what a trained model sees in images, and write its predictions as data.

python tools/predict.py CONFIG CHECKPOINT photo.jpg folder/ --out predictions
"""

import argparse
import csv
import io
import json
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import DictAction
from PIL import Image
from pycocotools import mask as coco_mask
from rich.progress import track

from backbones.checkpoints import trusted
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.drawing import (
    class_colours,
    draw_instances,
    draw_label_map,
    draw_scores,
)
from backbones.openmmlab.predictor import Predictor
from backbones.whole_files import write_whole, written_whole

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("predictions"))
    parser.add_argument("--score", type=float, default=0.5, help="least score of a drawn instance")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="run the code in a checkpoint, if it holds any",
    )
    args = parser.parse_args()

    paths = find_images(args.images)
    config = load_config(args.config, args.cfg_options)
    with trusted() if args.trust_checkpoint else nullcontext():
        predictor = Predictor(config, args.checkpoint, device=args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    coco = dict(images=[], annotations=[], categories=categories(predictor.classes))
    ranked = []  # of a classifier: (file, rank, label, class, score)
    for number, path in enumerate(track(paths, "predicting", transient=True), start=1):
        image = cv2.imread(str(path))
        if image is None:
            raise InputError(f"{path}: missing, empty or not an image")
        sample = predictor(image)
        rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if "pred_instances" in sample:
            found = sample.pred_instances.cpu().numpy()
            masks = found.masks if "masks" in found else None
            drawn = found.scores >= args.score
            picture = draw_instances(
                rgb,
                found.bboxes[drawn],
                found.labels[drawn],
                found.scores[drawn],
                predictor.classes,
                None if masks is None else masks[drawn],
            )
            height, width = image.shape[:2]
            coco["images"].append(dict(id=number, file_name=str(path), width=width, height=height))
            coco["annotations"] += annotations(found, masks, number, len(coco["annotations"]) + 1)
        elif "scores" in sample:
            scores, labels = sample.scores.cpu().topk(min(5, len(sample.scores)))
            names = [predictor.classes[label] for label in labels]
            rows = zip(labels.tolist(), names, scores.tolist(), strict=True)
            ranked += [(str(path), rank, *row) for rank, row in enumerate(rows, start=1)]
            picture = draw_scores(rgb, names, scores.numpy())
        else:
            labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
            palette = predictor.palette
            palette = class_colours(len(predictor.classes)) if palette is None else palette
            picture = draw_label_map(rgb, labels, predictor.classes, palette)
            save(Image.fromarray(labels), args.out / "labels" / f"{path.stem}.png")
        save(picture, args.out / "pictures" / f"{path.stem}.png")
    if coco["images"]:
        write_whole(args.out / "predictions.json", json.dumps(coco))
    if ranked:
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([("file", "rank", "label", "class", "score"), *ranked])
        write_whole(args.out / "predictions.csv", table.getvalue())
    print(f"{len(paths)} pictures: {args.out / 'pictures'}")


def find_images(paths: list[Path]) -> list[Path]:
    """The images named and those directly in the folders named, in order."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
            if not inside:
                raise InputError(f"{path}: no images in this folder")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{path}: no such image or folder")
    return found


def categories(classes: tuple[str, ...]) -> list[dict]:
    return [dict(id=label + 1, name=name) for label, name in enumerate(classes)]


def annotations(found, masks: np.ndarray | None, image_id: int, first_id: int) -> list[dict]:
    """COCO annotations of one image's instances; category_id is the label plus one."""
    rows = []
    for i, (x1, y1, x2, y2) in enumerate(found.bboxes.tolist()):
        row = dict(
            id=first_id + i,
            image_id=image_id,
            category_id=int(found.labels[i]) + 1,
            bbox=[x1, y1, x2 - x1, y2 - y1],
            area=(x2 - x1) * (y2 - y1),
            score=float(found.scores[i]),
            iscrowd=0,
        )
        if masks is not None:
            code = coco_mask.encode(np.asfortranarray(masks[i].astype(np.uint8)))
            row["segmentation"] = dict(size=code["size"], counts=code["counts"].decode())
            row["area"] = float(coco_mask.area(code))
        rows.append(row)
    return rows


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        picture.save(part, format="PNG")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
