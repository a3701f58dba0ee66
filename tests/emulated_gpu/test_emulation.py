"""The emulated GPU computes what the CPU does, and tells what the host waits for."""

import pytest
import torch
import torch.nn.functional as F
from support.emulated_gpu.preloading import counted


def test_autocast_is_the_gpus(gpu):
    """Unlike on a CPU, layer norm and interpolation leave bfloat16."""
    x = torch.randn(1, 2, 4, 4, device="cuda", dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        assert F.interpolate(x, scale_factor=2, mode="bilinear").dtype == torch.float32
        assert F.layer_norm(x, (4,)).dtype == torch.float32
        assert (x.float() @ x.float()).dtype == torch.bfloat16
    assert gpu.dtypes["aten.bmm", "bfloat16"] == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_values_without_autograd(gpu, mode):
    x = torch.randn(40, 4)
    with mode():
        y = x.cuda()
        assert [kind for kind, _ in gpu.syncs] == ["H2D copy"]
        assert torch.equal((y * 10).to(torch.int64).cpu(), (x * 10).to(torch.int64))
        assert torch.equal(y.T.reshape(-1).cpu(), x.T.reshape(-1))
        enlarged = F.interpolate(y[None, None], scale_factor=2).cpu()
        assert torch.equal(enlarged, F.interpolate(x[None, None], scale_factor=2))
        order = y[:, 0].argsort(descending=True)[:10]
        kept = (y[order] > 0).any(1).nonzero().flatten()
        assert torch.equal(y[order][kept].cpu(), x[order.cpu()][kept.cpu()])
        assert torch.equal(y.topk(3, dim=0)[1].cpu(), x.topk(3, dim=0)[1])
        assert torch.equal(y.unique().cpu(), x.unique())


def test_waiting(gpu):
    x = torch.randn(8, device="cuda")
    mask = x > 0
    host, cpu_index = torch.randn(8), torch.tensor([0, 2])
    waits = {
        "item": lambda: x.sum().item(),
        "H2D copy": lambda: host.to("cuda"),
        "D2H copy": lambda: x.cpu(),
        "boolean index": lambda: x[mask],
        "index from the CPU": lambda: x[cpu_index],
        "nonzero": lambda: mask.nonzero(),
        "equal": lambda: torch.equal(x, x),
    }
    for kind, call in waits.items():
        gpu.reset()
        call()
        assert [k for k, _ in gpu.syncs] == [kind]
        (place,) = (p for _, p in gpu.syncs)
        assert "test_emulation.py" in place
    gpu.reset()
    host.to("cuda", non_blocking=True)
    x[mask] = 0.0
    x + 1, x.sum(), x * mask
    assert not gpu.syncs and sum(gpu.copies.values()) == 1


def test_devices_are_checked(gpu):
    x = torch.randn(4, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.randn(4)
    assert (x * torch.tensor(2.0)).is_cuda


def test_counting():
    x, y = torch.zeros(4, device="cuda"), torch.zeros(4)
    counts = counted(lambda: x + x)
    assert counts["launches"] == 1 and counts["syncs"] == 0
    counts = counted(lambda: y.cuda())
    assert counts["h2d"] == 1 and counts["syncs"] == 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            y.cuda()
        y.to("cuda", non_blocking=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
