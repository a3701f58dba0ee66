"""Try ConvNeXt as the backbone of every model family of mmdet's and mmseg's wheels.

python -m benchmarks.compatibility --out docs/compatibility
python -m benchmarks.compatibility --out docs/compatibility --only RetinaNet DINO

Each family is built from its stock config with narrow heads, in a process of its own. It takes a
training step and predicts, first on the branches that mmcv, mmdet and mmseg take on a CPU, then on
those that they take on a GPU. OUT.json holds the outcomes and OUT.md a table of them; a family that
is not run keeps its earlier outcome.
"""

import argparse
import json
import multiprocessing
import re
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from math import isclose
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MessageHub, MMLogger
from torch import Tensor

from backbones.atomic_write import write_atomically
from backbones.errors import InputError, reported_in_one_line

from .families import FAMILIES, Family
from .gpu_branches import gpu_branches
from .narrow_models import build, detection_batch, segmentation_batch

BRANCHES = ("CPU", "GPU")


@dataclass
class Outcome:
    """Hold the result of checking one family.

    Attributes:
        errors: the failed step and its error, for each branch that did not pass.
        operators: mmcv operators that the GPU branch calls.
        untrained: the backbone's parameters that get no gradient.
        seconds: the CPU time of both branches.
    """

    errors: dict[str, str] = field(default_factory=dict)
    operators: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Return whether the family trains and predicts on both branches."""
        return not self.errors


def losses_and_gradients(model: Any, batch: dict) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the losses and the gradients of the parameters of a seeded step, both by name."""
    torch.manual_seed(5)
    model.train()
    model.zero_grad()
    data = model.data_preprocessor(batch, training=True)
    total, losses = model.parse_losses(model(**data, mode="loss"))
    total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: float(value) for name, value in losses.items()}, gradients


def predict(model: Any, batch: dict) -> Any:
    """Return the data sample that a model predicts for a batch of one image."""
    model.eval()
    with torch.no_grad():
        (sample,) = model(**model.data_preprocessor(batch, training=False), mode="predict")
    return sample


def build_family(family: Family) -> Any:
    """Build a family's model with narrow heads."""
    options = dict(wide=family.wide, **family.backbone)
    return build(family.library, family.config, family.changes, **options)


def batch_for(family: Family, model: Any, images: int) -> dict:
    """Return a batch of images of the family's size with the annotations that it trains on."""
    if family.library == "mmseg":
        return segmentation_batch(images, family.size)
    panoptic = any(hasattr(model, part) for part in ("panoptic_head", "semantic_head"))
    return detection_batch(
        images,
        family.size,
        stuff=80 if panoptic else 0,
        masks=family.masks,
        proposals=hasattr(model, "roi_head") and not model.with_rpn,
    )


def check(family: Family) -> Outcome:
    """Build a family's model, train it for a step and predict, on both branches in this process."""
    outcome, start = Outcome(), time.process_time()
    # TOOD reads the epoch, BoxInst the iteration.
    MessageHub.get_current_instance().update_info_dict(dict(epoch=0, iter=1))
    losses: dict[str, dict[str, float]] = {}
    for branch in BRANCHES:
        step = "build"
        with gpu_branches() if branch == "GPU" else nullcontext(Counter()) as calls:
            try:
                # A new model for each branch: some losses keep averages of earlier steps.
                model = build_family(family)
                step = "train"
                losses[branch], gradients = losses_and_gradients(model, batch_for(family, model, 2))
                _assert_trains(losses[branch], losses.get("CPU", losses[branch]), gradients)
                outcome.untrained = [
                    name
                    for name, parameter in model.named_parameters()
                    if name.startswith("backbone.")
                    and parameter.requires_grad
                    and name not in gradients
                ]
                step = "predict"
                _assert_numbers(predict(model, batch_for(family, model, 1)))
            except Exception as error:
                outcome.errors[branch] = f"{step}: {_first_line(error)}"
    names = (re.sub(r"_(forward|backward\w*)$", "", name) for name in calls)
    outcome.operators = sorted(set(names) - {"nms", "softnms", "roi_align"})
    outcome.seconds = round(time.process_time() - start, 1)
    return outcome


def _assert_trains(
    losses: dict[str, float], expected: dict[str, float], gradients: dict[str, Tensor]
) -> None:
    """Check losses against the CPU branch's, and that gradients are finite and not all 0."""
    for name, value in losses.items():
        if not isclose(value, expected[name], rel_tol=1e-3, abs_tol=1e-5):
            raise ValueError(f"{name} is {value:.5g}, on the CPU branch {expected[name]:.5g}")
    for name, gradient in gradients.items():
        if not gradient.isfinite().all():
            raise ValueError(f"the gradient of {name} is not finite")
    if not any(g.any() for n, g in gradients.items() if n.startswith("backbone.")):
        raise ValueError("no gradient reaches the backbone")


def _assert_numbers(sample: Any) -> None:
    """Check that the model predicted something, and that every number is finite."""
    parts = {"pred_instances", "pred_panoptic_seg", "pred_sem_seg"} & set(sample.keys())
    if not parts:
        raise ValueError("nothing was predicted")
    for part in parts:
        for name, value in sample.get(part).items():
            if isinstance(value, Tensor) and not value.float().isfinite().all():
                raise ValueError(f"predicted {name} are not finite")


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()[:40]).partition(" Please ")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_apart(family: Family, limit: float) -> Outcome:
    """Check a family in a process of its own, which is stopped after `limit` seconds."""
    context = multiprocessing.get_context("fork")  # which has everything imported
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_check_and_send, args=(family, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(limit):
            return Outcome(**receiver.recv())
        return Outcome(dict.fromkeys(BRANCHES, f"not done after {limit:g} s"))
    except EOFError:
        process.join()
        return Outcome(dict.fromkeys(BRANCHES, f"ended with status {process.exitcode}"))
    finally:
        process.kill()
        process.join()


def _check_and_send(family: Family, sender: Connection) -> None:
    torch.set_num_threads(1)
    MMLogger.get_current_instance().setLevel("ERROR")
    warnings.simplefilter("ignore")
    sender.send(asdict(check(family)))


def table(outcomes: dict[Family, Outcome]) -> str:
    """Return the page in Markdown: counts, a table of each library, and reasons for failures."""
    works = {family: outcome for family, outcome in outcomes.items() if outcome.passed}
    on_cpu = sum("CPU" not in outcome.errors for outcome in outcomes.values())
    lines = [
        "# ConvNeXt as the backbone of mmdet's and mmseg's models",
        "",
        f"{len(outcomes)} of the {len(FAMILIES)} model families in the wheels of onedl-mmdetection "
        f"{version('onedl-mmdetection')} and onedl-mmsegmentation "
        f"{version('onedl-mmsegmentation')} were tried. {on_cpu} train and predict with "
        f"ConvNeXt on a CPU, and {len(works)} also on the branches that mmcv, mmdet and mmseg take "
        "on a GPU. "
        "`python -m benchmarks.compatibility --out docs/compatibility` writes this page.",
        "",
        "A family works if its stock config with ConvNeXt-Atto and narrow heads builds, takes a "
        "training step with finite losses and gradients, and predicts finite values. The GPU "
        "branches ran on a CPU (`benchmarks/gpu_branches.py`) and gave the losses of the CPU "
        "branches. Nothing here was trained to convergence.",
        "",
        "*Operators* are the mmcv operators that the GPU branch calls besides `nms`, `softnms` and "
        "`roi_align`; all of them run without a compiled mmcv ([operators.md](operators.md)). "
        "*Exceptions* are what the config needs besides `type='ConvNeXt'` and the widths of its "
        "maps.",
    ]
    if left := [family.name for family in FAMILIES if family not in outcomes]:
        lines += ["", f"Not run yet: {'; '.join(left)}."]
    for library in ("mmdet", "mmseg"):
        lines += ["", f"## {library}", ""]
        lines += [
            "| family | CPU | GPU branches | operators | exceptions |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(f, o) for f, o in outcomes.items() if f.library == library]
    lines += ["", "## What does not work", ""]
    lines += ["| family | reason | first error |", "|---|---|---|"]
    for family, outcome in outcomes.items():
        if not outcome.passed:
            error = next(iter(outcome.errors.values())).replace("|", "\\|")
            lines.append(f"| {family.name} | {family.reason or '-'} | `{error}` |")
    return "\n".join(lines) + "\n"


def _row(family: Family, outcome: Outcome) -> str:
    cells = ["no" if branch in outcome.errors else "yes" for branch in BRANCHES]
    operators = ", ".join(f"`{name}`" for name in outcome.operators)
    needed = [f"`{key}={value!r}`" for key, value in family.backbone.items()]
    if family.needs:
        needed.append(f"`pip install {family.needs}`, which mmdet does not declare")
    if outcome.untrained:
        needed.append(f"no gradient for {', '.join(outcome.untrained)}")
    return f"| {family.name} | {' | '.join(cells)} | {operators} | {', '.join(needed)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="path of the table (.md) and the outcomes (.json), without the suffix",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="FAMILY", help="names of the families to run (default: all)"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=600,
        help="seconds after which a family is stopped (default: 600)",
    )
    args = parser.parse_args()
    families = {family.name: family for family in FAMILIES}
    if unknown := set(args.only or ()) - set(families):
        raise InputError(
            f"--only: unknown {', '.join(sorted(unknown))}; the families are {', '.join(families)}",
            code="bad-argument",
            where="--only",
        )
    outcomes = read_outcomes(args.out)
    for name in args.only or families:
        outcomes[name] = outcome = check_apart(families[name], args.limit)
        told = "; ".join(f"{branch}: {error}" for branch, error in outcome.errors.items())
        print(f"{name}: {told or 'passed'} ({outcome.seconds:.1f} s)", flush=True)
        write_outcomes(args.out, outcomes)
        known = {families[name]: outcomes[name] for name in families if name in outcomes}
        write_atomically(args.out.with_suffix(".md"), table(known))


def read_outcomes(out: Path) -> dict[str, Outcome]:
    """Return the outcomes of earlier runs by family, or an empty dict if there is no file."""
    path = out.with_suffix(".json")
    if not path.is_file():
        return {}
    return {name: Outcome(**fields) for name, fields in json.loads(path.read_text()).items()}


def write_outcomes(out: Path, outcomes: dict[str, Outcome]) -> None:
    """Write the outcomes by family to OUT.json."""
    text = json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}, indent=1)
    write_atomically(out.with_suffix(".json"), text + "\n")


if __name__ == "__main__":
    with reported_in_one_line():
        main()
