"""Define a model, data set and metric of a few numbers, to test what the runner does."""

from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.utils.data import DataLoader, Dataset

built: list[str] = []  # names of the data sets that were made


@MODELS.register_module()
class SmallModel(BaseModel):
    """Compute two layers and a batch norm, and the loss of pulling their outputs to the labels."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)
        self.dtypes: list[torch.dtype] = []

    def forward(self, inputs, data_samples, mode="tensor"):
        inputs, labels = (torch.stack(list(each)) for each in (inputs, data_samples))
        outputs = self.second(self.norm(self.first(inputs)))
        self.dtypes.append(outputs.dtype)
        if mode == "loss":
            return dict(loss=(outputs - labels).square().mean())
        return list(outputs)


@MODELS.register_module()
class TwoOptimizers(SmallModel):
    """Give each layer an optimizer and a loss of its own."""

    def train_step(self, data, optim_wrapper):
        inputs = torch.stack(list(data["inputs"]))
        loss = self.first(inputs).square().mean()
        optim_wrapper["first"].update_params(loss)
        loss = self.second(self.first(inputs).detach()).square().mean()
        optim_wrapper["second"].update_params(loss)
        return dict(loss=loss)


@DATASETS.register_module()
class SmallData(Dataset):
    """Provide eight samples with random inputs; some of them are not finite."""

    METAINFO: dict = {}
    metainfo: dict = {}

    def __init__(self, name: str = "", spoilt: tuple[int, ...] = ()):
        built.append(name)
        self.spoilt = spoilt
        self.reads: list[int] = []

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        self.reads.append(index)
        inputs = torch.rand(2) + index
        if index in self.spoilt:
            inputs[0] = float("nan")
        return dict(inputs=inputs, data_samples=torch.ones(1))


@METRICS.register_module()
class SmallMetric(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.append(float(data_samples[0]))

    def compute_metrics(self, results: list) -> dict:
        return dict(mean=sum(results))


def loader(name: str = "", **data) -> dict:
    """Return the config of a loader of four batches of two."""
    return dict(
        dataset=dict(type="SmallData", name=name, **data),
        sampler=dict(type="DefaultSampler", shuffle=False),
        batch_size=2,
        num_workers=0,
    )


def arguments(work_dir: Path, **changed) -> dict[str, Any]:
    """Return the arguments of mmengine's runner or ours for an epoch of `SmallModel`."""
    arguments.count = getattr(arguments, "count", 0) + 1
    given = dict(
        model=dict(type="SmallModel"),
        work_dir=str(work_dir),
        train_dataloader=loader("train"),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        randomness=dict(seed=0),
        log_level="ERROR",
        experiment_name=f"small{arguments.count}",  # mmengine keeps what it makes by these names
    )
    return {**given, **changed}


def validating(**loop) -> dict[str, Any]:
    """Return the arguments of a runner for a validation and a test."""
    return dict(
        val_dataloader=loader("val"),
        val_cfg=dict(loop),
        val_evaluator=dict(type="SmallMetric"),
        test_dataloader=loader("test"),
        test_cfg=dict(),
        test_evaluator=dict(type="SmallMetric"),
    )


def object_loader() -> DataLoader:
    """Return a loader that the caller has built."""
    return DataLoader(SmallData("object"), batch_size=2)
