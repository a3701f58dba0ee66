"""Print the peak memory of a few real training steps in MiB: a GPU's, or the process's increase.

Run by test_doctor in a process of its own: the peak of a process is not to be shared. The steps are
at their worst, as the prediction is: no sample is dropped, and a detector's samplers find all the
regions that they may draw, which with the few boxes of a demo image only a trained RPN would give.
"""

import ctypes
import gc
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.doctor.memory import predict_training
from backbones.openmmlab.training.runner import Runner

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def resident(key: str) -> int:
    """Return the bytes that /proc/self/status gives under a key."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", text)[1]) * 1024


def train(config, batch: dict, steps: int) -> None:
    model = MODELS.build(config.model).train()
    model.init_weights()
    model = model.to(DEVICE)
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    for _ in range(steps):
        model.train_step(batch, wrapper)


def at_its_worst(config) -> None:
    config.model.backbone.drop_path_rate = 0.0
    stages = config.model.get("train_cfg", {}).get("rcnn", [])
    for stage in stages if isinstance(stages, list | tuple) else [stages]:
        stage.assigner.update(pos_iou_thr=0.01, neg_iou_thr=0.01, min_pos_iou=0.01)


def main(path: str, data: str, images: int, side: int, batches: str) -> None:
    config = load_config(path)
    donor = load_config(batches)  # whose data it trains on
    config.train_dataloader.dataset = donor.train_dataloader.dataset
    use_data(config, data)
    config.launcher = "none"
    fit_to_machine(config)
    config.model.backbone.init_cfg = None
    at_its_worst(config)
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[:] = [step for step in pipeline if "Random" not in step["type"]]
    pipeline.insert(2, dict(type="Resize", scale=(side, side), keep_ratio=False))
    if "size" in config.model.data_preprocessor:
        config.model.data_preprocessor.size = (side, side)
    loader = config.train_dataloader
    loader.update(batch_size=images, num_workers=0, persistent_workers=False)
    predicted = predict_training(config, images, (side, side), DEVICE)
    DefaultScope.get_instance("memory", scope_name=config.default_scope)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    # What libraries take at their first use is not the step's.
    train(config, {key: value[:2] for key, value in batch.items()}, 1)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train(config, batch, 4)
        measured = torch.cuda.max_memory_allocated() - before
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        train(config, batch, 4)
        measured = resident("VmHWM") - before
    figures = dict(measured=measured, predicted=predicted.peak, **asdict(predicted))
    print(json.dumps({name: size / 2**20 for name, size in figures.items()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
