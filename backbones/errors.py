"""The one exception whose text is meant for the user and not for a developer, and how tools end."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC


class InputError(ValueError):
    """Something the user supplied is wrong: a path, a config key, a checkpoint, an image, data.

    Its text is one line that names the file, key or class and says what to do. The tools print it
    and exit with status 2, without a traceback; in Python it is an ordinary `ValueError`.
    """


class UnreadableImage(InputError):
    """An image or label map is missing, empty, cut off or not one; the text names it."""


class StoppedForNow(Exception):
    """A scheduler asked the run to stop; it has saved what it needs to go on.

    The tools exit with status 75, EX_TEMPFAIL of sysexits.h: try again later. 143, as a shell gives
    it for SIGTERM, would be that of a run which died of it and saved nothing.
    """


@contextmanager
def reported_in_one_line(resume_hint: str = "") -> Iterator[None]:
    """Around a tool's main: a user's mistake, Ctrl-C or a full disk ends it in one line on stderr.

    Exit status 2 for a mistake, 130 for Ctrl-C, as a shell gives it, 75 for `StoppedForNow`. Of
    several processes that stop alike, the first one says so.

    Args:
        resume_hint: what to do after Ctrl-C.
    """
    logging.raiseExceptions = False  # a full disk must not print a traceback for each log line
    try:
        yield
    except InputError as error:
        # A data worker's error arrives with the worker's traceback before its text.
        line = str(error).strip().splitlines()[-1]
        _exit(re.sub(rf"^{InputError.__module__}\.\w+: ", "", line), 2)
    except KeyboardInterrupt as error:
        _exit("; ".join(filter(None, [str(error) or "interrupted", resume_hint])), 130)
    except StoppedForNow as error:
        _exit("; ".join(filter(None, [str(error), resume_hint])), 75)
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _exit(f"{where}no space left on the device", 2)


def _exit(line: str, status: int) -> None:
    if status == 2 or int(os.environ.get("RANK", 0)) == 0:
        print(f"error: {line}" if status == 2 else line, file=sys.stderr)
    sys.exit(status)
