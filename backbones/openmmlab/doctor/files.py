"""Check the files of datasets: folders, annotations, label maps and images."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from backbones.openmmlab.data.files import one_line
from backbones.openmmlab.data.image_files import check_images as check_headers
from backbones.openmmlab.data.image_files import check_left_out, read_headers
from backbones.openmmlab.data.issues import Issue, first_of, with_code
from backbones.openmmlab.data.label_maps import LabelMaps
from backbones.openmmlab.walk import nodes, type_name

from .dataset import DatasetPlan
from .plan import RunPlan


def check_splits(plan: RunPlan) -> Iterator[Issue]:
    """Check that a requested test set exists, and the files that evaluators read."""
    if plan.splits == ("test",) and plan.config.get("test_dataloader") is None:
        text = f"{plan.config.filename} has no test_dataloader"
        yield Issue("error", "test_dataloader", text, code="bad-config")
    own = {dataset.annotation_file for dataset in plan.datasets}
    for split in plan.splits:
        for evaluator in plan.evaluators(split) if split != "train" else ():
            name = evaluator.get("ann_file")
            if isinstance(name, str) and Path(name) not in own and not Path(name).exists():
                text = f"{split}_evaluator.ann_file: no such annotation file"
                yield Issue("error", name, text, code="not-found")


def check_files(plan: RunPlan) -> Iterator[Issue]:
    """Check that the files of every dataset are there and can be read."""
    for dataset in plan.datasets:
        yield from dataset.file_issues
        if dataset.file_issues:
            continue
        if dataset.is_remote:
            text = "is read through a file backend: its files are not checked"
            yield Issue("note", dataset.key, text, code="unsupported")
        elif dataset.kind in ("video", "other"):
            name = type_name(dataset.settings)
            text = f"only folders and annotation file of a {name} are checked, not their contents"
            yield Issue("note", dataset.key, text, code="unsupported")


def check_categories(plan: RunPlan) -> Iterator[Issue]:
    """Check that the categories of COCO files are the classes of the config."""
    for dataset in plan.datasets:
        if dataset.kind != "coco" or not dataset.is_readable or dataset.classes is None:
            continue
        classes, path = dataset.classes, one_line(dataset.coco.path)
        names = [category["name"] for category in dataset.coco.categories]
        unknown = [one_line(name) for name in names if name not in classes]
        lacking = [one_line(name) for name in classes if name not in names]
        if lacking:
            other = f" but has {first_of(unknown)}" if unknown else ""
            yield Issue(
                "error", path,
                f"{len(names)} categories against {len(classes)} classes: it lacks "
                f"{first_of(lacking)} of the config's classes{other}",
                "set metainfo.classes and every num_classes", "class-mismatch",
            )  # fmt: skip
        elif unknown:
            # A detector of a few of a file's categories is common: mmdet leaves the others out.
            ids = {row["id"] for row in dataset.coco.categories if row["name"] not in classes}
            count = sum(row["category_id"] in ids for row in dataset.coco.annotations)
            yield Issue(
                "warning" if count else "note", path,
                f"{len(names)} categories against {len(classes)} classes: {count} objects of "
                f"{first_of(unknown)} are ignored",
                "unless intended, set metainfo.classes and every num_classes", "class-mismatch",
            )  # fmt: skip


def check_annotations(plan: RunPlan) -> Iterator[Issue]:
    """Check the rows of COCO files, and that their images are readable and of the stated size."""
    for dataset in plan.datasets:
        if dataset.kind != "coco" or not dataset.is_readable or dataset.classes is None:
            continue
        steps = (step for _, step in nodes(dataset.pipeline))
        scorers = (each for split in dataset.splits for each in plan.evaluators(split))
        with_mask = dataset.trained_on and any(step.get("with_mask") for step in steps)
        with_mask |= any("segm" in (scorer.get("metric") or ()) for scorer in scorers)
        folder = dataset.folders.get("img", dataset.root)
        yield from with_code(dataset.coco.check(with_mask), "bad-annotations")
        yield from _unreadable(plan, dataset, dataset.headers_and_issues[1])
        yield from with_code(dataset.coco.check_sizes(folder, dataset.headers), "bad-annotations")


def _unreadable(plan: RunPlan, dataset: DatasetPlan, issues: Iterable[Issue]) -> Iterator[Issue]:
    """Yield the issues of images that cannot be read, which a run may be told to skip."""
    skipped = plan.skips_bad_images and dataset.splits == ("train",)
    for issue in with_code(issues, "bad-image"):
        yield replace(issue, severity="warning") if skipped else issue


def check_label_maps(plan: RunPlan) -> Iterator[Issue]:
    """Check the labels in label maps."""
    for dataset in plan.datasets:
        if dataset.kind != "label maps" or not dataset.is_readable or dataset.classes is None:
            continue
        reduces = bool(getattr(dataset.built, "reduce_zero_label", False))
        yield from _loads_alike(dataset, reduces)
        pairs = [pair for pair in dataset.sampled_pairs if pair[1] != Path()]
        complete = len(pairs) == len(dataset.pairs)
        maps = LabelMaps(pairs, dataset.classes, reduces, dataset.key, complete)
        yield from with_code(maps.check(dataset.headers, dataset.trained_on), "bad-labels")


def _loads_alike(dataset: DatasetPlan, reduces: bool) -> Iterator[Issue]:
    for number, step in enumerate(dataset.settings.get("pipeline") or ()):
        asked = step.get("reduce_zero_label")
        if type_name(step) == "LoadAnnotations" and asked is not None and asked != reduces:
            yield Issue(
                "error", f"{dataset.key}.pipeline.{number}.reduce_zero_label",
                f"{asked}, but the dataset's is {reduces}",
                "make them equal; mmseg fails at the first image otherwise", "bad-config",
            )  # fmt: skip


def check_class_folders(plan: RunPlan) -> Iterator[Issue]:
    """Report files in folders of classes that are not read."""
    for dataset in plan.datasets:
        if dataset.kind == "class folders" and dataset.is_readable:
            built = dataset.built
            left_out = check_left_out(Path(built.root), dataset.images, built.suffixes)
            yield from with_code(left_out, "bad-image")


def check_images(plan: RunPlan) -> Iterator[Issue]:
    """Open images and check that they are complete and suit the recipe in kind and size."""
    for dataset in plan.datasets:
        if not dataset.is_readable:
            continue
        headers, issues = dataset.headers_and_issues
        if dataset.kind != "coco":
            yield from _unreadable(plan, dataset, issues)
        elif len(dataset.images) > len(dataset.sampled_images):
            # Opening is what takes long; whether a file is there can be asked of all.
            opened = set(dataset.sampled_images)
            rest = [path for path in dataset.images if path not in opened and not path.is_file()]
            yield from _unreadable(plan, dataset, read_headers(rest)[1])
        yield from with_code(check_headers(headers, dataset.key, dataset.scales), "bad-image")
        if dataset.limit and len(dataset.images) > dataset.limit:
            yield Issue(
                "note", dataset.key,
                f"{dataset.limit} of {len(dataset.images)} images opened, evenly spread",
                "--images 0 opens all", "bad-image",
            )  # fmt: skip
