#!/usr/bin/env python
"""Look for inputs that the readers trip over, guided by coverage; run by hand.

pip install atheris
python tests/fuzz/search.py checkpoint -max_total_time=600
python tests/fuzz/search.py annotations -timeout=10 -max_len=4096

The first argument is checkpoint, safetensors, annotations, image, label_map or option; the rest
are libFuzzer's. It begins with the inputs of hostile_inputs.py and ends at the first that raises
anything but an InputError, takes longer than -timeout, or is accepted with weights that are not
finite; that one is left beside as crash-* or timeout-*. Keep it in hostile_inputs.py under a name.
"""

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports(include=["backbones", "zipfile", "pickletools", "json"]):
    import test_fuzz as readers
    from support import hostile_inputs as hostile
    from support.running import SEGMENTATION

    from backbones.errors import InputError

FOLDER = Path(tempfile.mkdtemp())
SIZE = (48, 40)


def checkpoint(ending: str) -> Callable[[bytes], None]:
    def read(content: bytes) -> None:
        model, path = hostile.network(), FOLDER / f"input.{ending}"
        path.write_bytes(content)
        readers.load_pretrained(model, path)
        assert all(bool(p.isfinite().all()) for p in model.parameters())

    return read


def annotations(content: bytes) -> None:
    path = FOLDER / "input.json"
    path.write_bytes(content)
    readers.findings_of(path)
    readers.coco.read(FOLDER, path)


def image(content: bytes) -> None:
    path = FOLDER / "input.jpg"
    path.write_bytes(content)
    readers.read_headers([path])
    readers.LoadImage().transform(dict(img_path=str(path)))


def label_map(content: bytes) -> None:
    path = FOLDER / "input.png"
    path.write_bytes(content)
    readers.check_label_map(path, SIZE)


def option(content: bytes) -> None:
    readers.overridden(SEGMENTATION, content.decode(errors="replace"))


def kept(ending: str) -> list[bytes]:
    files = hostile.checkpoints(FOLDER / "executed")
    return [content for name, content in files.items() if name.endswith(ending)]


TARGETS = {
    "checkpoint": (checkpoint("pth"), lambda: kept(".pth")),
    "safetensors": (checkpoint("safetensors"), lambda: kept(".safetensors")),
    "annotations": (annotations, lambda: hostile.annotations().values()),
    "image": (image, lambda: hostile.images().values()),
    "label_map": (label_map, lambda: hostile.label_maps().values()),
    "option": (option, lambda: [text.encode() for text in hostile.OPTIONS]),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    read, begin = TARGETS[sys.argv.pop(1)]
    seeds = FOLDER / "seeds"
    seeds.mkdir()
    for number, content in enumerate(begin()):
        (seeds / str(number)).write_bytes(content)
    warnings.simplefilter("ignore")
    logging.disable()

    def one(content: bytes) -> None:
        try:
            read(content)
        except InputError:
            pass
        assert not (FOLDER / "executed").exists(), "it ran what the pickle asked for"

    atheris.Setup([*sys.argv, str(seeds)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
