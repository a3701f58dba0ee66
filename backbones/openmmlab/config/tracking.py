"""Send a run's figures to TensorBoard, Weights & Biases or MLflow, through mmengine's backends."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from backbones.errors import InputError

# The mmengine backend of each tracker, and the package that it imports.
TRACKERS = {
    "tensorboard": ("TensorboardVisBackend", "tensorboard"),
    "wandb": ("WandbVisBackend", "wandb"),
    "mlflow": ("MLflowVisBackend", "mlflow"),
}


def track(config: Config, trackers: Sequence[str]) -> None:
    """Make a config's visualizer write to these trackers too.

    Args:
        config: config of the run; its name becomes the run's.
        trackers: names of `TRACKERS`.

    Raises:
        InputError: the package of a tracker is not installed.
    """
    for tracker in trackers:
        backend, package = TRACKERS[tracker]
        if find_spec(package) is None:
            raise InputError(
                f"--track {tracker}: {package} is missing; pip install {package}",
                code="missing-package",
                where=package,
            )
        settings: dict = dict(type=backend)
        name = Path(config.work_dir).name
        if tracker == "wandb":
            settings["init_kwargs"] = dict(project="convnext-dense-prediction", name=name)
        elif tracker == "mlflow":
            settings.update(exp_name="convnext-dense-prediction", run_name=name)
            settings.update(_mlflow_places(Path(config.work_dir).resolve().parent))
        visualizer = config.setdefault("visualizer", dict(type="Visualizer"))
        visualizer["vis_backends"] = [*(visualizer.get("vis_backends") or []), settings]


def _mlflow_places(folder: Path) -> dict[str, str]:
    """Return the server that MLFLOW_TRACKING_URI names, or else a database for a folder's runs.

    mmengine's own default, files in the work dir, is refused by MLflow 3.
    """
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if server:
        return dict(tracking_uri=server)
    return dict(
        tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
        artifact_location=(folder / "mlflow").as_uri(),
    )
