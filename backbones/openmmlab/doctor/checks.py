"""Check a run's config against its data and this machine.

`check_data` is what every run begins with; it raises the first error. `check_quickly` opens no data
file, `check_all` opens as much as the run would, and both return all that they find.
"""

from collections.abc import Callable, Iterator, Sequence

from mmengine.config import Config
from mmengine.logging import print_log

from backbones.errors import InputError
from backbones.openmmlab.config.machine import is_first_rank
from backbones.openmmlab.data.issues import Issue, by_severity

from . import bands, classes, files, recipe, remaining, resources, weights
from .operators import check_operators
from .plan import RunPlan
from .stack import check_inference_dtype, check_stack

Check = Callable[[RunPlan], Iterator[Issue]]
OPENED_BEFORE_A_RUN = 200  # images of each dataset, to compare their sizes with the annotations'

BEFORE_A_RUN: tuple[Check, ...] = (
    files.check_splits,
    files.check_files,
    files.check_categories,
    classes.check_class_names,
    classes.check_head_classes,
    bands.check_transforms,
    files.check_annotations,
    remaining.check_remaining,
)
QUICK: tuple[Check, ...] = (
    recipe.check_batch,
    recipe.check_norms,
    recipe.check_windows,
    resources.check_model,
    check_operators,
    resources.check_disk,
)
ALL: tuple[Check, ...] = (
    *QUICK,
    weights.check_weights,
    *BEFORE_A_RUN,
    files.check_label_maps,
    files.check_class_folders,
    files.check_images,
    bands.check_bands,
    resources.check_memory,
)


def check_data(config: Config, splits: Sequence[str]) -> None:
    """Check folders, annotations, class names and every head's class count, before a run.

    Some images of a COCO dataset are opened too. Warnings and notes, such as how many images are
    left out, are logged by the first rank.

    Args:
        config: a validated config; not changed.
        splits: which of train, val and test will be read.

    Raises:
        InputError: the first thing that is missing, cut off or contradicts.
    """
    for issue in _issues(BEFORE_A_RUN, RunPlan.of(config, splits, OPENED_BEFORE_A_RUN)):
        if issue.severity == "error":
            raise issue.as_error()
        if is_first_rank(config):
            print_log(f"{issue.severity}: {issue}", "current")


def check_quickly(config: Config) -> list[Issue]:
    """Return the issues found without opening a data file or running anything, most severe first.

    Args:
        config: a validated config; not changed.
    """
    return by_severity([*_machine(config), *_issues(QUICK, RunPlan.of(config))])


def check_all(config: Config, images: int = 1000, memory: bool = True) -> list[Issue]:
    """Return all issues that can be found before training, most severe first.

    Args:
        config: a validated config; not changed.
        images: image files to open of each dataset, spread evenly over it; 0 for all.
        memory: predict the memory of a training step, which takes longest where images are few.
    """
    checks = [check for check in ALL if memory or check is not resources.check_memory]
    plan = RunPlan.of(config, images=images)
    return by_severity([*_machine(config), *_issues(checks, plan)])


def _machine(config: Config) -> Iterator[Issue]:
    yield from check_stack()
    yield from check_inference_dtype(config)


def _issues(checks: Sequence[Check], plan: RunPlan) -> Iterator[Issue]:
    """Yield the issues of these checks; a check that fails becomes an issue itself."""
    for check in checks:
        try:
            yield from check(plan)
        except InputError as error:
            yield Issue.of(error, "config")
        except Exception as error:  # whatever a config holds, the other checks are made
            reason = next(iter(str(error).splitlines()), "")
            text = f"{check.__name__} failed: {type(error).__name__}: {reason}"
            yield Issue("warning", str(plan.config.filename), text, code="bad-config")
