"""Set a model and its exported files side by side: outputs, scores, speed and memory."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from math import inf, isnan
from pathlib import Path

import torch
from mmengine.config import Config
from rich.table import Table

from backbones.errors import InputError
from backbones.openmmlab.export.agreement import Agreement, Images, compare
from backbones.openmmlab.export.exporting import TOLERANCES
from backbones.openmmlab.prediction.exported import ExportedModel
from backbones.openmmlab.prediction.predictor import Predictor
from backbones.openmmlab.processor import processor_flags, processor_name
from backbones.openmmlab.tasks import Task, task_of
from backbones.weights import trusted

from .timing import TimedModel, Timing, time_in_turns

TIMED = 4  # images of a round
# Instructions that decide how fast a runtime is: x86's, then ARM's.
FLAGS = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "sve", "bf16"),
)
LIBRARIES = {".onnx": "onnxruntime", ".xml": "openvino", ".pt2": "torch"}


@dataclass
class Row:
    """Hold what is known of a model or of one of its files.

    Attributes:
        name: "model", or the file's name.
        runtime: what runs it, with its version.
        precision: as the file says.
        size_mib: size of its files on the disk; None for the model.
        agreement: how far its outputs are from the model's; None for the model.
        scores: the task's main metrics on the compared images.
        timing: its speed and memory.
    """

    name: str
    runtime: str
    precision: str
    size_mib: float | None
    agreement: Agreement | None
    scores: dict[str, float]
    timing: Timing

    def as_json(self, first: "Row") -> dict:
        """Return the figures as plain data.

        Args:
            first: the row that the ratio is taken to.
        """
        low, median, high = self.timing.quartiles()
        agreement = None
        if self.agreement is not None:
            agreement = self.agreement.as_json()
            del agreement["scores"], agreement["images"]
        return dict(
            name=self.name,
            runtime=self.runtime,
            precision=self.precision,
            size_mib=self.size_mib,
            seconds=self.timing.seconds,
            median_ms=median * 1e3,
            quartiles_ms=[low * 1e3, high * 1e3],
            ratio=median / first.timing.quartiles()[1],
            peak_memory_mib=None if isnan(self.timing.memory_mib) else self.timing.memory_mib,
            scores=self.scores,
            agreement=agreement,
        )


def compare_files(
    config: Config,
    checkpoint: str,
    files: Sequence[Path],
    *,
    images: int = 32,
    rounds: int = 10,
    threads: int | None = None,
    tolerance: float | None = None,
    trust: bool = False,
) -> tuple[list[Row], dict]:
    """Compare a model's files with it on images of its test set, and then time all of them.

    The model computes in float32 what its files do: a segmentor sees the whole image at once.

    Args:
        config: prepared config of the model.
        checkpoint: its weights.
        files: what `convnext export` or `convnext quantize` wrote of it.
        images: number of test images that outputs and scores are compared on.
        rounds: number of timed rounds.
        threads: threads of each runtime; None takes PyTorch's number.
        tolerance: largest relative difference of a file; by default that of its precision, and
            none for an INT8 file, whose scores tell.
        trust: whether the checkpoint may run code.

    Returns:
        The model's row and one for each file, and a report of them as plain data.

    Raises:
        InputError: a file is not of this model, is broken, or its outputs are beyond the
            tolerance; nothing has been timed then.
    """
    for name, number in (("--images", images), ("--rounds", rounds), ("--threads", threads or 1)):
        if number < 1:
            raise InputError(f"{name} {number}: give at least 1", where=name)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    whole_image(config)
    config.pop("inference_dtype", None)
    with trusted() if trust else nullcontext():
        opened = [ExportedModel(file) for file in files]
        predictor = Predictor(config, checkpoint, device="cpu")
    chosen = Images(config, images)
    agreements = _check(predictor, chosen, files, opened, tolerance)
    scores = next(iter(agreements.values())).scores
    precisions = [file.precision for file in opened]
    del opened, predictor  # their memory is needed
    paths = timed_images(chosen)
    timed = [TimedModel("model", config, checkpoint, trust)]
    timed += [TimedModel(str(file), file, trust=trust) for file in files]
    timings = time_in_turns(timed, paths, rounds, threads)
    model_scores = {name: model for name, (model, _) in scores.items()}
    runtime = f"PyTorch {torch.__version__}"
    rows = [Row("model", runtime, "fp32", None, None, model_scores, timings[0])]
    for path, precision, timing in zip(files, precisions, timings[1:], strict=True):
        agreement = agreements[path]
        own = {name: file for name, (_, file) in agreement.scores.items()}
        library = LIBRARIES[path.suffix]
        runtime = f"{library} {version(library)}"
        rows.append(Row(path.name, runtime, precision, size_of(path), agreement, own, timing))
    report = dict(
        machine=machine(threads),
        config=str(config.filename),
        checkpoint=str(checkpoint),
        images=len(chosen.indices),
        timed_images=len(paths),
        rounds=rounds,
        models=[row.as_json(rows[0]) for row in rows],
    )
    return rows, report


def whole_image(config: Config) -> None:
    """Let a segmentor see the whole image at once, as its exported files do."""
    test_cfg = config.model.get("test_cfg") or {}
    if test_cfg.get("mode") == "slide":
        config.model.test_cfg = dict(mode="whole")


def timed_images(images: Images) -> list[str]:
    """Return the paths of the images to time on, spread evenly over those that are compared."""
    step = max(1, len(images.indices) // TIMED)
    chosen = images.indices[::step][:TIMED]
    return [images.dataset.get_data_info(i)["img_path"] for i in chosen]


def size_of(path: Path) -> float:
    """Return the size in MiB of an exported file with its weights, which may lie beside it."""
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else [Path(f"{path}.data")]
    return sum(file.stat().st_size for file in (path, *beside) if file.is_file()) / 2**20


def scores_of(predictor: Predictor, images: Images) -> dict[str, float]:
    """Return the task's main metrics of a model or a file on these images."""
    return images.evaluate([predictor.test_step(batch)[0] for batch in images])


def figures_of_file(config: Config, path: Path, trust: bool = False) -> dict[str, float]:
    """Return all figures of an exported file on the config's test set.

    Args:
        config: prepared config whose data the file is tested on.
        path: what `convnext export` or `convnext quantize` wrote.
        trust: whether the file may hold machine code.

    Raises:
        InputError: the file is broken, or of other classes than the data set.
    """
    with trusted() if trust else nullcontext():
        predictor = Predictor(path, device="cpu")
    images = Images(config, None)
    check_classes(predictor, images, path)
    return images.figures([predictor.test_step(batch)[0] for batch in images])


def check_classes(predictor: Predictor, images: Images, path: Path) -> None:
    """Check that an exported file has the classes of the test set.

    Raises:
        InputError: it has others.
    """
    classes = tuple(images.dataset.metainfo["classes"])
    if predictor.classes != classes:
        raise InputError(
            f"{path}: has {len(predictor.classes)} classes ({', '.join(predictor.classes[:3])}), "
            f"the data set {len(classes)} ({', '.join(classes[:3])})",
            code="class-mismatch",
            where=path,
        )


def largest_drop(task: Task, exact: Mapping[str, float], scores: Mapping[str, float]) -> float:
    """Return the largest loss of a metric on a scale of 1; infinite where a score is NaN."""
    drops = []
    for name, value in exact.items():
        metric = task.metric(name)
        drop = (value - scores[name]) / (metric.best if metric else 1.0)
        drops.append(drop if drop == drop else inf)
    return max(drops)


def machine(threads: int) -> dict:
    """Describe this machine and the versions of what runs on it."""
    return dict(
        processor=processor_name(),
        flags=processor_flags(FLAGS),
        threads=threads,
        system=platform.platform(),
        python=platform.python_version(),
    )


def table(rows: Sequence[Row], task: Task) -> Table:
    """Return the rows as a table for a terminal."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    metrics = [metric for metric in task.main_metrics if metric.key in rows[0].scores]
    columns = ["ms per image", "quartiles", "ratio", "memory", "size", *(m.name for m in metrics)]
    for column in ("", "runtime", "", *columns):
        made.add_column(column, justify="right" if column in columns else "left", no_wrap=True)
    first = rows[0].timing.quartiles()[1]
    for row in rows:
        low, median, high = (1e3 * value for value in row.timing.quartiles())
        made.add_row(
            row.name,
            row.runtime,
            row.precision,
            f"{median:.1f}",
            f"{low:.1f} to {high:.1f}",
            f"{median / 1e3 / first:.2f}",
            "unknown" if isnan(row.timing.memory_mib) else f"{row.timing.memory_mib:.0f} MiB",
            "" if row.size_mib is None else f"{row.size_mib:.1f} MiB",
            *(f"{row.scores[metric.key]:.4g}" for metric in metrics),
        )
    return made


def _check(
    predictor: Predictor,
    images: Images,
    files: Sequence[Path],
    opened: Sequence[ExportedModel],
    tolerance: float | None,
) -> dict[Path, Agreement]:
    """Compare every file with the model; raise for the first that does not agree."""
    export = task_of(predictor.config).export
    for path, file in zip(files, opened, strict=True):
        if export is None or (file.task, file.classes) != (predictor.task, predictor.classes):
            raise InputError(
                f"{path}: is of another model: {file.task} with {_listed(file.classes)}, the "
                f"config's is {predictor.task} with {_listed(predictor.classes)}",
                code="class-mismatch",
                where=path,
            )
    assert export is not None  # or no file could have been opened
    agreements = {}
    for logits in (False, True):
        group = [
            (path, file)
            for path, file in zip(files, opened, strict=True)
            if (file.outputs == ("logits",)) == logits
        ]
        if group:
            comparison = export.comparison(predictor.model, logits)
            found = compare(comparison, images, [file.run for _, file in group])
            agreements |= dict(zip((path for path, _ in group), found, strict=True))
    for path, file in zip(files, opened, strict=True):
        largest = TOLERANCES.get(file.precision, float("inf")) if tolerance is None else tolerance
        if problem := agreements[path].problem(largest):
            raise InputError(
                f"{path}: nothing was timed: {problem} (--tolerance {largest:g}, "
                f"{len(images.indices)} images)",
                code="unsupported",
                where=path,
            )
    return agreements


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' * (len(classes) > 3)})"


def difference_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one line for each file: how far its outputs are from the model's."""
    for row in rows:
        if row.agreement is not None:
            found = [f"{name} {value:.2g}" for name, value in row.agreement.differences.items()]
            if row.agreement.detections:
                found.append(f"{row.agreement.unpaired} of {row.agreement.detections} detections")
            yield f"{row.name}: differs from the model by {', '.join(found)}"
