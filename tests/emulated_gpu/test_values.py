"""Compare values and gradients of networks, heads and losses on the emulated GPU with a CPU's."""

from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from support.detectors import METHODS, assert_same_detections, batch, predict
from support.detectors import pair as detectors
from support.oracles import randomise
from torch import Tensor, nn

import backbones
from backbones.convnext import Block
from backbones.ops.grn import global_response_norm


def worst(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest error of any tensor, relative to the tensor's largest value."""
    assert all(a.is_cuda for a in found) and any(b.any() for b in wanted)
    pairs = zip(found, wanted, strict=True)
    return max(((a.cpu() - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in pairs)


def compared(module: nn.Module, inputs: list[Tensor], call=None) -> tuple[float, float]:
    """Return the errors of outputs and gradients on the GPU, with the same random draws."""
    results = []
    for device in ("cpu", "cuda"):
        here = deepcopy(module).to(device)
        given = [x.detach().to(device).requires_grad_() for x in inputs]
        torch.manual_seed(1)
        out = (call or (lambda module, given: module(*given)))(here, given)
        out = list(out) if isinstance(out, tuple | list) else [out]
        torch.manual_seed(2)
        weights = [torch.randn(y.shape).to(device) for y in out]
        wanted = [x for x in [*given, *here.parameters()] if x.requires_grad]
        grads = torch.autograd.grad(out, wanted, weights)
        results.append(([y.detach() for y in out], list(grads)))
    (wanted, wanted_grads), (found, found_grads) = results
    return worst(found, wanted), worst(found_grads, wanted_grads)


@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("use_grn", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("rate", [0.0, 0.5, 0.99])
def test_block(gpu, use_grn, rate, with_cp):
    block = randomise(Block(24, rate, 0.0 if use_grn else 1.0, use_grn, with_cp)).train()
    forward, backward = compared(block, [torch.randn(6, 8, 9, 24)])
    assert forward < 1e-5 and backward < 1e-4
    assert gpu.ops["aten.convolution"] > 0


def test_gradient_of_kept_samples_is_added_not_sorted(gpu):
    block = randomise(Block(8, 0.5, 1.0, False, False)).train()
    compared(block, [torch.randn(6, 4, 4, 8)])
    assert gpu.ops["aten.index_add"] > 0
    assert not [name for name in gpu.ops if "index_put" in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_global_response_norm(gpu, dtype):
    """Check that GRN is as exact as the plain formula and uses one pass to scale and add."""
    x, gamma, beta = torch.randn(3, 6, 5, 16), torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    x[1, :, :, 4] = 0  # a channel without a norm
    grad = torch.randn_like(x).to(dtype)
    results = []
    for device, kind in (("cpu", torch.float64), ("cpu", dtype), ("cuda", dtype)):
        exact = kind if kind == torch.float64 else torch.float32
        given = [x.to(dtype).to(kind), gamma.to(exact), beta.to(exact)]
        given = [each.to(device).requires_grad_() for each in given]
        gpu.reset()
        y = global_response_norm(*given)
        assert y.dtype == kind
        results.append([y, *torch.autograd.grad(y, given, grad.to(device, kind))])
    assert gpu.ops["aten.addcmul"] == 3
    for wanted, plain, ours in zip(*results, strict=True):
        assert ours.is_cuda and ours.dtype == plain.dtype
        error = (ours.cpu().double() - wanted).norm()
        assert error <= 2 * (plain.double() - wanted).norm() + 1e-6 * wanted.norm()


@pytest.mark.parametrize("use_grn", [False, True], ids=["V1", "V2"])
def test_backbone(gpu, use_grn):
    net = randomise(backbones.ConvNeXt("atto", use_grn=use_grn))
    forward, backward = compared(net, [torch.randn(2, 3, 64, 96)])
    assert forward < 1e-5 and backward < 1e-3


def test_fused(gpu):
    net = randomise(backbones.ConvNeXt("atto", layer_scale_init_value=1.0)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted, found = backbones.fuse(net)(x), backbones.fuse(net.cuda())(x.cuda())
    assert worst(list(found), list(wanted)) < 1e-5


@pytest.mark.parametrize("factorize", [True, False])
def test_upernet_head(gpu, factorize):
    import backbones.openmmlab.segmentation  # noqa: F401

    config = dict(type="FactorizedUPerHead", in_channels=[8, 12, 16, 20], in_index=[0, 1, 2, 3])
    config |= dict(channels=16, num_classes=5, norm_cfg=dict(type="BN"), factorize=factorize)
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = MODELS.build({**config, "dropout_ratio": 0.0, "align_corners": False})
    maps = [torch.randn(3, c, 24 >> i, 32 >> i) for i, c in enumerate((8, 12, 16, 20))]
    forward, backward = compared(head.train(), maps, lambda head, maps: head(maps))
    assert forward < 1e-5 and backward < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("factorize", [True, False])
def test_segmentors_losses(gpu, factorize):
    """Compare a CPU's losses, computed by blocks of rows, with a GPU's, computed by mmseg."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from support.running import SEGMENTATION

    from backbones.openmmlab.config import load_config
    from backbones.openmmlab.config.machine import fit_to_machine

    config = load_config(SEGMENTATION)
    fit_to_machine(config)
    config.model.decode_head.factorize = factorize
    for head in (config.model.decode_head, config.model.auxiliary_head):
        head.dropout_ratio = 0.0
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = randomise(MODELS.build(config.model)).train()
    labels = torch.randint(0, 8, (2, 1, 64, 64))
    labels[torch.rand(labels.shape) < 0.2] = 255

    def losses(model, given):
        samples = [
            SegDataSample(gt_sem_seg=PixelData(data=each.to(given[0].device))) for each in labels
        ]
        found = model.loss(given[0], samples)
        return [value for name, value in found.items() if "loss" in name]

    forward, backward = compared(model, [torch.randn(2, 3, 64, 64)], losses)
    assert forward < 1e-5 and backward < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_detectors_losses(gpu, method):
    model, _ = detectors(method, torch.float64)
    images, samples = batch(torch.float64, truth=True)
    results = []
    for device in ("cpu", "cuda"):
        here = deepcopy(model).to(device).train()
        torch.manual_seed(3)
        losses = here.loss(images.to(device), [s.to(device) for s in deepcopy(samples)])
        total, _ = here.parse_losses(losses)
        total.backward()
        gradients = {n: p.grad for n, p in here.named_parameters() if p.grad is not None}
        results.append((total.detach(), gradients))
    (wanted, wanted_grads), (found, found_grads) = results
    assert worst([found], [wanted]) < 1e-9
    assert found_grads.keys() == wanted_grads.keys()
    largest = max(gradient.abs().max() for gradient in wanted_grads.values())
    for name, gradient in wanted_grads.items():
        assert (found_grads[name].cpu() - gradient).abs().max() < 1e-9 * largest, name


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_detections(gpu, mode):
    model, _ = detectors("cascade")
    images, samples = batch()
    with mode():
        wanted = predict(model, images, samples)
        found = predict(model.cuda(), images.cuda(), samples)
    assert all(each.masks.is_cuda and each.bboxes.is_cuda and len(each) > 20 for each in found)
    assert_same_detections([each.cpu() for each in found], wanted, 1e-2, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("keep_logits", [False, True])
def test_labels(gpu, keep_logits):
    import backbones.openmmlab.segmentation  # noqa: F401

    config = dict(type="SlidingWindowSegmentor", keep_logits=keep_logits)
    config |= dict(test_cfg=Config(dict(mode="slide", crop_size=(64, 64), stride=(43, 43))))
    config |= dict(backbone=dict(type="ConvNeXt", arch="atto", layer_scale_init_value=1.0))
    head = dict(type="FactorizedUPerHead", in_channels=[40, 80, 160, 320], in_index=[0, 1, 2, 3])
    head |= dict(channels=16, num_classes=5, norm_cfg=dict(type="BN"), align_corners=False)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = randomise(MODELS.build({**config, "decode_head": head})).eval()
    images = torch.randn(2, 3, 100, 120)
    with torch.no_grad():
        wanted = model.predict(images)
        found = model.cuda().predict(images.cuda())
    for one, other in zip(found, wanted, strict=True):
        labels = other.pred_sem_seg.data
        assert labels.unique().numel() > 1
        assert (one.pred_sem_seg.data.cpu() != labels).sum() <= 1e-3 * labels.numel()


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "measured"])
def test_depthwise_layouts(gpu, layout):
    """Check that each layout computes the same; the emulated GPU takes as long for any."""
    from backbones.ops import depthwise_layout

    depthwise_layout.CHOICES.clear()
    plain = randomise(Block(24, 0.0, 1.0, False, False))
    block = Block(24, 0.0, 1.0, False, False, depthwise_layout=layout)
    block.load_state_dict(plain.state_dict())
    forward, backward = compared(block, [torch.randn(2, 8, 9, 24)])
    assert forward < 1e-5 and backward < 1e-4
    key = (torch.float32, torch.Size([2, 24, 8, 9]), True)
    assert depthwise_layout.CHOICES == ({key: "channels_last"} if layout == "measured" else {})
    x = torch.randn(2, 8, 9, 24, device="cuda").permute(0, 3, 1, 2)
    assert not x.is_contiguous()
    if layout == "measured":
        depthwise_layout.CHOICES[key] = "contiguous"
    arranged = depthwise_layout.arrange(x, block.cuda().dwconv, layout)
    assert arranged.is_contiguous() == (layout != "channels_last")
    assert arranged.cpu().equal(x.cpu())


def test_windows_at_once_follow_the_memory(gpu):
    from backbones.openmmlab.segmentation.window_batches import AT_MOST, WindowBatches

    torch.cuda.reset_peak_memory_stats()  # the windows' memory is bounded by the process's peak
    batches, images = WindowBatches(), torch.zeros(1, 3, 64, 64, device="cuda")
    assert batches.size(images, 64 * 64) == 1  # nothing is known of their memory
    with batches.noted(images):
        kept = torch.zeros(2**20, device="cuda")
    assert batches.size(images, 64 * 64) == AT_MOST
    free = torch.cuda.mem_get_info()[0]
    assert batches.size(images, int(64 * 64 * free / kept.nbytes / 10)) in (4, 5)
    with torch.autocast("cuda", torch.bfloat16):
        assert batches.size(images, 64 * 64) == 1
    torch.use_deterministic_algorithms(True)
    assert batches.size(images, 64 * 64) == 4
    torch.use_deterministic_algorithms(False)
