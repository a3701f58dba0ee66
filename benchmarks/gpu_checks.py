"""Check a GPU's values against float64 on a CPU, and time its depthwise convolutions.

`benchmarks/gpu.py` runs each as a process, which writes a JSON line for each result.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones import ConvNeXt

from .peers import randomise

NARROW = dict(depths=(1, 1, 1, 1), dims=(16, 24, 32, 48))
Kernels = Literal["triton"] | None
# (N, H, W, C) of the maps of ConvNeXt-T's stages: 8 crops of 512, and two images of a detector.
SHAPES = (
    (8, 128, 128, 96),
    (8, 64, 64, 192),
    (8, 32, 32, 384),
    (8, 16, 16, 768),
    (2, 200, 304, 96),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPEATS = 20
FILLED = 2**30  # bytes that the GPU fills before each call that is timed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["values", "depthwise"])
    parser.add_argument("out", type=Path, help="file of JSON lines to write")
    parser.add_argument("--quick", action="store_true", help="check a narrow network alone")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    rows = value_checks(args.quick) if args.part == "values" else depthwise_times()
    with args.out.open("w") as file:
        for row in rows:
            print(json.dumps(row), file=file, flush=True)
            if "passed" in row:
                print(f"{'passed' if row['passed'] else 'FAILED'}  {row['name']}", flush=True)


def value_checks(quick: bool) -> Iterator[dict[str, Any]]:
    """Compare maps and gradients of V1 and V2 with those in float64.

    A GPU's error may be twice a CPU's in the same dtype, or a few roundings of the result.

    Args:
        quick: use a narrow network, and PyTorch's operators alone.

    Yields:
        `name`, relative `error` and `allowed` error of the maps and the gradients, and `passed`.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ways: list[Kernels] = [None] if quick or not find_spec("triton") else [None, "triton"]
    arch: Any = NARROW if quick else "tiny"
    side = 64 if quick else 224
    for use_grn in (False, True):
        scale = 0.0 if use_grn else 1.0
        torch.manual_seed(0)
        settings: Any = dict(use_grn=use_grn, layer_scale_init_value=scale)
        exact = ConvNeXt(arch, **settings)
        randomise(exact)
        images = torch.randn(2, 3, side, side)
        state = exact.state_dict()
        wanted = maps_and_gradients(exact.double(), images.double(), None)
        for dtype in (None, torch.bfloat16):
            plain = ConvNeXt(arch, **settings)
            plain.load_state_dict(state)
            allowed = errors(maps_and_gradients(plain, images, dtype), wanted)
            for kernels in ways:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    net = ConvNeXt(arch, kernels=kernels, **settings)
                net.load_state_dict(state)
                found = errors(maps_and_gradients(net.cuda(), images.cuda(), dtype), wanted)
                floor = 4 * torch.finfo(dtype or torch.float32).eps
                bounds = [2 * error + floor for error in allowed]
                yield dict(
                    name=f"V{1 + use_grn} {dtype or torch.float32}".replace("torch.", "")
                    + (", Triton's kernels" if kernels else ""),
                    error=found,
                    allowed=bounds,
                    passed=all(e <= b for e, b in zip(found, bounds, strict=True)),
                )


def maps_and_gradients(
    net: ConvNeXt, images: Tensor, dtype: torch.dtype | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the maps and the gradients of the parameters, in float64 on the CPU."""
    with torch.autocast(images.device.type, dtype) if dtype else nullcontext():
        maps = net(images)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(y) for y in maps]
    gradients = torch.autograd.grad(list(maps), list(net.parameters()), weights)
    return [y.detach().cpu().double() for y in maps], [g.cpu().double() for g in gradients]


def errors(found: tuple[list[Tensor], ...], wanted: tuple[list[Tensor], ...]) -> list[float]:
    """Return the relative error of all maps together, and of all gradients."""
    result = []
    for ours, exact in zip(found, wanted, strict=True):
        difference = sum(float((a - b).square().sum()) for a, b in zip(ours, exact, strict=True))
        size = sum(float(b.square().sum()) for b in exact)
        result.append((difference / size) ** 0.5)
    return result


def bandwidth() -> float:
    """Return the bytes a second that this GPU copies, read and written."""
    source = torch.empty(FILLED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds_of_kernels(lambda: target.copy_(source))


def seconds_of_kernels(run: Callable[[], object]) -> float:
    """Return the median seconds that the kernels of a call take, without the time to launch them.

    Meanwhile the GPU fills memory, so that they wait for it, not it for them, and find nothing in
    its caches.
    """
    memory = torch.empty(FILLED, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        run()
    events = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        memory.zero_()
        start.record()
        run()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end in events)
    return times[REPEATS // 2] / 1e3


def depthwise_times() -> Iterator[dict[str, Any]]:
    """Time a block's convolution with its norm, by layout, dtype and shape.

    Yields:
        `shape`, `dtype`, `way`, milliseconds `forward` and `backward` (all gradients), and the
        `share` of each in the time that the bytes of the maps alone take.
    """
    rate = bandwidth()
    for shape in SHAPES:
        for dtype in DTYPES:
            x = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
            c = shape[-1]
            weight = torch.randn(c, 1, 7, 7, device="cuda", dtype=dtype, requires_grad=True)
            vectors = [
                torch.randn(c, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)
            ]
            grad = torch.randn_like(x)
            for way, call in ways_of(dtype).items():
                leaves = [x, weight, *vectors]
                with torch.no_grad():
                    forward = seconds_of_kernels(lambda call=call, leaves=leaves: call(*leaves))
                y = call(*leaves)

                def backward(y=y, leaves=leaves, grad=grad) -> None:
                    torch.autograd.grad(y, leaves, grad, retain_graph=True)

                times = dict(forward=forward, backward=seconds_of_kernels(backward))
                least = dict(forward=2 * x.nbytes / rate, backward=3 * x.nbytes / rate)
                yield dict(
                    shape=list(shape),
                    dtype=str(dtype).removeprefix("torch."),
                    way=way,
                    share={name: least[name] / each for name, each in times.items()},
                    **{name: 1e3 * each for name, each in times.items()},
                )


def ways_of(dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    """Return the ways to convolve (N, H, W, C) and normalise."""

    def channels_last(x, weight, bias, norm_weight, norm_bias, contiguous=False) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        x = x.contiguous() if contiguous else x
        y = F.conv2d(x, weight, bias, padding=3, groups=len(weight)).permute(0, 2, 3, 1)
        return F.layer_norm(y, norm_bias.shape, norm_weight, norm_bias, 1e-6)

    ways: dict[str, Callable[..., Tensor]] = {
        "channels_last": channels_last,
        "contiguous": lambda *given: channels_last(*given, contiguous=True),
    }
    if find_spec("triton"):
        from backbones.ops.depthwise_norm_triton import depthwise_norm

        ways["triton"] = lambda x, weight, bias, norm_weight, norm_bias: depthwise_norm(
            x, weight, bias, norm_weight, norm_bias, 1e-6, dtype
        )
    return ways


if __name__ == "__main__":
    main()
