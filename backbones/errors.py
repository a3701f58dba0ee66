"""Define the one exception whose text addresses the user, and how tools end."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from typing import Literal

from .launchers import rank_of

# The kind of a mistake, for programs and tests: texts may change, codes are stable.
Code = Literal[
    "bad-annotations",  # an annotation file contradicts itself or cannot be used
    "bad-argument",  # an argument is out of range or cannot be combined with another
    "bad-config",  # a config file cannot be executed, or its parts contradict each other
    "bad-image",  # an image or label map is missing, truncated or not an image
    "bad-labels",  # a label map holds values that belong to no class
    "bad-value",  # a config key has a value of the wrong type or out of range
    "broken-file",  # a file is truncated, corrupted, or not in the expected format
    "checkpoint-mismatch",  # the weights are not those of this network
    "class-mismatch",  # classes or their number differ between data, heads and checkpoint
    "download-failed",  # the network, a server or a proxy returned no file or a wrong one
    "lost-process",  # a DataLoader worker or another rank ended prematurely
    "missing-package",  # an optional dependency is not installed
    "no-data",  # nothing is left to train on or to evaluate
    "no-space",  # the disk is full
    "not-finite",  # a loss, gradient or weight is NaN or infinite
    "not-found",  # a file or folder does not exist
    "unknown-key",  # a config key that nothing reads
    "unknown-layout",  # a checkpoint of no known layout
    "unknown-name",  # a class, preset or weights of this name do not exist
    "unsafe-checkpoint",  # loading the file would run code
    "unsupported",  # the combination is not implemented, or this machine cannot run it
    "write-failed",  # a file cannot be written
]


class InputError(ValueError):
    """Report a mistake in what the user supplied: a path, a config key, a checkpoint or data.

    Its text is one line that names the file, key or class and says what to do. The tools print it
    and exit with status 2, without a traceback; in Python it is an ordinary `ValueError`.

    Attributes:
        code: what kind of mistake it is; stays the same when the text is reworded.
        where: the file, config key, argument or class that is wrong, as the text names it; None
            where the text alone tells.
    """

    code: Code = "bad-argument"

    def __init__(self, text: str = "", *, code: Code | None = None, where: object = None):
        super().__init__(text)
        if code is not None:
            self.code = code
        self.where = None if where is None else str(where)


class UnreadableImage(InputError):
    """Report an image or label map that is missing, empty, truncated or of another format."""

    code = "bad-image"


class LabelBeyondClasses(InputError):
    """Report a label map with a value that belongs to none of the model's classes.

    A class of its own: an error of a DataLoader worker arrives with its class and text alone.
    """

    code = "bad-labels"


class Preempted(Exception):
    """Signal that a scheduler asked the run to stop after it has saved its state.

    The tools exit with status 75, EX_TEMPFAIL of sysexits.h: try again later. 143, as a shell gives
    it for SIGTERM, would be that of a run which died of it and saved nothing.
    """


@contextmanager
def reported_in_one_line(resume_hint: str = "") -> Iterator[None]:
    """End a tool's main in one line on stderr after a user's mistake, Ctrl-C or a full disk.

    The line of a mistake ends in its code, in brackets. The exit status is 2 for a mistake, 130 for
    Ctrl-C, as a shell gives it, and 75 for `Preempted`. Of several ranks that stop alike, the first
    one prints.

    Args:
        resume_hint: what to do after Ctrl-C.
    """
    logging.raiseExceptions = False  # a full disk must not print a traceback for each log line
    try:
        yield
    except InputError as error:
        # A data worker's error arrives with the worker's traceback before its text.
        line = str(error).strip().splitlines()[-1]
        line = re.sub(rf"^{InputError.__module__}\.\w+: ", "", line)
        _exit(f"{line} [{error.code}]", 2)
    except KeyboardInterrupt as error:
        _exit("; ".join(filter(None, [str(error) or "interrupted", resume_hint])), 130)
    except Preempted as error:
        _exit("; ".join(filter(None, [str(error), resume_hint])), 75)
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _exit(f"{where}no space left on the device [no-space]", 2)


def _exit(line: str, status: int) -> None:
    if status == 2 or rank_of(None) == 0:
        print(f"error: {line}" if status == 2 else line, file=sys.stderr)
    sys.exit(status)
