"""Run Triton's kernels in its interpreter, compile them for GPUs, and refuse them elsewhere.

The interpreter takes the place of every kernel of a process, so `interpreted.py` runs in its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.running import REPOSITORY

import backbones
from backbones import InputError
from backbones.convnext import Block

pytest.importorskip("triton", reason="triton comes with PyTorch's CUDA builds")

# What a block of threads may have of a multiprocessor's shared memory (CUDA C++ Programming Guide,
# technical specifications per compute capability), in bytes.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def in_the_interpreter(marks: str) -> None:
    paths = [str(REPOSITORY), str(REPOSITORY / "tests")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", marks]
        + [f"--rootdir={REPOSITORY}", str(Path(__file__).with_name("interpreted.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_values():
    """Run the quick tests of `interpreted.py`."""
    in_the_interpreter("not slow")


@pytest.mark.slow
def test_more_values():
    """Run its slow tests."""
    in_the_interpreter("slow")


def cases(c: int, dtype: torch.dtype):
    """Yield each kernel with its arguments' types, constants and options, as for maps of dtype."""
    from backbones.ops import depthwise_norm_triton as conv
    from backbones.ops import mlp_triton as mlp

    half = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]

    def integers(names: str) -> dict[str, str]:
        return dict.fromkeys(names.split(), "i32")

    def typed(names: str, wide: str, sizes: str) -> dict[str, str]:
        kinds = dict.fromkeys(names.split(), f"*{half}") | dict.fromkeys(wide.split(), "*fp32")
        return kinds | integers(sizes)

    sizes = "groups height width channels"
    wide = "x taps bias norm_weight norm_bias mean rstd"
    types = typed("y conv", wide, sizes) | dict(eps="fp32")
    yield conv.convolve_kernel, types, dict(NORM=True, KEEP=True, FLIPPED=False), conv.tile(c)
    types = typed("x conv", wide.replace("x ", "y "), sizes) | dict(eps="fp32")
    yield conv.convolve_kernel, types, dict(NORM=False, KEEP=False, FLIPPED=True), conv.tile(c)
    types = typed("grad conv grad_conv", "norm_weight mean rstd partial", "pixels each channels")
    tile = {name: size for name, size in conv.tile(c).items() if name != "COLUMNS"}
    yield conv.normalise_backward_kernel, types, {}, tile
    types = typed("grad", "x partial", "rows each height width channels")
    yield conv.weight_gradient_kernel, types, {}, conv.GRADIENT_TILE
    sizes = "pixels tiles inner outer"
    for pixels in (49, 4096):
        ahead = mlp.product_tile(dtype, pixels, c)
        back = mlp.product_tile(dtype, pixels, c, backward=True)
        types = typed("x weight bias hidden", "squares", sizes)
        yield mlp.hidden_kernel, types, dict(PRECISION="ieee"), ahead
        for precision in ["ieee"] + ["tf32"] * (dtype == torch.float32):
            fixed = dict(GRN=True, SCALE=True, RESIDUAL=True, PRECISION=precision)
            types = typed("hidden weight bias", "factor shift scale residual out", sizes)
            yield mlp.output_kernel, types, fixed, ahead
            types = typed("weight hidden grad_hidden activated", "grad scale sums", sizes)
            for grn in (False, True):
                fixed = dict(GRN=grn, SCALE=not grn, PRECISION=precision)
                yield mlp.hidden_gradient_kernel, types, fixed, back
        types = typed("hidden grad_hidden activated", "factor shift towards sums", sizes)
        del types["inner"]
        yield mlp.response_gradient_kernel, types, {}, {**back, **mlp.ELEMENTWISE, "BK": None}


# A width for each size of the tiles, multiples of 16 first: those of ConvNeXt's stages.
WIDTHS = [(96, "bfloat16"), (192, "bfloat16"), (384, "float16"), (768, "float32")]
WIDTHS += [(2048, "float32"), (2816, "bfloat16"), (40, "bfloat16"), (100, "float32")]
WIDTHS += [(200, "float16"), (500, "bfloat16"), (1000, "float32"), (2001, "bfloat16")]
WIDTHS += [(3001, "float32")]


@pytest.mark.slow
@pytest.mark.parametrize(("c", "dtype"), WIDTHS)
def test_convolutions_fit_a_gpu(c, dtype, tmp_path, monkeypatch, capsys):
    """Compile without spilled registers and within a block's shared memory; so the next ones."""
    some = list(cases(c, getattr(torch, dtype)))[:3]
    compile_all(some, c, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("c", "dtype"), [(96, "bfloat16"), (99, "float32")])
def test_gradients_of_weights_fit_a_gpu(c, dtype, tmp_path, monkeypatch, capsys):
    """Compile with tiles that are the same for all widths."""
    some = list(cases(c, getattr(torch, dtype)))[3:4]
    compile_all(some, c, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("c", "dtype"), [(96, "bfloat16"), (768, "float32"), (100, "float32"), (99, "float16")]
)
def test_products_fit_a_gpu(c, dtype, tmp_path, monkeypatch, capsys):
    """Compile where C, or 4C too, is and is no multiple of 16."""
    some = list(cases(c, getattr(torch, dtype)))[4:]
    compile_all(some, c, tmp_path, monkeypatch, capsys)


def compile_all(some, c: int, tmp_path, monkeypatch, capsys) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DUMP_PTXAS_LOG", "1")
    seen = set()
    for kernel, types, constants, tile in some:
        if (key := f"{kernel.__name__} {types} {constants} {tile}") in seen:
            continue  # as for another size of maps
        seen.add(key)
        tile = dict(tile)
        options = {n: tile.pop(n) for n in ("num_warps", "num_stages") if n in tile}
        constants = {**constants, **{n: size for n, size in tile.items() if size is not None}}
        constants = {n: constants[n] for n in kernel.arg_names if n in constants}
        signature = {n: types.get(n, "constexpr") for n in kernel.arg_names}
        assert [n for n, kind in signature.items() if kind == "constexpr"] == list(constants)
        # Tensors begin at multiples of 16 bytes; Triton compiles again for sizes that are such.
        inner, outer = (4 * c, c) if kernel.__name__ == "output_kernel" else (c, 4 * c)
        sizes = dict(channels=c, inner=inner, outer=outer)
        attributes = {
            (i,): [["tt.divisibility", 16]]
            for i, (name, kind) in enumerate(signature.items())
            if kind.startswith("*") or sizes.get(name, 1) % 16 == 0
        }
        source = ASTSource(kernel, signature, constants, attributes)
        for architecture, available in SHARED_MEMORY.items():
            compiled = triton.compile(source, GPUTarget("cuda", architecture, 32), options)
            spilled = re.findall(r"(\d+) bytes spill", capsys.readouterr().out)
            where = (kernel.__name__, architecture, constants, options)
            assert spilled and not any(map(int, spilled)), (*where, spilled)
            assert compiled.metadata.shared <= available, where
            # Code without layouts is the same for all GPUs: the next one's need not begin before.
            source = str(tmp_path / "kernel.ttir")
            Path(source).write_text(compiled.asm["ttir"])


def test_refused_on_a_cpu():
    with pytest.warns(UserWarning, match="not been timed"):
        net = backbones.ConvNeXt("atto", kernels="triton")
    with pytest.raises(InputError) as caught:
        net(torch.zeros(1, 3, 32, 32))
    assert caught.value.code == "unsupported" and caught.value.where == "kernels"


def test_unknown_kernels():
    with pytest.raises(InputError) as caught:
        backbones.ConvNeXt("atto", kernels="cuda")
    assert caught.value.code == "bad-value" and caught.value.where == "kernels"


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError) as caught:
        backbones.ConvNeXtClassifier("atto", kernels="triton")
    assert caught.value.code == "missing-package" and caught.value.where == "triton"


def test_nothing_imports_triton_unasked():
    code = (
        "import sys, backbones.convnext as c; c.ConvNeXt('atto'); sys.exit('triton' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_exporters_see_pytorchs_operators():
    block = Block(8, 0.0, 1.0, False, False, kernels="triton").eval()
    exported = torch.export.export(block, (torch.zeros(1, 5, 5, 8),))
    assert "convnext" not in str(exported.graph) and "conv2d" in str(exported.graph)
