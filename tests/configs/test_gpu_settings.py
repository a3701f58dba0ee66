"""What the tools set for a GPU in a config and in PyTorch, as far as no GPU is needed to see it."""

import pytest
import torch
from mmengine.config import Config
from support.running import DETECTION, REPOSITORY, SEGMENTATION

from backbones.openmmlab.config import load_config, use_tta
from backbones.openmmlab.config.machine import is_first_rank
from backbones.openmmlab.precision import set_tf32


@pytest.mark.parametrize(
    "launcher, environment, first",
    [
        ("none", {}, True),
        ("none", {"SLURM_PROCID": "3"}, True),  # inside an allocation, started by hand
        ("pytorch", {"RANK": "0"}, True),
        ("pytorch", {"RANK": "2", "SLURM_PROCID": "0"}, False),
        ("slurm", {"SLURM_PROCID": "0"}, True),
        ("slurm", {"SLURM_PROCID": "5"}, False),
        ("mpi", {"OMPI_COMM_WORLD_RANK": "1"}, False),
    ],
)
def test_first_rank_of_each_launcher(launcher, environment, first, monkeypatch):
    for variable in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert is_first_rank(Config(dict(launcher=launcher))) is first


@pytest.mark.parametrize("path, protocol", [(DETECTION, "flip"), (SEGMENTATION, "paper")])
def test_kernels_are_not_timed_for_every_view(path, protocol):
    config = load_config(path)
    config.env_cfg.cudnn_benchmark = True
    use_tta(config, protocol)
    assert config.env_cfg.cudnn_benchmark is False


@pytest.mark.parametrize("asked", [True, False, None])
@pytest.mark.parametrize("before", [True, False])
def test_tf32_by_one_key(asked, before):
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for kind in kinds:
        kind.allow_tf32 = before
    set_tf32(dict() if asked is None else dict(tf32=asked))
    assert all(kind.allow_tf32 is (before if asked is None else asked) for kind in kinds)


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_recipes_set_tf32(task):
    paths = sorted((REPOSITORY / "configs" / task).glob("*demo.py"))
    assert paths and all(load_config(path).env_cfg.tf32 is True for path in paths)


def test_predictor_sets_tf32(demo_models):
    from backbones.openmmlab.prediction.predictor import Predictor

    Predictor(*demo_models["segmentation"])
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("task, name", [("segmentation", "upernet"), ("detection", "cascade")])
def test_recipes_without_synchronized_norms(task, name):
    from mmengine.registry import MODELS, DefaultScope
    from torch import nn

    config = load_config(REPOSITORY / "configs" / task / f"{name}_convnext_t_gn.py")
    kinds = [config.model.get(key) for key in ("decode_head", "auxiliary_head")]
    if task == "detection":
        kinds = config.model.roi_head.bbox_head
    with DefaultScope.overwrite_default_scope(config.default_scope), torch.device("meta"):
        heads = [MODELS.build(kind) for kind in kinds]
    for head in heads:
        norms = [type(m) for m in head.modules() if isinstance(m, nn.GroupNorm | nn.SyncBatchNorm)]
        assert norms and set(norms) == {nn.GroupNorm}
