"""Load ConvNeXt weights: safe reading, layouts, fitting to a network, the zoo."""

from .conversion import convert, from_official, to_official
from .description import Coverage
from .dialects import DIALECTS, TARGETS, Dialect
from .fitting import adapt_stem, load_pretrained, load_strictly, mismatches
from .reading import check_archive, read_checkpoint, trusted, write_checkpoint
from .recognition import architecture, recognise, state_dict
from .sources import check_path
from .zoo import ZOO, Score, Weights, find, licence_of, published_in

__all__ = [
    "DIALECTS",
    "TARGETS",
    "ZOO",
    "Coverage",
    "Dialect",
    "Score",
    "Weights",
    "adapt_stem",
    "architecture",
    "check_archive",
    "check_path",
    "convert",
    "find",
    "from_official",
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
    "write_checkpoint",
]
