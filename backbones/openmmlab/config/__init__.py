"""Read, check and change configs."""

from .loading import DTYPES, RunConfig, inference_dtype, leave_training_out, load_config
from .tta import use_tta
from .validation import notes, validate

__all__ = [
    "DTYPES",
    "RunConfig",
    "inference_dtype",
    "leave_training_out",
    "load_config",
    "notes",
    "use_tta",
    "validate",
]
