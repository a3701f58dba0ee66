"""Check that optional packages are installed before they are needed."""

from importlib.util import find_spec

from .errors import InputError

DISTRIBUTIONS = {"cv2": "opencv-python-headless"}


def require(purpose: str, *modules: str) -> None:
    """Raise an error unless these modules are installed.

    Raises:
        InputError: names the missing ones and how to install them.
    """
    missing = [DISTRIBUTIONS.get(name, name) for name in modules if not _found(name)]
    if missing:
        raise InputError(
            f"{purpose}: not installed; pip install {' '.join(missing)}",
            code="missing-package",
            where=missing[0],
        )


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # imported without a spec
        return True
