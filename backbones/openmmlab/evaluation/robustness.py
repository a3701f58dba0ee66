"""What corruption costs a model: `robustness.json` of a work dir and its summary."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from backbones.atomic_write import write_atomically
from backbones.errors import InputError

VERSION = 1
FILE = "robustness.json"


class Robustness:
    """Scores by corruption and severity, in a file that is written whole after each.

    Args:
        work_dir: where `robustness.json` is or will be.
        subject: what is measured, text by name, `checkpoint` among it, which is only told. Scores
            of another subject are never mixed in.

    Raises:
        InputError: the file is damaged, or of another subject.
    """

    def __init__(self, work_dir: str | os.PathLike, subject: Mapping[str, str]):
        self.path = Path(work_dir) / FILE
        self.record: dict = dict(version=VERSION, subject=dict(subject), clean=None, corrupted={})
        if found := read_robustness(work_dir):
            known = found["subject"]
            for key in subject:
                if key != "checkpoint" and known.get(key) != subject[key]:
                    raise InputError(
                        f"{self.path}: holds scores of {known.get('checkpoint')}, measured with "
                        f"{key} {known.get(key)}, not {subject[key]}; move it away or take "
                        "another --work-dir"
                    )
            self.record = found

    def scores(self, corruption: str | None, severity: int) -> dict | None:
        """All figures of an evaluation that is done; None where it is not. No corruption: clean."""
        if corruption is None:
            return self.record["clean"]
        return self.record["corrupted"].get(corruption, {}).get(str(severity))

    def add(
        self, corruption: str | None, severity: int, metrics: Mapping[str, float], write: bool
    ) -> None:
        """Keep the figures of an evaluation.

        Args:
            corruption, severity: None and 0 for clean images.
            metrics: of mmengine's evaluator; COCO's -1, no such object, becomes None.
            write: whether this process writes the file.
        """
        figures = {name: _known(float(value)) for name, value in metrics.items()}
        if corruption is None:
            self.record["clean"] = figures
        else:
            self.record["corrupted"].setdefault(corruption, {})[str(severity)] = figures
        self.record["summary"] = summary(self.record)
        if write:
            write_atomically(self.path, json.dumps(self.record, indent=1, allow_nan=False))


def read_robustness(work_dir: str | os.PathLike) -> dict:
    """What `robustness.json` of a work dir holds; empty where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(work_dir) / FILE
    try:
        found = json.loads(path.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']}, not {VERSION}")
        for scores in (found["clean"] or {}, *found["corrupted"].values()):
            scores.items()
        found["subject"].items()
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); move it away to measure anew") from None


def summary(record: Mapping) -> dict[str, dict[str, float | None]]:
    """For each metric its clean score, mPC and rPC (arXiv:1907.07484, section 3.3).

    mPC is the mean over corruptions of the mean over severities, rPC its share of the clean score.
    Both are None until every corruption that was begun has been measured at the same severities.
    """
    corrupted = list(record["corrupted"].values())
    whole = bool(corrupted) and all(row.keys() == corrupted[0].keys() for row in corrupted)
    result = {}
    for name, clean in (record["clean"] or {}).items():
        cells = [scores.get(name) for row in corrupted for scores in row.values()]
        mean = sum(cells) / len(cells) if whole and None not in cells else None
        share = mean / clean if mean is not None and clean else None
        result[name] = dict(clean=clean, mPC=mean, rPC=share)
    return result


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, the first 16 digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if tensor.numel():
            rows = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(rows.numpy())
    return digest.hexdigest()[:16]


def _known(value: float) -> float | None:
    return value if math.isfinite(value) and value >= 0 else None
