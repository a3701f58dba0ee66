"""Check where the host waits, how many kernels it launches and in which dtypes a GPU computes.

Most tests use the no-op GPU without the emulator, so their tensors have no meaningful values;
PyTorch itself raises where the host would wait.
"""

from contextlib import contextmanager

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from support.emulated_gpu.preloading import counted

import backbones
import backbones.openmmlab.segmentation  # noqa: F401
from backbones.ops import upsampled_conv


@contextmanager
def waiting_refused():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def backward(outputs) -> None:
    outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
    torch.stack([y.float().sum() for y in outputs]).sum().backward()


def upernet(**kwargs):
    config = dict(type="FactorizedUPerHead", in_channels=[8, 12, 16, 20], in_index=[0, 1, 2, 3])
    config |= dict(channels=16, num_classes=5, norm_cfg=dict(type="BN"), align_corners=False)
    with DefaultScope.overwrite_default_scope("mmseg"):
        return MODELS.build({**config, **kwargs}).cuda().train()


def pyramid(images: int) -> list[torch.Tensor]:
    return [
        torch.zeros(images, c, 64 >> i, 64 >> i, device="cuda")
        .to(memory_format=torch.channels_last)
        .requires_grad_()
        for i, c in enumerate((8, 12, 16, 20))
    ]


@pytest.mark.parametrize("use_grn", [False, True], ids=["V1", "V2"])
def test_backbone_never_waits(use_grn):
    net = backbones.ConvNeXt("atto", use_grn=use_grn, drop_path_rate=0.5).cuda().train()
    x = torch.zeros(4, 3, 64, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        backward(net(x))
        with waiting_refused():
            backward(net(x))


@pytest.mark.parametrize("factorize", [True, False, None])
def test_upernet_never_waits(factorize):
    head, maps = upernet(factorize=factorize), pyramid(2)
    with torch.autocast("cuda", torch.bfloat16):
        backward(head(maps))  # fills caches
        with waiting_refused():
            backward(head(maps))


def test_upernet_takes_a_batch_at_once():
    """Check that more images take no more launches of the factorised convolution."""
    weight = torch.zeros(16, 12, 3, 3, device="cuda", requires_grad=True)
    counts = []
    for images in (2, 4):
        _, x, *_ = pyramid(images)

        def step(x=x):
            out = torch.zeros(len(x), 64, 64, 16, device="cuda").permute(0, 3, 1, 2)
            backward(upsampled_conv._AddUpsampledConv.apply(out, x, weight, False))

        step()
        counts.append(counted(step)["launches"])
    assert counts[0] == counts[1] > 0


def test_average_moves_in_few_launches():
    import backbones.openmmlab.classification  # noqa: F401
    from backbones.openmmlab.training.ema import ForeachAverage

    net = backbones.ConvNeXt("atto").cuda()
    average = ForeachAverage(net, momentum=0.1, update_buffers=True)
    average.update_parameters(net)  # the first step copies
    counts = counted(lambda: average.update_parameters(net))
    assert 0 < counts["launches"] < len(list(net.parameters())) / 4
    assert not counts["syncs"]


def test_optimizer_of_a_gpu():
    from backbones.openmmlab.config.machine import use_fused_optimizer

    def optimizer(**settings):
        config = Config(dict(optim_wrapper=dict(optimizer=dict(type="AdamW", **settings))))
        use_fused_optimizer(config)
        return config.optim_wrapper.optimizer

    assert optimizer().fused and "fused" not in optimizer(foreach=False)
    net = backbones.ConvNeXt("atto").cuda()
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step = torch.optim.AdamW(net.parameters(), fused=optimizer().fused).step
    step()
    with waiting_refused():
        counts = counted(step)
    assert 0 < counts["launches"] < len(list(net.parameters())) / 4


def test_pasting_never_waits():
    from backbones.openmmlab.detection.roi_heads import paste_masks

    probabilities = torch.zeros(7, 28, 28, device="cuda")
    boxes = torch.zeros(7, 4, device="cuda")
    with waiting_refused(), torch.no_grad():
        masks = paste_masks(probabilities, boxes, (60, 80), 0.5)
    assert masks.is_cuda and masks.shape == (7, 60, 80)


@pytest.mark.parametrize("keep_logits", [False, True])
def test_sliding_windows_never_wait(keep_logits):
    config = dict(type="SlidingWindowSegmentor", keep_logits=keep_logits)
    config["test_cfg"] = Config(dict(mode="slide", crop_size=(64, 64), stride=(43, 43)))
    config["backbone"] = dict(type="ConvNeXt", arch="atto")
    head = dict(type="FactorizedUPerHead", in_channels=[40, 80, 160, 320], in_index=[0, 1, 2, 3])
    head |= dict(channels=16, num_classes=5, norm_cfg=dict(type="BN"), align_corners=False)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build({**config, "decode_head": head}).cuda().eval()
    images = torch.zeros(2, 3, 100, 120, device="cuda")
    with torch.no_grad():
        model.predict(images)
        with waiting_refused():
            found = model.predict(images)
    assert all(each.pred_sem_seg.data.shape == (1, 100, 120) for each in found)


def test_products_of_masks_stay_float32(gpu):
    from backbones.openmmlab.detection.roi_heads import paste_masks

    with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
        probabilities = torch.rand(7, 28, 28, device="cuda")
        boxes = torch.tensor([[10.0, 12, 50, 60]], device="cuda").expand(7, -1)
        assert paste_masks(probabilities, boxes, (60, 80), 0.5).any()
    assert gpu.dtypes["aten.bmm", "float32"] == 2
    assert not [name for name, dtype in gpu.dtypes if dtype == "bfloat16"]


def test_plain_head_is_the_gpus():
    head = upernet()
    assert not head.factorizes(torch.zeros(1, device="cuda")) and head.factorizes(torch.zeros(1))


def test_ranks_talk_while_gradients_are_computed(monkeypatch):
    """The host waits for the gradients after the message alone."""
    from mmengine.optim import OptimWrapper

    from backbones.openmmlab.training import step_guard

    model = torch.nn.Linear(8, 4).cuda()
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters()))
    guard = step_guard.guard_steps(wrapper, model)
    guard.same_gradients = True
    sent = []

    def send(flags):
        torch.cuda.set_sync_debug_mode("default")
        sent.append(flags[1:])
        return [False] * 3

    monkeypatch.setattr(step_guard, "any_rank_each", send)
    with waiting_refused():
        wrapper.backward(model(torch.zeros(2, 8, device="cuda")).sum())
    assert sent == [[False, False]] and guard.stop is False
    guard.same_gradients = False
    with waiting_refused(), pytest.raises(RuntimeError, match="synchronizing"):
        wrapper.backward(model(torch.zeros(2, 8, device="cuda")).sum())
