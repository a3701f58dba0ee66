"""Read data sets with one folder of images for each class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from timm.data.imagenet_info import ImageNetInfo
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from backbones.errors import InputError
from backbones.openmmlab.data.band_pipelines import loaded_bands
from backbones.openmmlab.data.files import RASTERS, files_below, folders_in

IMAGENETS = ("imagenet-1k", "imagenet-22k")  # whose folders timm knows


@DATASETS.register_module()
class ClassFolders(ImageFolder):
    """Read torchvision's ImageFolder layout: one folder of images per class in `data_root/split`.

    Args:
        data_root: folder of the data set.
        split: folder in it, such as `train`.
        pipeline: transforms from dict(img_path, label) to what the model takes.
        classes: names of the folders in the order of the labels; `imagenet-1k` or `imagenet-22k`
            for those sets, whose folders are named by WordNet ids; None for the existing folders,
            in the order of their names.
        metainfo: kept with the classes in checkpoints, such as the images' `bands`.

    Attributes:
        metainfo: the given one with `classes`, the names in the order of the labels.

    Raises:
        InputError: folders are missing, are not those of `classes`, or one has no images.
    """

    def __init__(
        self,
        data_root: str,
        *,
        split: str,
        pipeline: Sequence[dict],
        classes: str | Sequence[str] | None = None,
        metainfo: Mapping[str, Any] | None = None,
    ):
        folder = Path(data_root) / split
        self.folders, names = self.folders_and_names(folder, classes)
        self.metainfo = {**(metainfo or {}), "classes": names}
        self.suffixes = _suffixes(pipeline)
        self.pipeline: Any = Compose(pipeline)
        super().__init__(str(folder))

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """Return the class folders and their labels; called by torchvision."""
        _check_folders(Path(directory), self.folders, self.suffixes)
        return list(self.folders), {name: label for label, name in enumerate(self.folders)}

    def make_dataset(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, directory: str, class_to_idx: dict[str, int], *args: Any, **kwargs: Any
    ) -> list[tuple[str, int]]:
        """List images and labels, without hidden files; called by torchvision."""
        return [
            (str(path), label)
            for name, label in class_to_idx.items()
            for path in files_below(Path(directory) / name, *self.suffixes)
        ]

    def get_data_info(self, index: int) -> dict[str, Any]:
        """Return the path and the label of an image, as the data sets of other tasks do."""
        path, label = self.samples[index]
        return dict(img_path=path, label=label)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.pipeline(self.get_data_info(index))

    @staticmethod
    def folders_and_names(
        folder: Path, classes: str | Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the classes' folders and their names, in the order of the labels."""
        if isinstance(classes, str):
            if classes not in IMAGENETS:
                raise InputError(
                    f"classes={classes!r}: known sets are {', '.join(IMAGENETS)}; or list the "
                    "names of the folders, or give None for all existing folders",
                    code="unknown-name",
                    where="classes",
                )
            info = ImageNetInfo(classes)
            names = (info.index_to_description(label) for label in range(info.num_classes()))
            return tuple(info.label_names()), tuple(names)
        if classes is None:
            if not folder.is_dir():
                raise _missing(folder)
            classes = [inside.name for inside in folders_in(folder)]
        return tuple(classes), tuple(classes)

    @classmethod
    def read_classes(cls, dataset: dict) -> tuple[str, ...]:
        """Return the class names of a dataset config."""
        folder = Path(dataset["data_root"]) / dataset["split"]
        return cls.folders_and_names(folder, dataset.get("classes"))[1]

    @classmethod
    def check_files(cls, dataset: dict) -> None:
        """Check the folders of a dataset config.

        Raises:
            InputError: one is missing, belongs to no class, or has no images.
        """
        folder = Path(dataset["data_root"]) / dataset["split"]
        folders = cls.folders_and_names(folder, dataset.get("classes"))[0]
        _check_folders(folder, folders, _suffixes(dataset.get("pipeline")))


def _missing(folder: Path) -> InputError:
    return InputError(
        f"{folder}: no such folder; it should hold a folder of images for each class "
        "(--data ROOT selects another folder)",
        code="not-found",
        where=folder,
    )


def _suffixes(pipeline: Any) -> tuple[str, ...]:
    """Return the suffixes of the images that a pipeline reads."""
    return (*IMG_EXTENSIONS, *RASTERS) if loaded_bands(pipeline) else IMG_EXTENSIONS


def _check_folders(folder: Path, expected: Sequence[str], suffixes: Sequence[str]) -> None:
    if not folder.is_dir():
        raise _missing(folder)
    found = {inside.name for inside in folders_in(folder)}
    lacking = [name for name in expected if name not in found]
    unknown = sorted(found.difference(expected))
    if lacking or unknown or not expected:
        parts = [f"has {len(found)} class folders, the config has {len(expected)} classes"]
        if lacking:
            parts.append(f"missing: {', '.join(lacking[:3])}")
        if unknown:
            parts.append(f"unknown to the config: {', '.join(unknown[:3])}")
        raise InputError(
            f"{folder}: {'; '.join(parts)}; set every dataset's classes (None takes all existing "
            "folders) and model.num_classes",
            code="class-mismatch",
            where=folder,
        )
    for name in expected:
        if not files_below(folder / name, *suffixes):
            raise InputError(
                f"{folder / name}: holds no images", code="no-data", where=folder / name
            )
