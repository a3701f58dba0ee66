"""Detectors and segmentors that leave out maps, under plain DistributedDataParallel with gloo.

Their models are mmdet's and mmseg's own, with our backbone in the place of their ResNet.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import backbones
from backbones.openmmlab.registration import register

torch.set_num_threads(1)
library = sys.argv[1]
distributed.init_process_group("gloo")
rank = distributed.get_rank()
register(library)
bases = Path(find_spec(library).submodule_search_locations[0]) / ".mim/configs/_base_/models"
backbone = dict(type="ConvNeXt", arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)))

if library == "mmdet":
    from mmdet.structures import DetDataSample

    model = Config.fromfile(bases / "retinanet_r50_fpn.py").model
    model.backbone = backbone
    model.neck.update(in_channels=[8, 16, 24, 32], out_channels=16)
    model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3)
    unread = ["backbone.norm0.weight", "backbone.norm0.bias"]

    def sample():
        boxes = torch.tensor([[4.0, 4, 40, 50], [10, 20, 60, 60]])
        found = DetDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64)))
        found.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]))
        return found
else:
    from mmseg.structures import SegDataSample

    model = Config.fromfile(bases / "fcn_r50-d8.py").model
    model.pretrained = None
    model.backbone = dict(backbone, pretrained=None)
    for head, width in ((model.decode_head, 32), (model.auxiliary_head, 24)):
        head.update(in_channels=width, channels=8, num_classes=3, norm_cfg=dict(type="BN"))
    unread = [f"backbone.norm{i}.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")]

    def sample():
        return SegDataSample(gt_sem_seg=PixelData(data=torch.randint(3, (1, 64, 64))))


def steps(network, optimizer):
    for _ in range(3):
        torch.manual_seed(rank)
        losses = network(torch.randn(2, 3, 64, 64), [sample(), sample()], mode="loss")
        loss, _ = network.module.parse_losses(losses)
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


with DefaultScope.overwrite_default_scope(library):
    torch.manual_seed(0)
    built = MODELS.build(model).train()
network = DistributedDataParallel(built)
optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
steps(network, optimizer)
zero = sorted(n for n, p in built.named_parameters() if p.grad.abs().sum() == 0)
assert zero == sorted(unread), zero
total = torch.stack([p.detach().double().sum() for p in built.parameters()])
mine = total.clone()
distributed.broadcast(total, 0)
assert torch.equal(total, mine)
# As it was: without the gradients of zero the second step stops.
built.backbone._tie = lambda: None
try:
    steps(DistributedDataParallel(built), optimizer)
except RuntimeError as error:
    assert "Expected to have finished reduction" in str(error)
    (Path(sys.argv[2]) / str(rank)).touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("library", ["mmdet", "mmseg"])
def test_maps_that_no_head_reads(library, tmp_path):
    """RetinaNet's FPN starts at the second map, FCN reads the last two."""
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", tmp_path / "program.py", library, tmp_path],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "0").exists() and (tmp_path / "1").exists()
