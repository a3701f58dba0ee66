"""Configs: reading, checking and changing them."""

from .loading import (
    DTYPES,
    RunConfig,
    inference_dtype,
    leave_training_out,
    load_config,
    use_tta,
    validate,
)

__all__ = [
    "DTYPES",
    "RunConfig",
    "inference_dtype",
    "leave_training_out",
    "load_config",
    "use_tta",
    "validate",
]
