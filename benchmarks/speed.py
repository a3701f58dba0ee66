#!/usr/bin/env python
"""Time our backbones and whole models beside their peers, in one run, on the same weights.

python benchmarks/speed.py --quick
python benchmarks/speed.py --out docs/performance
python benchmarks/speed.py --only "UperNet.*inference" --rounds 9

Contenders take turns, each round in another order; a ratio is the median over the rounds of one
contender's time to the first one's in the same round. Before anything is timed every contender has
to give the first one's output. Writes OUT.json, OUT.md and OUT.png, in which works that were
measured before on the same machine and versions stay until they are measured again.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from peers import backbone_of, model_of, randomise, stock_config
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision.ops import box_iou

from backbones import ConvNeXt, fuse
from backbones.atomic_write import atomic_path, write_atomically
from backbones.errors import InputError, reported_in_one_line
from backbones.openmmlab.config import load_config
from backbones.weights import load_strictly

CONFIGS = Path(__file__).parents[1] / "configs"
OUR_CONFIGS = {
    "mmdet": CONFIGS / "detection" / "cascade_convnext_t.py",
    "mmseg": CONFIGS / "segmentation" / "upernet_convnext_t.py",
}
LIBRARIES = ("mmpretrain", "timm", "torchvision", "transformers")
SECONDS_PER_WORK = 60  # beyond which there are fewer rounds
# Largest difference of a contender's maps from the first one's, both of magnitude 1 to 10.
ALLOWED = {"fp32": 1e-4, "bf16": 0.5}


@dataclass(frozen=True)
class Work:
    """Something to time.

    Attributes:
        network: an arch of ours, `UperNet` or `Cascade Mask R-CNN`.
        task: `inference` or `train`, a training step without the optimizer's.
        size: (N, H, W) of the images.
        dtype: `fp32`, or `bf16` by autocast; contenders in bf16 are held against one in fp32 too.
        grn: V2.
        window: whether a segmentor slides its window.
        quick: belongs to `--quick`.
        compiled: torch.compile takes part unless told otherwise; it takes a minute a contender.
        drop_path_rate: in training, on both sides.
    """

    network: str
    task: str
    size: tuple[int, int, int]
    dtype: str = "fp32"
    grn: bool = False
    window: bool = False
    quick: bool = False
    compiled: bool = False
    drop_path_rate: float = 0.4

    @property
    def name(self) -> str:
        kind = f"ConvNeXt{'V2' * self.grn}-{self.network}" if self.is_backbone else self.network
        how = " slide" if self.window else ""
        return f"{kind} {self.task} {'x'.join(map(str, self.size))}{how} {self.dtype}"

    @property
    def is_backbone(self) -> bool:
        return self.network not in ("UperNet", "Cascade Mask R-CNN")


WORKS = (
    Work("tiny", "inference", (1, 512, 512), quick=True, compiled=True),
    Work("tiny", "inference", (1, 800, 1216)),
    Work("tiny", "train", (2, 256, 256), quick=True),
    Work("tiny", "train", (16, 256, 256)),
    Work("tiny", "inference", (1, 512, 512), "bf16", quick=True),
    Work("UperNet", "inference", (1, 512, 512), quick=True),
    Work("UperNet", "inference", (1, 512, 2048)),
    Work("UperNet", "inference", (1, 1024, 2048), window=True),
    Work("UperNet", "train", (2, 512, 512)),
    Work("UperNet", "inference", (1, 512, 512), "bf16"),
    Work("UperNet", "inference", (1, 512, 2048), "bf16"),
    Work("UperNet", "inference", (1, 1024, 2048), "bf16", window=True),
    Work("UperNet", "train", (2, 512, 512), "bf16"),
    Work("Cascade Mask R-CNN", "inference", (1, 480, 640), quick=True),
    Work("Cascade Mask R-CNN", "train", (1, 480, 640)),
    Work("Cascade Mask R-CNN", "inference", (1, 480, 640), "bf16"),
    Work("Cascade Mask R-CNN", "train", (1, 480, 640), "bf16"),
    Work("tiny", "train", (2, 256, 256), "bf16"),
    Work("small", "inference", (1, 512, 512)),
    Work("small", "train", (2, 256, 256)),
    Work("base", "inference", (1, 512, 512)),
    Work("base", "train", (2, 256, 256)),
    Work("tiny", "inference", (1, 512, 512), grn=True),
    Work("tiny", "train", (2, 256, 256), grn=True),
)


@dataclass
class Contender:
    """One side of a comparison and what was measured of it.

    Attributes:
        name: library and how it is run.
        run: does the work once and gives its output.
        seconds: of every round.
        peak_mib: memory that the work takes beyond what the model holds.
        difference: largest one of its output from the first contender's; of a detector or segmentor
            the share of pixels or boxes that differ.
    """

    name: str
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    difference: float = 0.0


def backbones(work: Work, peers: list[str], ways: list[str], device: str) -> Iterator[Contender]:
    """Ours and the peers' backbones on one batch of noise; the first is mmpretrain, eager."""
    torch.manual_seed(0)
    ours = ConvNeXt(
        work.network,
        use_grn=work.grn,
        drop_path_rate=work.drop_path_rate,
        layer_scale_init_value=0.0 if work.grn else 1.0,
    )
    randomise(ours)
    images = torch.randn(work.size[0], 3, *work.size[1:], device=device)
    for library in [*peers[:1], "ours", *peers[1:]]:
        for way in ways:
            model = ours
            if library != "ours":
                model = backbone_of(library, ours, work.drop_path_rate)
            if model is None:
                continue
            model.to(device)
            if way == "channels-last":
                if library == "ours":  # whose maps are channels-last in any case
                    continue
                model.to(memory_format=torch.channels_last)
            inputs = images.contiguous(
                memory_format=torch.channels_last
                if way == "channels-last"
                else torch.contiguous_format
            )
            if way == "fused":
                if library != "ours" or work.task == "train":
                    continue
                model = fuse(ours.eval(), torch.bfloat16 if work.dtype == "bf16" else torch.float32)
            network = torch.compile(model) if way == "compiled" else model
            for dtype in dict.fromkeys(["fp32", work.dtype]):
                if dtype != work.dtype and (library, way) != (peers[0], "eager"):
                    continue
                yield Contender(
                    f"{library} {way}{' bf16' * (dtype == 'bf16')}",
                    partial(run_backbone, work, model, network, inputs, dtype),
                )


def run_backbone(
    work: Work, model: nn.Module, network: nn.Module, images: Tensor, dtype: str
) -> list[Tensor]:
    with autocast(dtype, images.device):
        if work.task == "inference":
            model.training and model.eval()
            with torch.inference_mode():
                return list(network(images))
        model.training or model.train()
        loss = sum(x.float().square().mean() for x in network(images))
    model.zero_grad(set_to_none=True)
    loss.backward()
    return []


def whole_models(work: Work, device: str) -> Iterator[Contender]:
    """OpenMMLab's published ConvNeXt-T model as installed, and ours with its weights."""
    library = "mmseg" if work.network == "UperNet" else "mmdet"
    torch.manual_seed(0)
    stock = model_of(stock_config(library), work.drop_path_rate)
    randomise(stock)
    small = Work(work.network, "train", (2, 256, 320))
    calibrate(stock, segmentation_batch(small) if library == "mmseg" else detection_batch(small))
    if library == "mmdet":  # or no box of random weights passes the threshold
        for head in stock.roi_head.bbox_head:
            head.fc_cls.weight.data.mul_(200)
    config = load_config(OUR_CONFIGS[library])
    ours = model_of(config, work.drop_path_rate)
    load_strictly(ours, dict(state_dict=stock.state_dict()), "the stock model")
    if not work.window and library == "mmseg":
        for model in (stock, ours):
            model.test_cfg.mode = "whole"
    batch = segmentation_batch(work) if library == "mmseg" else detection_batch(work)
    for dtype in dict.fromkeys(["fp32", work.dtype]):
        for name, model in (("stock", stock), ("ours", ours)):
            if dtype != work.dtype and name == "ours":
                continue
            model.to(device)
            yield Contender(
                f"{name} {library}{' bf16' * (dtype == 'bf16')}".replace("ours mm", "ours for mm"),
                partial(run_model, work, model, batch, dtype),
            )


def calibrate(model: nn.Module, batch: dict) -> None:
    """Set the statistics of batch norm by a batch: random features are else the same everywhere."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(**model.train().data_preprocessor(batch, True), mode="loss")
    for norm in norms:
        norm.momentum = 0.1


def segmentation_batch(work: Work) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    n, height, width = work.size
    shape = dict(ori_shape=(height, width), img_shape=(height, width), pad_shape=(height, width))
    samples = []
    for _ in range(n):
        labels = torch.randint(0, 150, (1, height, width))
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo(shape)
        samples.append(sample)
    return dict(inputs=pictures(work.size), data_samples=samples)


def detection_batch(work: Work) -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    n, height, width = work.size
    meta = dict(
        ori_shape=(height, width), img_shape=(height, width), scale_factor=(1.0, 1.0), img_id=0
    )
    samples = []
    for _ in range(n):
        corners = torch.rand(8, 2) * torch.tensor([width * 0.6, height * 0.6])
        sides = 30 + torch.rand(8, 2) * torch.tensor([width * 0.35, height * 0.35])
        boxes = torch.cat([corners, corners + sides], 1)
        masks = torch.zeros(8, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.randint(0, 80, (8,)),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        samples.append(sample)
    return dict(inputs=pictures(work.size), data_samples=samples)


def pictures(size: tuple[int, int, int]) -> list[Tensor]:
    """Smooth noise, uint8 (3, H, W): something that a detector finds things in."""
    n, height, width = size
    coarse = torch.rand(n, 3, height // 16, width // 16)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return list((smooth * 255).clamp(0, 255).to(torch.uint8))


def run_model(work: Work, model: nn.Module, batch: dict, dtype: str) -> list:
    device = next(model.parameters()).device
    batch = dict(
        inputs=list(batch["inputs"]), data_samples=[s.clone() for s in batch["data_samples"]]
    )
    if work.task == "inference":
        model.training and model.eval()
        with torch.inference_mode(), autocast(dtype, device):
            return model.test_step(batch)
    model.training or model.train()
    torch.manual_seed(1)
    with autocast(dtype, device):
        loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode="loss"))
    model.zero_grad(set_to_none=True)
    loss.backward()
    return []


def autocast(dtype: str, device: torch.device):
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()


def difference(first: list, other: list, dtype: str) -> float:
    """How far an output in `dtype` is from the first contender's (see `Contender`).

    Boxes are the same within 0.05 pixels; in bf16, where stock mmdet rounds their corners to whole
    pixels and more, if they overlap by half.
    """
    if not first or isinstance(first[0], Tensor):
        pairs = zip(first, other, strict=True)
        return max(((a.float() - b.float()).abs().max().item() for a, b in pairs), default=0.0)
    a, b = first[0], other[0]
    if "pred_sem_seg" in a:
        return (a.pred_sem_seg.data != b.pred_sem_seg.data).float().mean().item()
    a, b = a.pred_instances, b.pred_instances
    if not len(a):
        raise InputError("the stock detector finds nothing: its output shows nothing")
    if not len(b):
        return 1.0
    one, two = a.bboxes.float(), b.bboxes.float()
    alike = torch.cdist(one, two, p=float("inf")) <= 0.05
    if dtype == "bf16":
        alike = box_iou(one, two) >= 0.5
    found = (alike & (a.labels[:, None] == b.labels)).any(1)
    return 1 - found.float().mean().item()


def check(work: Work, contenders: list[Contender]) -> None:
    """Run every contender once in inference and compare.

    Raises:
        InputError: one computes another function.
    """
    inference = Work(work.network, "inference", work.size, work.dtype, work.grn, work.window)
    first = None
    for contender in contenders:
        _, *arguments = contender.run.args
        output = contender.run.func(inference, *arguments)
        first = output if first is None else first
        dtype = "bf16" if contender.name.endswith("bf16") else "fp32"
        contender.difference = difference(first, output, dtype)
        allowed = ALLOWED[dtype]
        if contender.difference > (allowed if work.is_backbone else 0.02 + allowed):
            raise InputError(
                f"{work.name}: {contender.name} differs from {contenders[0].name} by "
                f"{contender.difference:.2g}; nothing was timed"
            )


def time_in_turns(
    contenders: list[Contender], rounds: int | None, cuda: bool, progress: Callable
) -> None:
    """Time `rounds` turns of each; None is 7, fewer of what takes long but at least three."""
    for contender in contenders:  # warm-up, and compilation
        contender.run()
        contender.peak_mib = peak_memory(contender.run, cuda)
    one_round = sum(seconds(contender.run, cuda) for contender in contenders)
    rounds = rounds or max(3, min(7, int(SECONDS_PER_WORK / one_round)))
    for i in range(rounds):
        turn = i % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            contender.seconds.append(seconds(contender.run, cuda))
        progress(i + 1)


def seconds(run: Callable[[], object], cuda: bool) -> float:
    if cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory(run: Callable[[], object], cuda: bool) -> float:
    """MiB beyond what is held before; on a CPU as the kernel counts resident memory."""
    gc.collect()
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if sys.platform != "linux":
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 1024


def resident(kind: str) -> int:
    """KiB of VmRSS or VmHWM."""
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def processor_seconds() -> tuple[float, float]:
    """Seconds of processor time that went to all processes, and to this one, up to now."""
    if sys.platform != "linux":
        return float("nan"), 0.0
    counted = [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    idle = counted[3] + counted[4]
    return (sum(counted) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time()


def others(before: tuple[float, float]) -> float:
    """Share of the machine's busy time since then that went to other processes."""
    everything, own = (now - then for now, then in zip(processor_seconds(), before, strict=True))
    return max(0.0, 1 - own / everything)


def results_of(work: Work, contenders: list[Contender], disturbed: float) -> dict:
    first = contenders[0]
    rows = []
    for contender in contenders:
        ratios = [a / b for a, b in zip(contender.seconds, first.seconds, strict=True)]
        low, median, high = quartiles(contender.seconds)
        ratio_low, ratio, ratio_high = quartiles(ratios)
        rows.append(
            dict(
                name=contender.name,
                median_ms=median * 1e3,
                quartiles_ms=[low * 1e3, high * 1e3],
                images_per_s=work.size[0] / median,
                ratio=ratio,
                ratio_quartiles=[ratio_low, ratio_high],
                peak_mib=contender.peak_mib,
                difference=contender.difference,
            )
        )
    rounds = len(first.seconds)
    return dict(work=work.name, **asdict(work), rounds=rounds, others=disturbed, contenders=rows)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return (values[0],) * 3
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def machine(device: str) -> dict:
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        name = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    packages = ("torch", "onedl-mmdetection", "onedl-mmsegmentation", "onedl-mmpretrain", "timm")
    return dict(
        device=torch.cuda.get_device_name() if device == "cuda" else name,
        threads=torch.get_num_threads(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        python=platform.python_version(),
        versions={p: version(p) for p in (*packages, "torchvision", "transformers")},
    )


def earlier(path: Path, head: dict) -> list[dict]:
    """Works of an earlier report on the same machine and versions; none where there is no such."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    return report["works"] if report["machine"] == head else []


def disturbance(share: float | None) -> str:
    if share is None:  # of a report that is older than the figure
        return "the machine had other work"
    return f"{share:.0%} of the processor time was others'"


def markdown(report: dict, losses: Path) -> str:
    head = report["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in head["versions"].items())
    lines = [
        "# Performance, measured",
        "",
        "Made by `benchmarks/speed.py --out`, some works by themselves with `--only`: contenders",
        "take turns, and a ratio is the median over rounds of its time to the first contender's",
        "in the same round, with its quartiles.",
        "Memory is what the work takes beyond the model's own. Difference is the largest one of",
        "the output from the first contender's: of maps of magnitude 1 to 10, or the share of",
        "pixels or boxes that differ.",
        "",
        f"{head['device']}, {head['threads']} threads, {head['instructions']}. "
        f"Python {head['python']}, {versions}.",
    ]
    for result in report["works"]:
        lines += [
            "",
            f"## {result['work']}",
            "",
            f"{result['rounds']} rounds; {disturbance(result['others'])}.",
            "",
            "| | ms | images/s | ratio | quartiles | peak MiB | difference |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in result["contenders"]:
            low, high = row["ratio_quartiles"]
            lines.append(
                f"| {row['name']} | {row['median_ms']:.1f} | {row['images_per_s']:.2f} | "
                f"{row['ratio']:.3f} | {low:.3f}-{high:.3f} | {row['peak_mib']:.0f} | "
                f"{row['difference']:.1e} |"
            )
    if losses.exists():
        lines += [
            "",
            "## Training in lower precision",
            "",
            f"![losses of the first steps]({losses.with_suffix('.png').name})",
            "",
            "By `benchmarks/precision.py`: the first steps from the same weights and images; mean",
            "loss of the last 20 for each seed.",
            "",
            "| config | precision | seeds |",
            "|---|---|---|",
        ]
        for config, runs in json.loads(losses.read_text()).items():
            for precision, seeds in runs.items():
                means = ", ".join(f"{statistics.fmean(values[-20:]):.3f}" for values in seeds)
                lines.append(f"| {config} | {precision} | {means} |")
    return "\n".join(lines) + "\n"


def plot(report: dict, path: Path) -> None:
    """Bars of every contender's ratio, a group for each work, the shortest marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    works = report["works"]
    rows = sum(len(w["contenders"]) for w in works) + len(works)
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.24 * rows))
    y, ticks, labels = 0, [], []
    for work in works:
        axes.text(0, y, work["work"], va="center", fontsize=8, fontweight="bold")
        for row in work["contenders"]:
            y += 1
            ours = row["name"].startswith("ours")
            axes.barh(y, row["ratio"], color="#2a78b5" if ours else "#c4c4c4")
            axes.text(row["ratio"] + 0.01, y, f"{row['ratio']:.2f}", va="center", fontsize=7)
            ticks.append(y)
            labels.append(row["name"])
        y += 1
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_ylim(y, -1)
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_xlabel("time, as a ratio to the first of its group (shorter is faster)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=150)


def show(result: dict, console: Console) -> None:
    table = Table(title=result["work"], title_justify="left")
    for column in ("", "ms", "images/s", "ratio", "quartiles", "peak MiB", "difference"):
        table.add_column(column, justify="left" if not column else "right")
    for row in result["contenders"]:
        low, high = row["ratio_quartiles"]
        table.add_row(
            row["name"],
            f"{row['median_ms']:.1f}",
            f"{row['images_per_s']:.2f}",
            f"{row['ratio']:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['peak_mib']:.0f}",
            f"{row['difference']:.1e}",
            style="bold" if row["name"].startswith("ours") else None,
        )
    console.print(table)


def parse() -> argparse.Namespace:
    first, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few works, minutes on two cores")
    parser.add_argument("--only", default="", metavar="REGEX", help="works whose name matches")
    parser.add_argument("--list", action="store_true", help="name the works and end")
    parser.add_argument(
        "--rounds", type=int, help="7, or fewer where they take beyond a minute, unless given"
    )
    parser.add_argument("--peers", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=["eager", "channels-last", "compiled", "fused"],
        help="of the backbones",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="on a CPU")
    parser.add_argument("--out", type=Path, metavar="OUT", help="without it nothing is written")
    return parser.parse_args()


def main() -> None:
    args = parse()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    works = [w for w in WORKS if re.search(args.only, w.name, re.I) and (w.quick or not args.quick)]
    if not works:
        raise InputError(f"--only {args.only!r}: matches no work; --list names them")
    if args.list:
        print("\n".join(w.name for w in works))
        return
    rounds = args.rounds or (3 if args.quick else None)
    warnings.simplefilter("ignore")

    console = Console()
    head = machine(device)
    measured = {}
    if args.out:
        measured = {work["work"]: work for work in earlier(args.out.with_suffix(".json"), head)}
    for work in works:
        torch.compiler.reset()
        ways = ["eager", "fused"] if args.quick else ["eager", "channels-last", "fused"]
        ways = args.ways or ways + ["compiled"] * (work.compiled and not args.quick)
        if work.is_backbone:  # T with every peer, the others with the first
            peers = args.peers[:1] if args.quick or work.network != "tiny" else args.peers
            contenders = list(backbones(work, peers, ways, device))
        else:
            contenders = list(whole_models(work, device))
        with console.status(work.name) as status:
            check(work, contenders)
            before = processor_seconds()
            time_in_turns(
                contenders,
                rounds,
                device == "cuda",
                lambda i, work=work: status.update(f"{work.name}: round {i}"),
            )
        measured[work.name] = results_of(work, contenders, others(before))
        show(measured[work.name], console)
        if args.out:
            names = [w.name for w in WORKS if w.name in measured]
            report = dict(machine=head, works=[measured[name] for name in names])
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
            losses = args.out.with_name("precision.json")  # by benchmarks/precision.py
            write_atomically(args.out.with_suffix(".md"), markdown(report, losses))
            plot(report, args.out.with_suffix(".png"))


if __name__ == "__main__":
    with reported_in_one_line():
        main()
