#!/usr/bin/env python
"""Measure how many images a DataLoader worker makes in a second, for each recipe.

python -m benchmarks.data_path --quick
python -m benchmarks.data_path --data ../shared/data --out docs/data-path
python -m benchmarks.data_path --data ../shared/data --out docs/data-path --only panoptic

DATA holds `coco_mini` and `ade_mini`, photographs in COCO's and ADE20K's layout; without it, images
of COCO's size are drawn, which are decoded faster than photographs. Panoptic annotations are drawn
in any case. Seconds are the worker's CPU seconds, which other processes on the machine disturb
little. Writes OUT.json and OUT.md; recipes measured before on the same machine, versions and images
stay in them until they are measured again.
"""

import argparse
import json
import re
import tempfile
import warnings
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import DATASETS, FUNCTIONS, DefaultScope
from rich.console import Console
from rich.table import Table

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.data.own_panoptic import is_panoptic
from backbones.openmmlab.data.shapes import prepare_demo

from .data_parts import Timed, decoders, encoders, label_check, per_image, timed_pipeline
from .data_tables import KINDS, markdown
from .drawn_segments import draw_segments
from .results import machine

CONFIGS = Path(__file__).parents[1] / "configs"
QUICK = ("cascade_convnext_t", "upernet_convnext_t", "convnext_t_in1k")
DRAWN = 16  # images of a split, where none are given


def main(argv: Sequence[str] | None = None) -> None:
    first, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="measure three recipes on few images")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="measure the recipes whose name matches"
    )
    parser.add_argument("--data", type=Path, metavar="DATA", help="folder of photographs")
    parser.add_argument("--images", type=int, help="images of a recipe (default: 80, quick: 8)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md (default: print only)")
    args = parser.parse_args(argv)
    images = args.images or (8 if args.quick else 80)
    if images < 1:
        raise InputError(f"--images {images}: must be at least 1", where="--images")
    warnings.simplefilter("ignore")
    cv2.setNumThreads(0)  # as in a worker
    torch.set_num_threads(1)
    console = Console()
    groups = distinct_recipes(args.quick)
    chosen = [names for names in groups if any(re.search(args.only, name) for name in names)]
    if not chosen:
        raise InputError(f"--only {args.only!r}: matches no recipe", where="--only")
    head = dict(machine=machine("cpu"), photographs=args.data is not None, images=images)
    measured = earlier(args.out.with_suffix(".json"), head) if args.out else {}
    with tempfile.TemporaryDirectory() as folder:
        roots = data_roots(args.data, Path(folder), images)
        for names in chosen:
            with console.status(names[0]):
                measured[names[0]] = measure(names, roots, images, Path(folder) / "work_dir")
        photos = sorted((roots["detection"] / "train2017").glob("*.jpg"))[:images]
        report = dict(
            **head,
            recipes=[measured[names[0]] for names in groups if names[0] in measured],
            decoders=decoders(photos),
            encoders=encoders(),
            label_check=label_check(),
        )
    show(report, console)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
        write_atomically(args.out.with_suffix(".md"), markdown(report))


def earlier(path: Path, head: dict) -> dict[str, dict]:
    """Return the recipes of an earlier report of the same machine, versions and images."""
    if not path.exists():
        return {}
    report = json.loads(path.read_text())
    if any(report[key] != value for key, value in head.items()):
        return {}
    return {row["recipe"]: row for row in report["recipes"]}


def data_roots(data: Path | None, folder: Path, images: int) -> dict[str, Path]:
    """Return a folder of data for each task, and of photographs with things and stuff.

    Raises:
        InputError: a given folder lacks one.
    """
    if data is None:
        prepare_demo(folder, 640, DRAWN, 1, seed=0)
        roots: dict[str, Path] = dict.fromkeys(
            ("detection", "segmentation", "panoptic"), folder / "demo"
        )
    else:
        roots = {"detection": data / "coco_mini", "segmentation": data / "ade_mini"}
        for root in roots.values():
            if not root.is_dir():
                raise InputError(f"{root}: no such folder", code="not-found", where=root)
        roots["panoptic"] = folder / "panoptic"
        draw_segments(roots["detection"], roots["panoptic"], images)
    classes = folder / "classes" / "train" / "photographs"
    classes.mkdir(parents=True)
    for path in (roots["detection"] / "train2017").glob("*.jpg"):
        (classes / path.name).symlink_to(path.resolve())
    return {**roots, "classification": folder / "classes"}


def distinct_recipes(quick: bool) -> list[list[str]]:
    """Return the names of configs, together those that read training data in the same way."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONFIGS.glob("[!_]*/*.py")):
        if "demo" in path.stem or quick and path.stem not in QUICK:
            continue
        config = load_config(path)
        loader = config.train_dataloader
        dataset = loader.dataset
        read = (dataset.type, dataset.get("pipeline"), dataset.get("dataset"), loader.batch_size)
        groups.setdefault(repr(read), []).append(path.stem)

    # The tables name one recipe of each group: ConvNeXt-T's, if it is there.
    def order(name: str) -> tuple:
        return "convnext_t" not in name, len(name), name

    return [sorted(names, key=order) for names in groups.values()]


def measure(
    names: list[str], roots: dict[str, Path], images: int, work_dir: Path
) -> dict[str, Any]:
    """Return the CPU milliseconds of an image: all of a worker's work, and each transform's."""
    (path,) = CONFIGS.glob(f"*/{names[0]}.py")
    task = path.parent.name
    config = load_config(path)
    if task == "classification":
        dataset = config.train_dataloader.dataset
        dataset.update(data_root=str(roots[task]), split="train", classes=None)
    else:
        kind = "panoptic" if is_panoptic(config, ("train",)) else task
        use_data(config, roots[kind], work_dir)
    loader = config.train_dataloader
    with DefaultScope.overwrite_default_scope(config.default_scope):
        data = DATASETS.build(loader.dataset)
        collate = loader.get("collate_fn") or dict(type="pseudo_collate")
        collate = FUNCTIONS.get(collate["type"])
    assert collate is not None
    parts = timed_pipeline(data)
    batch = min(loader.batch_size, images)

    def work(start: int) -> None:
        samples = []
        for index in range(start, start + batch):
            np.random.seed(index)
            samples.append(data[index % len(data)])
        # A worker puts a batch into memory that it shares with the process that trains.
        ForkingPickler.dumps(collate(samples))

    work(0)  # imports, caches
    for part in parts:
        part.seconds = 0.0
    starts = range(0, images - batch + 1, batch)
    milliseconds = per_image(lambda: [work(start) for start in starts], len(starts) * batch)
    return dict(
        recipe=names[0],
        others=names[1:],
        task=task,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        ms=milliseconds,
        images_per_s=1e3 / milliseconds,
        parts={part.name: 1e3 * part.seconds / (len(starts) * batch) for part in merged(parts)},
    )


def merged(parts: list[Timed]) -> list[Timed]:
    """Return the times of transforms of one name together."""
    by_name: dict[str, Timed] = {}
    for part in parts:
        if part.name in by_name:
            by_name[part.name].seconds += part.seconds
        else:
            by_name[part.name] = part
    return list(by_name.values())


def show(report: dict, console: Console) -> None:
    table = Table(title="images/s of a worker", title_justify="left")
    for column in ("recipe", "ms", "images/s", "of them decoding"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for row in report["recipes"]:
        decoding = sum(ms for name, ms in row["parts"].items() if KINDS.get(name) == "decoding")
        ms = (f"{row['ms']:.1f}", f"{row['images_per_s']:.0f}", f"{decoding:.1f}")
        table.add_row(row["recipe"], *ms)
    for kind in ("decoders", "encoders"):
        for name, row in report[kind].items():
            table.add_row(f"{kind[:-1]}: {name}", f"{row['ms']:.2f}", "", "")
    console.print(table)


if __name__ == "__main__":
    with reported_in_one_line():
        main()
