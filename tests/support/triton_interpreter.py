"""Mend Triton's interpreter where it differs from a GPU, and count the bytes that kernels move.

Import it in a process with TRITON_INTERPRET=1, before any kernel runs. The interpreter of Triton
3.6 cuts float32 off to bfloat16 where a GPU rounds, and multiplies the bits of bfloat16 operands.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _get_np_dtype

_cast, _dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot
_load, _store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store


def _rounding_cast(self: Any, src: TensorHandle, dst_type: Any) -> TensorHandle:
    if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
        bits = torch.from_numpy(np.array(src.data, np.float32)).bfloat16().view(torch.int16)
        return TensorHandle(bits.numpy().view(np.uint16), tl.bfloat16)
    return _cast(self, src, dst_type)


def _dot_of_bfloat16(
    self: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, precision: Any, imprecise: Any
) -> TensorHandle:
    if a.dtype.scalar == tl.bfloat16:  # products of its numbers are exact in float32
        a, b = (_cast(self, each, tl.float32) for each in (a, b))
    return _dot(self, a, b, d, precision, imprecise)


def _erf(self: Any, x: TensorHandle) -> TensorHandle:
    return TensorHandle(torch.from_numpy(np.array(x.data)).erf().numpy(), x.dtype.scalar)


InterpreterBuilder.cast_impl = _rounding_cast
for name in ("create_fp_trunc", "create_fp_ext"):
    setattr(InterpreterBuilder, name, _rounding_cast)
InterpreterBuilder.create_dot = _dot_of_bfloat16
InterpreterBuilder.create_erf = _erf  # Python's own, one number at a time, takes minutes


@contextmanager
def bytes_moved() -> Iterator[dict[str, int]]:
    """Count the bytes of different addresses that kernels load and store, as an ideal cache moves.

    The counts, under "loaded" and "stored", are there after the block. All kernels in it count as
    one; count each by itself to have what passes between them.
    """
    seen: dict[str, list[np.ndarray]] = {"loaded": [], "stored": []}
    counts: dict[str, int] = {}

    def note(kind: str, pointers: TensorHandle, mask: TensorHandle) -> None:
        size = _get_np_dtype(pointers.get_element_ty()).itemsize
        at = np.unique(np.broadcast_to(pointers.data, np.shape(mask.data))[mask.data])
        seen[kind].append(at * np.uint64(8) + np.uint64(size))

    def load(self: Any, ptrs: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
        note("loaded", ptrs, mask)
        return _load(self, ptrs, mask, *rest)

    def store(self: Any, ptrs: TensorHandle, value: Any, mask: TensorHandle, *rest: Any) -> None:
        note("stored", ptrs, mask)
        return _store(self, ptrs, value, mask, *rest)

    InterpreterBuilder.create_masked_load = load
    InterpreterBuilder.create_masked_store = store
    try:
        yield counts
    finally:
        InterpreterBuilder.create_masked_load = _load
        InterpreterBuilder.create_masked_store = _store
    for kind, addresses in seen.items():
        different = np.unique(np.concatenate(addresses)) if addresses else np.empty(0, np.uint64)
        counts[kind] = int((different % np.uint64(8)).sum())
