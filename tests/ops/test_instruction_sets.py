"""Processors that this machine is not: their instruction sets, and PyTorch without oneDNN.

PyTorch, oneDNN and MKL settle on an instruction set when they are first used, so each one has a
process of its own, which runs the tests that are marked `instruction_set`.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.oracles import randomise
from support.running import REPOSITORY
from torch import Tensor

from backbones import fuse
from backbones.convnext import Block, ConvNeXt
from backbones.ops import norm_mlp
from backbones.ops.processor import computes_natively, onednn_linear_applies

# Processor: PyTorch's, oneDNN's and MKL's setting. oneDNN has bf16 from AVX512_CORE on.
SETTINGS = {
    "avx2": ("avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512"),
    "avx512_bf16": ("avx512", "AVX512_CORE_BF16", "AVX512"),
    "default": ("default", "SSE41", "SSE4_2"),
}
NAMES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
WITHOUT_ONEDNN = "import torch; torch.backends.mkldnn.set_flags(_enabled=False); "
PYTEST = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


def python(processor: str, code: str, *arguments: object) -> str:
    """What a process prints that takes this machine for another, or has no oneDNN."""
    environment = dict(os.environ)
    if processor == "without oneDNN":
        code = WITHOUT_ONEDNN + code
    else:
        setting = dict(zip(NAMES, SETTINGS[processor], strict=True))
        wider = setting["ATEN_CPU_CAPABILITY"] == "avx512"
        if wider and torch.backends.cpu.get_cpu_capability() != "AVX512":
            pytest.skip("this processor has no AVX-512")
        environment |= setting
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def files_with_marked_tests() -> list[Path]:
    marker = "@pytest.mark.instruction_set"
    files = (REPOSITORY / "tests").rglob("test_*.py")
    return [path for path in files if path != Path(__file__) and marker in path.read_text()]


def run_marked(processor: str, files: list[Path], marked: str) -> None:
    options = ("-v", "-p", "no:cacheprovider", "-W", "ignore", "-m", marked)
    assert " passed" in python(processor, PYTEST, *options, *files)


def test_operators_without_avx512():
    # Other files import whole libraries, which takes longer than their tests.
    names = {"test_ops.py", "test_convnext.py"}
    files = [path for path in files_with_marked_tests() if path.name in names]
    assert len(files) == len(names)
    run_marked("avx2", files, "instruction_set and not slow")


@pytest.mark.slow
@pytest.mark.parametrize("processor", [*(s for s in SETTINGS if s != "avx2"), "without oneDNN"])
def test_operators_heads_and_graphs(processor):
    files = files_with_marked_tests()
    assert len(files) > 3
    run_marked(processor, files, "instruction_set")


@pytest.mark.slow
def test_whole_files_without_avx512():
    run_marked("avx2", files_with_marked_tests(), "instruction_set or not slow")


def calls(function, *arguments) -> tuple[Tensor, set[str]]:
    """A result and the names of the operators that ran for it, those inside other ones too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = function(*arguments)
    return result, {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_settings_are_read_in_every_call(dtype):
    """Of the eager block and of a graph that was compiled with oneDNN switched on."""
    torch.compiler.reset()
    block = randomise(Block(8, 0.0, 1.0, False, False)).eval()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    x = torch.randn(1, 9, 7, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        assert block.takes_cpu_path(x)
        for function in (block, compiled):
            on, called = calls(function, x)
            assert ("mkldnn::_linear_pointwise" in called) == onednn_linear_applies(x.to(dtype))
            with torch.backends.mkldnn.flags(enabled=False):
                assert not computes_natively(torch.bfloat16)
                off, called = calls(function, x)
                assert "mkldnn::_linear_pointwise" not in called
            torch.testing.assert_close(off, on, rtol=0.05, atol=0.05)
    torch.compiler.reset()


def test_linear_is_pytorchs_where_onednn_is_off():
    x, weight, bias = torch.randn(5, 8), torch.randn(3, 8), torch.randn(3)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        operands = [t.to(dtype) for t in (x, weight, bias)]
        with torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(norm_mlp._linear(*operands), F.linear(*operands))


MOVED = """
import pickle, sys, torch
from backbones.ops.processor import computes_natively
network, x, expected = pickle.load(open(sys.argv[1], "rb"))
print(int(computes_natively(torch.bfloat16)))
with torch.no_grad():
    for ours, theirs in zip(network(x), expected, strict=True):
        print(((ours - theirs).norm() / theirs.norm()).item())
"""


def test_a_network_moves_to_another_machine(tmp_path):
    """Pickled after it has run here; in bf16, against float32."""
    arch = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
    network = randomise(ConvNeXt(arch, layer_scale_init_value=0.5)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        fused = fuse(network, torch.bfloat16)
        here = [
            ((ours - theirs).norm() / theirs.norm()).item()
            for ours, theirs in zip(fused(x), expected, strict=True)
        ]
    (tmp_path / "network.pkl").write_bytes(pickle.dumps((fused, x, expected)))
    printed = python("avx2", MOVED, tmp_path / "network.pkl").split()
    native, *there = map(float, printed)
    assert not native  # by oneDNN's own answer
    for moved, stayed in zip(there, here, strict=True):
        assert 0 < moved <= 2 * stayed
