"""Describe one dataset of a run: its config and its files, each read once."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mmengine.registry import DATASETS, DefaultScope

from backbones.errors import InputError
from backbones.openmmlab.data.band_pipelines import loaded_bands
from backbones.openmmlab.data.coco_annotations import CocoAnnotations
from backbones.openmmlab.data.coco_file import read_coco
from backbones.openmmlab.data.decoding import Header
from backbones.openmmlab.data.files import one_line, spread
from backbones.openmmlab.data.image_files import read_headers
from backbones.openmmlab.data.issues import Issue
from backbones.openmmlab.data.metainfo import dataset_class, dataset_metainfo
from backbones.openmmlab.walk import nodes, type_name

WHERE_TO_GET = "tools/prepare_data.py makes or downloads it; --data ROOT selects another folder"
Kind = Literal["coco", "panoptic", "label maps", "class folders", "video", "other"]


@dataclass(frozen=True, eq=False)
class DatasetPlan:
    """Describe a dataset that a run reads, without its wrappers.

    Attributes:
        key: its config key.
        splits: those of train, val and test that read it.
        settings: its config.
        pipeline: the transforms of it and of its wrappers, in the order in which they run.
        scope: mmengine's scope, in which its type is looked up.
        limit: how many of its image files are opened; 0 for all.
    """

    key: str
    splits: tuple[str, ...]
    settings: Mapping
    pipeline: tuple[Mapping, ...]
    scope: str
    limit: int

    @property
    def trained_on(self) -> bool:
        """Return whether the training loop reads it."""
        return "train" in self.splits

    @cached_property
    def type(self) -> Any:
        """Return the dataset's class, or None if nothing of its name is registered."""
        try:
            return dataset_class(dict(self.settings), self.scope)
        except (LookupError, RuntimeError, TypeError, ImportError):
            return None

    @cached_property
    def kind(self) -> Kind:
        """Return the layout of its files, if the checks know it."""
        bases = {base.__name__: base for base in getattr(self.type, "__mro__", ())}
        coco = bases.get("CocoDataset")
        if "CocoPanopticDataset" in bases:
            return "panoptic"
        if hasattr(self.type, "check_files"):
            return "class folders"
        if coco is not None and self.type.load_data_list is coco.load_data_list:
            return "coco"
        if "BaseVideoDataset" in bases:
            return "video"
        return "label maps" if "BaseSegDataset" in bases else "other"

    @cached_property
    def metainfo(self) -> dict[str, Any]:
        """Return what is known of its classes; empty if nothing is."""
        if self.type is None or not isinstance(self.settings.get("metainfo") or {}, Mapping):
            return {}
        settings = {key: value for key, value in self.settings.items() if value is not None}
        try:
            return dataset_metainfo(settings, self.scope)
        except InputError:
            return {}  # of class folders that are not there: `check_files` reports it

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """Return its class names in label order; None if nothing states them."""
        names = self.metainfo.get("classes")
        if isinstance(names, str):  # mmengine reads such a file line by line
            path = Path(names)
            names = path.read_text().splitlines() if path.is_file() else None
        return tuple(map(str, names)) if names else None

    @property
    def root(self) -> Path:
        return Path(self._text("data_root"))

    @property
    def annotation_file(self) -> Path | None:
        """Return its annotation file or list of names."""
        name = self._text("ann_file")
        return self.root / name if name else None

    @property
    def folders(self) -> dict[str, Path]:
        """Return its folders, by the keys of `data_prefix`."""
        prefixes = self.settings.get("data_prefix")
        entries = prefixes.items() if isinstance(prefixes, Mapping) else ()
        return {key: self.root / value for key, value in entries if isinstance(value, str)}

    @property
    def is_remote(self) -> bool:
        """Return whether mmengine reads it through a file backend other than the disk."""
        settings = self.settings.get("backend_args") or self.settings.get("file_client_args") or {}
        backend = settings.get("backend", "local")
        return backend not in ("local", "disk") or "://" in self._text("data_root")

    def _text(self, key: str) -> str:
        value = self.settings.get(key)
        return value if isinstance(value, str) else ""

    @cached_property
    def coco(self) -> CocoAnnotations:
        """Return the content of its COCO annotation file.

        Raises:
            InputError: the file is missing, empty, cut off or not in COCO's format.
        """
        path = self.annotation_file
        if path is None:
            raise InputError(
                f"config key {self.key}.ann_file: names no annotation file",
                code="bad-value",
                where=f"{self.key}.ann_file",
            )
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 64))
            end = file.read().rstrip(b" \t\r\n\0")
        if not end.endswith(b"}"):
            what = "cut off; copy or download it again" if end else "empty"
            raise InputError(
                f"{one_line(path)}: the annotation file is {what}", code="broken-file", where=path
            )
        return CocoAnnotations(path, self.classes or ())

    @cached_property
    def file_issues(self) -> tuple[Issue, ...]:
        """Return the error that keeps its files from being read."""
        try:
            return tuple(self._missing() or self._unreadable())
        except InputError as error:
            return (Issue.of(error, self.key),)
        except (OSError, ValueError, LookupError, TypeError) as error:  # a stranger's reader
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            text = f"its files cannot be read ({reason})"
            return (Issue("error", self.key, text, code="bad-annotations"),)

    @property
    def is_readable(self) -> bool:
        """Return whether its files exist and can be checked."""
        return self.kind not in ("video", "other") and not self.is_remote and not self.file_issues

    def _missing(self) -> list[Issue]:
        if self.type is None:
            name = self.settings.get("type")
            text = f"nothing called {name!r} is registered as a dataset"
            return [Issue("error", f"{self.key}.type", text, code="unknown-name")]
        if self.is_remote:
            return []
        if self.kind == "class folders":
            self.type.check_files(self.settings)
            return []
        if not self.root.is_dir():
            text = f"no such data folder ({self.key}.data_root)"
            return [Issue("error", str(self.root), text, WHERE_TO_GET, "not-found")]
        for name, folder in self.folders.items():
            if not folder.is_dir():
                text = f"no such folder ({self.key}.data_prefix.{name})"
                return [Issue("error", str(folder), text, code="not-found")]
        path = self.annotation_file
        if path is not None and not path.exists():
            text = f"no such annotation file ({self.key}.ann_file)"
            return [Issue("error", str(path), text, WHERE_TO_GET, "not-found")]
        return []

    def _unreadable(self) -> list[Issue]:
        if self.kind in ("video", "other") or self.is_remote or self.images:
            return []
        text = "has no image"
        if suffix := getattr(self.built, "img_suffix", "") if self.kind == "label maps" else "":
            text = f"finds no image *{suffix}"
        return [Issue("error", self.key, text, "point it to its images", "no-data")]

    @cached_property
    def built(self) -> Any:
        """Return the dataset itself, of class folders or label maps, without loaded annotations."""
        lazily = {} if self.kind == "class folders" else {"lazy_init": True}
        with DefaultScope.overwrite_default_scope(self.scope):
            return DATASETS.build({**deepcopy(dict(self.settings)), **lazily})

    @cached_property
    def pairs(self) -> list[tuple[Path, Path]]:
        """Return all its images, each with its label map."""
        rows = self.built.load_data_list()
        return [(Path(row["img_path"]), Path(row.get("seg_map_path") or "")) for row in rows]

    @cached_property
    def sampled_pairs(self) -> list[tuple[Path, Path]]:
        """Return the images and label maps that are opened."""
        return spread(self.pairs, self.limit)

    @cached_property
    def images(self) -> list[Path]:
        """Return all its image files; none for a kind that the checks do not know."""
        if self.kind == "coco":
            folder = self.folders.get("img", self.root)
            return [folder / name for name in dict.fromkeys(self.coco.names())]
        if self.kind == "panoptic":
            folder, path = self.folders.get("img", self.root), self.annotation_file
            rows = read_coco(path)[0]["images"] if path else []
            return [folder / row["file_name"] for row in rows]
        if self.kind == "label maps":
            return [image for image, _ in self.pairs]
        if self.kind == "class folders":
            return [Path(path) for path, _ in self.built.samples]
        return []

    @cached_property
    def sampled_images(self) -> list[Path]:
        """Return the images that are opened, spread evenly over all."""
        return spread(self.images, self.limit)

    @cached_property
    def headers_and_issues(self) -> tuple[dict[Path, Header], list[Issue]]:
        """Return the headers of the opened images, and the errors of those without one."""
        return read_headers(self.sampled_images, loaded_bands(self.pipeline) is not None)

    @property
    def headers(self) -> dict[Path, Header]:
        """Return the headers of the opened images."""
        return self.headers_and_issues[0]

    @property
    def scales(self) -> list[tuple[int, int]]:
        """Return the (long, short) sides that its pipeline resizes images to."""
        return pipeline_scales(self.pipeline)


def pipeline_scales(steps: Any) -> list[tuple[int, int]]:
    """Return the (long, short) sides that a pipeline may resize to, its branches included."""
    scales: list[tuple[int, int]] = []
    for _, step in nodes(steps):
        if "Resize" in type_name(step):
            # One before a crop gives the images that crops are cut from.
            given = step.get("scales") or [step.get("scale")]
            scales += [pair for value in given for pair in _pairs(value)]
    return scales


def _pairs(value: Any) -> list[tuple[int, int]]:
    if not isinstance(value, list | tuple):
        return []
    if len(value) == 2 and all(isinstance(side, int) and side > 0 for side in value):
        return [(max(value), min(value))]
    return [pair for each in value for pair in _pairs(each)]
