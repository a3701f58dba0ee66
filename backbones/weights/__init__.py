"""Load ConvNeXt weights: safe reading, layouts, fitting to a network, the zoo."""

from .conversion import convert, from_official, to_official
from .description import Coverage
from .dialects import DIALECTS, TARGETS, Dialect
from .fitting import adapt_stem, load_pretrained, load_strictly, mismatches
from .reading import check_archive, is_trusted, read_checkpoint, trusted, write_checkpoint
from .recognition import architecture, recognise, state_dict
from .sources import check_path, is_weights, work_offline
from .trained import TRAINED, TrainedModel, find_trained
from .zoo import ZOO, Score, Weights, find, licence_of, published_in

__all__ = [
    "DIALECTS",
    "TARGETS",
    "TRAINED",
    "ZOO",
    "Coverage",
    "Dialect",
    "Score",
    "TrainedModel",
    "Weights",
    "adapt_stem",
    "architecture",
    "check_archive",
    "check_path",
    "convert",
    "find",
    "find_trained",
    "from_official",
    "is_trusted",
    "is_weights",
    "licence_of",
    "load_pretrained",
    "load_strictly",
    "mismatches",
    "published_in",
    "read_checkpoint",
    "recognise",
    "state_dict",
    "to_official",
    "trusted",
    "work_offline",
    "write_checkpoint",
]
