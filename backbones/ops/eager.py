"""Keep a function out of compiled graphs without losing its signature."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """Have torch.compile call a function as it is: `torch.compiler.disable`, with types."""
    disabled: Any = torch.compiler.disable(function)
    return disabled
