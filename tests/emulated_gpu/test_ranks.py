"""Take steps of one rank of two on the emulated GPU, in a group whose collectives do nothing."""

from collections import Counter

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from backbones import ConvNeXt

pytestmark = pytest.mark.slow  # the process with the GPU takes 10 seconds to start

SMALL = dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))
AMP = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=dict(enabled=False))
AMP |= dict(optimizer=dict(type="AdamW", lr=1e-3, fused=True))


@pytest.fixture
def one_of_two(monkeypatch, gpu):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def gather(output, given, group=None, async_op=False):  # what SyncBN does with it has a size
        output.view(2, -1).copy_(given.view(1, -1).expand(2, -1))

    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    monkeypatch.setattr(distributed, "all_gather_into_tensor", gather)
    yield gpu
    distributed.destroy_process_group()


def segmentor() -> nn.Module:
    import backbones.openmmlab.segmentation  # noqa: F401  registers its data preprocessor and heads

    norm = dict(type="SyncBN")
    maps = dict(in_channels=list(SMALL["dims"]), in_index=[0, 1, 2, 3])
    model = dict(
        type="SlidingWindowSegmentor",
        backbone=dict(type="ConvNeXt", arch=SMALL, drop_path_rate=0.5),
        decode_head=dict(
            type="FactorizedUPerHead", channels=8, num_classes=5, norm_cfg=norm,
            align_corners=False, **maps,
        ),
        auxiliary_head=dict(
            type="FCNHead", in_channels=16, in_index=2, channels=8, num_convs=1, num_classes=5,
            norm_cfg=norm, align_corners=False, concat_input=False,
        ),
        train_cfg={},
        test_cfg=dict(mode="whole"),
    )  # fmt: skip
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build(model).cuda().train()


def test_replicas_with_synchronized_norms(one_of_two):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    model = MMDistributedDataParallel(segmentor(), device_ids=[0], broadcast_buffers=False)
    buckets = []

    def keep(state, bucket):
        buckets.append(bucket.buffer().numel())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model.register_comm_hook(None, keep)
    optimizer = build_optim_wrapper(model, AMP)
    labels = torch.zeros(2, 1, 64, 64, dtype=torch.long, device="cuda")
    batch = dict(inputs=torch.randn(2, 3, 64, 64, device="cuda"))
    batch["data_samples"] = [SegDataSample(gt_sem_seg=PixelData(data=each)) for each in labels]
    norms = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) > 8
    one_of_two.reset()
    with optimizer.optim_context(model):
        losses = model(**batch, mode="loss")
    loss = sum(value.mean() for name, value in losses.items() if "loss" in name)
    optimizer.backward(loss)
    assert sum(buckets) == sum(p.numel() for p in model.parameters())
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    optimizer.step()
    # PyTorch's own: three for each norm (docs/gpu.md).
    waits = Counter()
    for (_, place), count in one_of_two.syncs.items():
        waits["backbones/" in place.split(" < ")[0]] += count
    assert one_of_two.syncs.total() >= 3 * len(norms) and not waits[True]


class Classifier(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = ConvNeXt(SMALL, layer_scale_init_value=1.0, drop_path_rate=0.5)
        self.head = nn.Linear(SMALL["dims"][-1], 5)

    def forward(self, inputs, labels, mode):
        logits = self.head(self.backbone(inputs)[-1].mean(dim=(-2, -1)))
        return dict(loss=nn.functional.cross_entropy(logits, labels))


def test_shards(one_of_two):
    from backbones.openmmlab.training.sharding import is_sharded, shard, whole_states

    whole = {name: weight.shape for name, weight in Classifier().state_dict().items()}
    model = Classifier().train()
    shard(model)
    assert is_sharded(model)
    optimizer = build_optim_wrapper(model, AMP)
    batch = dict(
        inputs=torch.randn(4, 3, 64, 64, device="cuda"),
        labels=torch.tensor([0, 1, 2, 3], device="cuda"),
    )
    one_of_two.reset()
    with optimizer.optim_context(model):
        loss = model(**batch, mode="loss")["loss"]
    optimizer.backward(loss)
    for name, parameter in model.named_parameters():
        kinds = [isinstance(each, DTensor) for each in (parameter, parameter.grad)]
        assert kinds == [True, True], name
        devices = [each.to_local().device.type for each in (parameter, parameter.grad)]
        assert devices == ["cuda", "cuda"], name
    optimizer.step()
    assert not one_of_two.syncs
    held = sum(p.to_local().numel() for p in model.parameters())
    assert held < 0.6 * sum(p.numel() for p in model.parameters())
    saved = whole_states(model, optimizer)
    found = {name: weight.shape for name, weight in saved["state_dict"].items()}
    assert found == whole and not any(w.is_cuda for w in saved["state_dict"].values())
    states = saved["optimizer"]["state"].values()
    assert states and not any(each.is_cuda for state in states for each in state.values())
