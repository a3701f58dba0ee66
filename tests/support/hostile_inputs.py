"""Make broken, hostile or nonsensical files as strangers may supply, the same on every machine.

Each function gives a name and what to write, for one kind of input. None of them may be accepted.
"""

import copy
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from backbones.convnext import ConvNeXtClassifier

ARCH = dict(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8))
CLASSES = ("circle", "square")


def network() -> ConvNeXtClassifier:
    torch.manual_seed(0)
    return ConvNeXtClassifier(ARCH, num_classes=3)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


class Payload:
    """Pickle a call of something; `mark` is the file that would then exist."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(mark: Path) -> dict[str, Payload]:
    line = f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"touch {mark}"),
        "exec": Payload(exec, line),
        "eval": Payload(eval, line),
        "open": Payload(open, str(mark), "w"),
        "touch": Payload(Path.touch, mark),
        "makedirs": Payload(os.makedirs, str(mark)),
        "torch.save": Payload(torch.save, {}, str(mark)),
        "numpy": Payload(np.save, str(mark), np.zeros(1)),
        "getattr": Payload(getattr, Path, "touch"),
        "import": Payload(__import__, "antigravity"),
    }


def checkpoints(mark: Path) -> dict[str, bytes]:
    """Return the content of files by name; the suffix states the format."""
    weights = network().state_dict()
    whole = saved(weights)
    directory = whole.rindex(b"PK\x01\x02")
    record = whole.index(b"PK\x03\x04", 1)
    first = next(iter(weights))
    files = {
        **{f"cut at {share} of 8.pth": whole[: len(whole) * share // 8] for share in range(1, 8)},
        "cut by a byte.pth": whole[:-1],
        "flipped in the pickle.pth": flipped(whole, whole.index(b"data.pkl") + 100),
        "flipped in a tensor.pth": flipped(whole, len(whole) // 2),
        "flipped in the directory.pth": flipped(whole, directory + 18),
        "flipped in a record's name.pth": flipped(whole, record + 32),
        "empty.pth": b"",
        "spaces.pth": b"  \n ",
        "text.pth": b"these are not weights",
        "page.pth": b"<!DOCTYPE html><html>404</html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "zeros.pth": bytes(4096),
        "zip header alone.pth": b"PK\x03\x04",
        "pickle of nothing.pth": b"\x80\x02.",
        "endless pickle.pth": b"\x80\x02" + b"(" * 100_000,
        "deep pickle.pth": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        "claims a long text.pth": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
        "claims many entries.pth": b"\x80\x02r" + struct.pack("<I", 2**31 - 1) + b".",
    }
    for name, members in {
        "no records": {},
        "another zip": {"word/document.xml": b"<w/>"},
        "no data": {"archive/version": b"3\n"},
        "outside": {"../../data.pkl": b"\x80\x02}.", "archive/version": b"3\n"},
    }.items():
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        files[f"{name}.pth"] = file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    files["packed.pth"] = file.getvalue()

    for name, payload in payloads(mark).items():
        files[f"runs {name}.pth"] = saved({"state_dict": weights, "meta": payload})
    for protocol in range(6):
        system = payloads(mark)["os.system"]
        files[f"bare pickle {protocol}.pth"] = pickle.dumps({"a": system}, protocol)
    files["runs as safetensors.safetensors"] = pickle.dumps(payloads(mark)["exec"])

    def changed(name: str, tensor: torch.Tensor) -> bytes:
        return saved({**weights, name: tensor})

    endless: dict = {"model": weights}
    endless["state_dict"] = endless
    hollow: dict = {}
    hollow["state_dict"] = hollow
    deep: dict = weights
    for _ in range(100):
        deep = {"module": deep}
    linear = "stages.0.0.pwconv1.weight"
    shape = weights[linear].shape
    objects = {
        "tensor": torch.zeros(3), "list": list(weights.values()), "number": 3, "none": None,
        "text": "weights", "empty dict": {}, "names alone": dict.fromkeys(weights, "x"),
        "numbers as weights": dict.fromkeys(weights, 1.0), "holds itself": endless,
        "holds itself alone": hollow, "wrapped a hundred times": deep,
        "empty wrapper": {"state_dict": {}}, "numbered": dict(enumerate(weights.values())),
        "one tensor": {first: weights[first]},
        "lacks one": {k: v for k, v in weights.items() if k != linear},
        "one more": {**weights, "stages.0.0.extra": torch.zeros(2)},
        "lists as tensors": {k: v.tolist() for k, v in weights.items()},
        "a stage more": weights | {f"stages.3.1{k[10:]}": v for k, v in weights.items()
                                   if k.startswith("stages.3.0.")},
        "two of everything": weights | {f"teacher.{k}": v for k, v in weights.items()},
    }  # fmt: skip
    files |= {f"{name}.pth": saved(content) for name, content in objects.items()}
    for name, tensor in {
        "nan": torch.full(shape, float("nan")),
        "one inf": torch.zeros(shape).index_fill(1, torch.tensor([2]), float("inf")),
        "minus inf in half": torch.full(shape, -float("inf"), dtype=torch.half),
        "complex": torch.zeros(shape, dtype=torch.complex64),
        "bytes": torch.ones(shape, dtype=torch.uint8),
        "whole numbers": torch.ones(shape, dtype=torch.int64),
        "booleans": torch.ones(shape, dtype=torch.bool),
        "sparse": torch.zeros(shape).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
        "without values": torch.empty(shape, device="meta"),
        "no elements": torch.zeros(0),
        "scalar": torch.tensor(1.0),
        "transposed": torch.zeros(shape[::-1]),
        "of five dimensions": torch.zeros(1, 1, 1, *shape),
        "repeated memory, twice the size": torch.zeros(1).expand(2 * shape[0], shape[1]),
    }.items():
        files[f"{name}.pth"] = changed(linear, tensor)

    plain = save({k: v.contiguous() for k, v in weights.items()})
    header = json.loads(plain[8 : 8 + struct.unpack("<Q", plain[:8])[0]])
    data = plain[8 + struct.unpack("<Q", plain[:8])[0] :]

    def safetensors(change: Callable[[dict], object], tail: bytes = data) -> bytes:
        entries = copy.deepcopy(header)
        text = json.dumps(change(entries) or entries).encode()
        return struct.pack("<Q", len(text)) + text + tail

    def put(**values: object) -> Callable[[dict], object]:
        return lambda entries: entries[linear].update(values)

    files |= {
        **{f"cut at {i} of 4.safetensors": plain[: len(plain) * i // 4] for i in range(1, 4)},
        "cut by a byte.safetensors": plain[:-1],
        "a byte more.safetensors": plain + b"\0",
        "empty.safetensors": b"",
        "endless header.safetensors": struct.pack("<Q", 2**63) + plain[8:],
        "header beyond the file.safetensors": struct.pack("<Q", len(plain)) + plain[8:],
        "no header.safetensors": struct.pack("<Q", 0) + plain[8:],
        "header of zeros.safetensors": plain[:8] + bytes(len(plain) - 8),
        "header is a list.safetensors": safetensors(lambda _: [1, 2]),
        "deep header.safetensors": struct.pack("<Q", 10**5) + b'{"' + b"[" * 10**5,
        "no type.safetensors": safetensors(lambda e: e[linear].pop("dtype") and None),
        "unknown type.safetensors": safetensors(put(dtype="X9")),
        "other type.safetensors": safetensors(put(dtype="F64")),
        "whole numbers.safetensors": safetensors(put(dtype="I32")),
        "larger shape.safetensors": safetensors(put(shape=[shape[0] + 1, shape[1]])),
        "endless shape.safetensors": safetensors(put(shape=[2**40, 2**40])),
        "negative shape.safetensors": safetensors(put(shape=[-shape[0], -shape[1]])),
        "shape of texts.safetensors": safetensors(put(shape=["4", "1"])),
        "turned offsets.safetensors": safetensors(put(data_offsets=[64, 0])),
        "offsets beyond.safetensors": safetensors(put(data_offsets=[2**40, 2**40 + 64])),
        "overlapping.safetensors": safetensors(
            put(data_offsets=header[first]["data_offsets"], shape=header[first]["shape"])
        ),
        "nan.safetensors": safetensors(lambda _: None, b"\xff" * len(data)),
        "names nothing.safetensors": safetensors(lambda e: e.clear()),
        "not UTF-8.safetensors": plain[:12] + b"\xff\xfe" + plain[14:],
    }
    return files


def coco() -> dict:
    """Return a valid annotation file."""
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    return dict(
        images=[dict(id=1, file_name="1.jpg", width=64, height=48)],
        annotations=[
            dict(id=i, image_id=1, category_id=i, bbox=[10, 10, 20, 20], area=400, iscrowd=0,
                 segmentation=square)
            for i in (1, 2)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
    )  # fmt: skip


def annotations() -> dict[str, bytes]:
    """Return the content of COCO annotation files by name."""
    whole = json.dumps(coco()).encode()
    files = {
        "empty": b"", "text": b"no annotations", "list": b"[]", "null": b"null", "number": b"7",
        "binary": bytes(range(256)), "not UTF-8": b'{"images": "\xff\xfe"}',
        "deep": b"[" * 100_000, "deep dicts": b'{"images":' * 20_000,
        "long number": b'{"images": [' + b"9" * 5000 + b"]}",
        **{f"cut at {i} of 5": whole[: len(whole) * i // 5] for i in range(1, 5)},
    }  # fmt: skip

    def plant(name: str, change: Callable[[dict], object]) -> None:
        content = coco()
        change(content)
        files[name] = json.dumps(content).encode()

    for part in ("images", "annotations", "categories"):
        plant(f"no {part}", lambda c, p=part: c.pop(p))
        plant(f"{part} null", lambda c, p=part: c.update({p: None}))
        plant(f"{part} by id", lambda c, p=part: c.update({p: {"1": c[p][0]}}))
        plant(f"{part} numbers", lambda c, p=part: c.update({p: [1, 2]}))
        plant(f"{part} without id", lambda c, p=part: c[p][0].pop("id"))
        plant(f"{part} of one id", lambda c, p=part: c[p].append(c[p][0]))
    rows = dict(image=0, annotation=1, category=2)
    for row, key, value in (
        ("image", "id", [1]), ("image", "id", {}), ("image", "id", None), ("image", "id", 7),
        ("image", "file_name", 5), ("image", "file_name", None), ("image", "width", "64"),
        ("image", "width", None), ("image", "width", 0), ("image", "height", -48),
        ("image", "height", float("nan")), ("image", "width", 10**400), ("image", "width", 1.5),
        ("annotation", "id", [1]), ("annotation", "image_id", {}), ("annotation", "image_id", 99),
        ("annotation", "category_id", "circle"), ("annotation", "category_id", None),
        ("annotation", "category_id", 99), ("annotation", "bbox", None),
        ("annotation", "bbox", []), ("annotation", "bbox", [1, 2, 3]),
        ("annotation", "bbox", [1, 2, "3", 4]), ("annotation", "bbox", {"x": 1}),
        ("annotation", "bbox", [0, 0, float("nan"), 4]), ("annotation", "bbox", "10 10 20 20"),
        ("annotation", "bbox", [0, 0, float("inf"), 4]), ("annotation", "bbox", [10, 10, -5, 5]),
        ("annotation", "bbox", [10, 10, 0, 5]), ("annotation", "bbox", [[1], [2], [3], [4]]),
        ("annotation", "bbox", [1000, 10, 5, 5]), ("annotation", "bbox", [10, 10, 10**400, 5]),
        ("annotation", "area", "400"), ("annotation", "area", None), ("annotation", "area", -1),
        ("annotation", "segmentation", 5), ("annotation", "segmentation", "mask"),
        ("annotation", "segmentation", []), ("annotation", "segmentation", [5]),
        ("annotation", "segmentation", [[1, 2, 3, 4]]), ("annotation", "segmentation", [["a"] * 6]),
        ("annotation", "segmentation", [[1, 2, 3, 4, 5, 6, 7]]),
        ("annotation", "segmentation", [[float("nan")] * 6]), ("annotation", "segmentation", {}),
        ("annotation", "segmentation", dict(size=[48, 64], counts=[1, 2])),
        ("annotation", "segmentation", dict(size=[64, 48], counts="abc")),
        ("annotation", "segmentation", dict(size="48x64", counts="abc")),
        ("annotation", "segmentation", dict(size=[48, 64], counts=None)),
        ("category", "name", None), ("category", "name", 3), ("category", "id", [1]),
        ("category", "id", 9),
    ):  # fmt: skip
        part = ("images", "annotations", "categories")[rows[row]]
        name = f"{key} of {row} {json.dumps(value)[:40]}"
        plant(name, lambda c, p=part, k=key, v=value: c[p][0].update({k: v}))
    return files


def chunk(kind: bytes, content: bytes) -> bytes:
    ends = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + ends


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png(pixels: np.ndarray, width: int, height: int, depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG whose header states another size or depth than its data have."""
    whole = encoded(pixels, "PNG")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return whole[:8] + header + whole[whole.index(b"IDAT") - 4 :]


def images() -> dict[str, bytes]:
    """Return the content of image files by name."""
    ramp = np.linspace(0, 255, 40 * 48 * 3).reshape(40, 48, 3).astype(np.uint8)
    kinds = {kind: encoded(ramp, kind) for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP")}
    files = {
        **{f"cut {kind}": content[: len(content) // 2] for kind, content in kinds.items()},
        **{f"head of {kind}": content[:16] for kind, content in kinds.items()},
        "JPEG without end": kinds["JPEG"][:-2],
        "PNG without its last chunks": kinds["PNG"][:-20],
        "PNG with a flipped bit": flipped(kinds["PNG"], kinds["PNG"].index(b"IDAT") + 40),
        "endless PNG": png(ramp, 60_000, 60_000, colour=2),
        "PNG of no width": png(ramp, 0, 40, colour=2),
        "PNG of fewer rows than it says": png(ramp, 48, 400, colour=2),
        "PNG of 7 bits": png(ramp, 48, 40, depth=7, colour=2),
        "PNG of no known colours": png(ramp, 48, 40, colour=9),
        "endless BMP": kinds["BMP"][:18] + struct.pack("<ii", 70_000, 70_000) + kinds["BMP"][26:],
        "empty": b"", "text": b"a photograph", "zeros": bytes(1000),
        "page": b"<html>404</html>", "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "PNG signature": b"\x89PNG\r\n\x1a\n", "JPEG marker": b"\xff\xd8\xff\xd9",
        "TIFF that points to itself": b"II*\0\x08\0\0\0\x01\0" + bytes(12) + b"\x08\0\0\0",
    }  # fmt: skip
    return files


def label_maps() -> dict[str, bytes]:
    """Return the content of label maps by name, for an image of 48 x 40 and two classes."""
    labels = (np.arange(40 * 48) % 2).reshape(40, 48).astype(np.uint8)
    whole = encoded(labels, "PNG")
    rest = images()
    files = {name: rest[name] for name in ("empty", "text", "endless PNG", "PNG of no width")}
    return files | {
        "cut": whole[: len(whole) // 2],
        "flipped": flipped(whole, whole.index(b"IDAT") + 12),
        "fewer rows than it says": png(labels, 48, 400),
        "colours": encoded(np.repeat(labels[..., None], 3, 2), "PNG"),
        "colours and opacity": encoded(np.repeat(labels[..., None], 4, 2), "PNG"),
        "another size": encoded(labels[:20], "PNG"),
        "turned": encoded(np.ascontiguousarray(labels.T), "PNG"),
        "a class too many": encoded(labels * 7, "PNG"),
        "16 bits": encoded(labels.astype(np.uint16) * 300, "PNG"),
        "fractions": encoded(labels.astype(np.float32) / 2, "TIFF"),
        "negative": encoded(-labels.astype(np.int32), "TIFF"),
        "nothing but ignored": encoded(labels * 255, "PNG"),
    }


# KEY=VALUE arguments for the segmentation demo.
OPTIONS = (
    "model", "=", "=3", "model=3", "model=", "model=None.x", "model.=3", ".model=3", "..=1",
    "train_dataloader=5", "train_dataloader=[1,2]", "train_dataloader.batch_size=two",
    "train_dataloader.batch_size=[1", "model.backbone=ConvNeXt", "model.backbone.type=3",
    "model.backbone.type=None", "model.backbone.type=[ConvNeXt]", "model.backbone.type=os.system",
    "model.backbone.type=builtins.exec", "model.backbone.drop_path=0.1",
    "model.backbone.arch.depths.9=1", "model.decode_head.channels.x=1",
    "model.decode_head.0=1", "custom_hooks.7.type=EMAHook", "custom_hooks.0.type=NoSuchHook",
    "custom_hooks.x.type=EMAHook", "custom_hooks.-1.type=NoSuchHook", "inference_dtype=int8",
    "inference_dtype=[float16]", "inference_dtype=3", "default_scope=3", "default_scope=[a,b]",
    "optim_wrapper.optimizer.lr=nan", "optim_wrapper.optimizer.lr=fast",
    "optim_wrapper.optimizer=AdamW", "optim_wrapper.paramwise_cfg.decay_rat=0.5",
    "optim_wrapper.constructor=[1]", "param_scheduler.0=LinearLR", "param_scheduler.9.end=3",
    "train_cfg=IterBasedTrainLoop", "train_cfg.max_iters=many", "env_cfg=cpu",
    "no_such_key=1", "model.neck.type=FPNN", "__class__=1", "_base_=x", "model.__init__=1",
    "model.decode_head.in_channels=" + "(" * 5000 + ")" * 5000, "a" * 5000 + "=1",
    ".".join(["model"] * 500) + "=1", "\0=\0", "custom_hooks=3", "custom_hooks=[EMAHook]",
    "model=None",
)  # fmt: skip
