"""Check the installed libraries: their versions against the tested ones, and missing ones."""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from mmengine.config import Config
from packaging.requirements import Requirement

from backbones.openmmlab import mmcv_ops
from backbones.openmmlab.config import DTYPES, inference_dtype
from backbones.openmmlab.data.issues import Issue
from backbones.ops.processor import computes_natively

DISTRIBUTION = "convnext-dense-prediction"
SETUP = Path(__file__).parents[3] / "setup.py"
CONFLICTING = {"mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection", "mmengine": "onedl-mmengine",
               "mmsegmentation": "onedl-mmsegmentation", "mmcv-full": "onedl-mmcv"}  # fmt: skip


def check_stack() -> Iterator[Issue]:
    """Check installed versions, and report what is replaced or missing on this machine."""
    for requirement in _requirements():
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield Issue(
                "error",
                requirement.name,
                "not installed",
                f"pip install '{requirement}'",
                "missing-package",
            )
            continue
        if not requirement.specifier.contains(installed.split("+")[0], prereleases=True):
            yield Issue(
                "warning", requirement.name,
                f"{installed} is installed, the tests ran on {requirement.specifier}",
                f"pip install '{requirement}'", "unsupported",
            )  # fmt: skip
    for name, ours in CONFLICTING.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue
        yield Issue(
            "warning", name, f"{installed} is installed beside {ours}, which has the same modules",
            f"pip uninstall {name}, then pip install --force-reinstall --no-deps {ours}",
            "unsupported",
        )  # fmt: skip
    if mmcv_ops.install():
        yield Issue(
            "note", "mmcv",
            f"has no compiled operators: {len(mmcv_ops.OPERATORS)} are computed by torchvision and "
            "PyTorch, the others raise an error when called",
        )  # fmt: skip
    if not torch.cuda.is_available():
        why = " (torch is built for one: see nvidia-smi)" if torch.version.cuda else ""
        kernels = torch.backends.cpu.get_cpu_capability()
        native = ", ".join(name for name, dtype in DTYPES.items() if computes_natively(dtype))
        yield Issue(
            "note", "torch",
            f"no GPU{why}: training in float32 on the CPU ({kernels} kernels, native in {native})",
        )  # fmt: skip
    elif not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Issue(
            "warning", torch.cuda.get_device_name(), "does not compute in bfloat16",
            "--cfg-options optim_wrapper.dtype=float16 optim_wrapper.loss_scale=dynamic",
            "unsupported",
        )  # fmt: skip
    if sys.version_info[:2] not in {(3, minor) for minor in range(10, 14)}:
        yield Issue(
            "warning", "python", f"{sys.version.split()[0]}", "use 3.10 to 3.13", "unsupported"
        )


def check_inference_dtype(config: Config) -> Iterator[Issue]:
    """Yield a note where `inference_dtype` is slower than float32 on this machine's CPU."""
    dtype = inference_dtype(config)
    if not torch.cuda.is_available() and not computes_natively(dtype):
        yield Issue(
            "note", "inference_dtype",
            f"{config.inference_dtype} is emulated on this CPU, far slower than float32",
            "--cfg-options inference_dtype=float32",
            "unsupported",
        )  # fmt: skip


def _requirements() -> list[Requirement]:
    """Return the requirements of setup.py or of the installed distribution, without extras."""
    if SETUP.is_file():
        (listed,) = re.findall(r"install_requires=\[(.*?)\]", SETUP.read_text(), re.DOTALL)
        lines = re.findall(r'"([^"]+)"', listed)
    else:
        try:
            lines = [line for line in requires(DISTRIBUTION) or [] if "extra ==" not in line]
        except PackageNotFoundError:
            lines = []
    return [Requirement(line) for line in lines]
