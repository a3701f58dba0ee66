"""Peak resident memory of a few real training steps, in MiB, above what was there before them.

Run by test_doctor in a process of its own: the peak of a process is not to be shared.
"""

import ctypes
import gc
import json
import re
import sys
from pathlib import Path

from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

from backbones.openmmlab.config import load_config
from backbones.openmmlab.memory import predict_training
from backbones.openmmlab.own_data import use_data
from backbones.openmmlab.runner import Runner, fit_to_machine


def status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", text)[1])


def train(config, batch: dict, steps: int) -> None:
    model = MODELS.build(config.model).train()
    model.init_weights()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    for _ in range(steps):
        model.train_step(batch, wrapper)


def main(path: str, data: str, images: int, side: int, batches: str) -> None:
    config = load_config(path)
    donor = load_config(batches)  # whose data it trains on
    config.train_dataloader.dataset = donor.train_dataloader.dataset
    use_data(config, data)
    config.launcher = "none"
    fit_to_machine(config)
    config.model.backbone.init_cfg = None
    pipeline = config.train_dataloader.dataset.pipeline
    pipeline[:] = [step for step in pipeline if "Random" not in step["type"]]
    pipeline.insert(2, dict(type="Resize", scale=(side, side), keep_ratio=False))
    if "size" in config.model.data_preprocessor:
        config.model.data_preprocessor.size = (side, side)
    loader = config.train_dataloader
    loader.update(batch_size=images, num_workers=0, persistent_workers=False)
    predicted = predict_training(config, images, (side, side), "cpu").peak
    DefaultScope.get_instance("memory", scope_name=config.default_scope)
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    # What libraries take at their first use is not the step's.
    train(config, {key: value[:2] for key, value in batch.items()}, 1)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    train(config, batch, 3)
    print(json.dumps(dict(measured=(status("VmHWM") - before) / 1024, predicted=predicted / 2**20)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
