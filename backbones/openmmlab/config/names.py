"""Find the suite's configs by name, and describe them without building a model."""

import ast
import json
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from backbones.errors import InputError
from backbones.shipped import CONFIGS
from backbones.weights import TrainedModel, find_trained, licence_of

# Parameters and initial weights of each config, written by `tools/configs.py --write-index`.
INDEX = "index.json"


@dataclass(frozen=True)
class Listed:
    """Describe a config as `convnext configs` lists it.

    Attributes:
        name: the file's name without its suffix.
        task: its folder: detection, segmentation or classification.
        claim: first line of the config's docstring, which ends in the published scores, if any.
        parameters: number of parameters of the whole model.
        weights: source of the backbone's initial weights; None for training from scratch.
        licence: licence of these weights; None if it is unknown or there are none.
    """

    name: str
    task: str
    claim: str
    parameters: int
    weights: str | None
    licence: str | None

    @property
    def score(self) -> str:
        """Return the published scores, or an empty string."""
        found = re.search(r"Published: (.+)\.$", self.claim)
        return found[1] if found else ""


def config_files() -> dict[str, Path]:
    """Return the suite's configs by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("[!_]*/*.py"))}


def find_config(given: str | os.PathLike) -> Path:
    """Return the file of a config.

    Args:
        given: a path; the name of a config of the suite, such as `cascade_convnext_t`; the name of
            a published model, such as `cascade_convnext_t.openmmlab`; or a path below `configs/`,
            a folder that an installed suite has inside its package.

    Raises:
        InputError: there is no such file or name; the message suggests the nearest ones.
    """
    path = Path(given)
    if path.is_file():
        return path
    files = config_files()
    if trained := find_trained(str(given)):
        return files[trained.config]
    if path.parent == Path():
        if found := files.get(path.stem if path.suffix == ".py" else path.name):
            return found
    elif path.parts[0] == CONFIGS.name and (shipped := CONFIGS.parent / path).is_file():
        return shipped
    beside = path.parent if path.parent.is_dir() else Path()
    near = [str(beside / name) for name in _close(path.name, [p.name for p in beside.glob("*.py")])]
    hint = f"; did you mean {' or '.join([*near, *_close(path.stem, [*files])][:3])}?"
    hint = hint if len(hint) > len("; did you mean ?") else ""
    if path.parent == Path() and path.suffix != ".py":
        raise InputError(
            f"{path}: no config of this name{hint or ' (convnext configs lists them)'}",
            code="unknown-name",
            where=path,
        )
    raise InputError(f"{path}: no such config file{hint}", code="not-found", where=path)


def published_model(given: str | os.PathLike) -> TrainedModel:
    """Return the trained model that was published for a config.

    Args:
        given: as for `find_config`; a name with its publisher chooses one of several models.

    Raises:
        InputError: there is no such config, or no model is published for it.
    """
    path = find_config(given)
    ours = path.resolve() == config_files().get(path.stem, Path()).resolve()
    if trained := find_trained(str(given)) or (find_trained(path.stem) if ours else None):
        return trained
    raise InputError(
        f"{given}: no trained model is published for this config; give a checkpoint (convnext zoo "
        "--trained lists the published models)",
        code="not-found",
        where=given,
    )


def listed_configs() -> list[Listed]:
    """Return the description of every config of the suite, by task and name."""
    index = json.loads((CONFIGS / INDEX).read_text())
    found = []
    for path in config_files().values():
        known = index[path.stem]
        claim = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        weights = known["weights"]
        licence = licence_of(weights) if weights else None
        task = path.parent.name
        found.append(Listed(path.stem, task, claim, known["parameters"], weights, licence))
    return sorted(found, key=lambda listed: (listed.task, listed.name))


def _close(name: str, names: list[str]) -> list[str]:
    return get_close_matches(name, names, n=3)
