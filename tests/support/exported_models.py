"""Build narrow detectors, segmentors and classifiers that are exported, trained or not."""

import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, DefaultScope
from support.oracles import randomise
from torch import nn

from backbones.openmmlab.config import load_config
from backbones.openmmlab.config.machine import fit_to_machine
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.export.exporting import export
from backbones.openmmlab.export.files import TARGETS

# A user exports without it; `pip install .[test]` has it.
needs_nncf = pytest.mark.skipif(
    find_spec("nncf") is None, reason="NNCF is not installed (the extra `int8`)"
)
NARROW = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))


def narrow_config(base: Path, folder: Path) -> Path:
    """A config file of the same model, a hundredth of the size, V2's blocks."""
    heads = "neck=dict(in_channels=[8, 16, 24, 32])"
    if base.parent.name == "segmentation":
        heads = (
            "decode_head=dict(in_channels=[8, 16, 24, 32], channels=16),"
            "auxiliary_head=dict(in_channels=24, channels=8)"
        )
    if base.parent.name == "classification":
        network = f"arch=dict({NARROW!r}, _delete_=True), layer_scale_init_value=None"
        path = folder / f"narrow_{base.stem}.py"
        path.write_text(
            f"_base_ = {str(base)!r}\nmodel = dict(network=dict(use_grn=True, {network}))\n"
        )
        return path
    backbone = f"backbone=dict(use_grn=True, arch=dict({NARROW!r}, _delete_=True))"
    path = folder / f"narrow_{base.stem}.py"
    path.write_text(f"_base_ = {str(base)!r}\nmodel = dict({backbone}, {heads})\n")
    return path


@torch.no_grad()
def build(path: Path, **changes: object) -> nn.Module:
    """The config's model with random weights that all matter."""
    config = load_config(path, {"model.backbone.init_cfg": None, **changes})
    config.launcher = "none"
    fit_to_machine(config)
    scope = config.default_scope
    DefaultScope.get_instance(f"export-{time.time_ns()}", scope_name=scope)
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    randomise(model)
    for name, module in model.named_modules():
        if type(module).__name__ in ("Conv2d", "Linear") and "dwconv" not in name:
            # Activations of one size throughout: huge logits would show rounding alone.
            module.weight *= (2 / module.weight[0].numel()) ** 0.5 / 0.1
        if name.endswith(("rpn_cls", "rpn_reg", "fc_reg")):
            module.weight *= 0.1  # else every box is clipped to nothing
            module.bias *= 0.1
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval().requires_grad_(False)


def batch_of(model: nn.Module, height: int, width: int, scope: str) -> dict:
    """One image as a test loader gives it."""
    if scope == "mmdet":
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    size = (height, width)
    sample = Sample(metainfo=dict(ori_shape=size, img_shape=size, scale_factor=(1.0, 1.0)))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return dict(inputs=[image], data_samples=[sample])


def image_of(batch: dict) -> torch.Tensor:
    return batch["inputs"][0][None].float()


def overfitted(config_path: Path, data: Path, steps: int) -> tuple[Path, Path]:
    """A config and a checkpoint trained on its own test images: its scores are not zero."""
    config = load_config(config_path)
    config.launcher = "none"
    fit_to_machine(config)
    use_data(config, data, config_path.parent)
    scope = config.default_scope
    DefaultScope.get_instance(f"export-{time.time_ns()}", scope_name=scope)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    collate = config.test_dataloader.get("collate_fn", dict(type="pseudo_collate"))
    batch = FUNCTIONS.get(collate["type"])([dataset[i] for i in range(len(dataset))])
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    model.train()
    optim = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    for _ in range(steps):
        model.train_step(batch, optim)
    path = config_path.with_suffix(".pth")
    torch.save({"state_dict": model.state_dict()}, path)
    return config_path, path


def exported(
    config_path: Path, checkpoint: Path, data: Path, folder: Path, target: str, **options: bool
) -> Path:
    """Export a model as `convnext export` does, compared on one image."""
    config = load_config(config_path)
    config.launcher = "none"
    use_data(config, data, folder, checkpoint)
    out = folder / f"{config_path.stem}{TARGETS[target].suffix}"
    export(config, str(checkpoint), out, target, images=1, **options)
    return out
