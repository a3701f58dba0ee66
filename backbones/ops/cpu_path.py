"""Decide whether a CPU kernel may replace PyTorch's operators, for every CPU kernel."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def cpu_path_applies(
    *tensors: Tensor,
    layers: Iterable[tuple[nn.Module, type[nn.Module]]] = (),
    dtypes: tuple[torch.dtype, ...] | None = None,
    gradients: bool | None = None,
    autocast: bool = True,
    compiling: bool = False,
) -> bool:
    """Return whether a CPU kernel may replace plain operators for these tensors.

    Never for an exporter or a tracer, whose readers know PyTorch's operators only.

    Args:
        tensors: inputs and weights; all on the CPU, the first one not empty.
        layers: modules that the kernel passes over and the class each was built as. One of another
            class (replaced, parametrised, quantised) or with a hook has to be called.
        dtypes: those that the kernel computes in; None for any.
        gradients: True for a kernel with gradients alone, False for inference alone, None for both.
        autocast: the kernel casts as autocast would.
        compiling: torch.compile can take the kernel into a graph.
    """
    if not all(tensor.is_cpu for tensor in tensors):
        return False
    if dtypes is not None and any(tensor.dtype not in dtypes for tensor in tensors):
        return False
    if gradients is not None and torch.is_grad_enabled() != gradients:
        return False
    if not autocast and torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() and not (compiling and torch.compiler.is_dynamo_compiling()):
        return False
    # The size comes last: in an exported graph it may depend on the data.
    if torch.jit.is_tracing() or not tensors[0].numel():
        return False
    return unmodified(layers)


def unmodified(layers: Iterable[tuple[nn.Module, type[nn.Module]]]) -> bool:
    """Return whether each layer is of the class it was built as, without hooks."""
    return all(type(layer) is kind and not _hooked(layer) for layer, kind in layers)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
