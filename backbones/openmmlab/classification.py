"""What a classification config needs registered: folders of images, augmentation, model, metric.

The recipe is that of "A ConvNet for the 2020s" (arXiv:2201.03545, appendix A) as its official code
carries it out. timm supplies augmentation, mixing and losses, torchvision the data set, mmengine
the runner and the average of the weights; mmpretrain is not needed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS
from mmengine.structures import LabelData
from PIL import Image, UnidentifiedImageError
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ImageNetInfo,
    Mixup,
    create_transform,
)
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode

from backbones.errors import InputError, UnreadableImage

IMAGENETS = ("imagenet-1k", "imagenet-22k")  # whose folders timm knows


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """A network that turns images into logits, trained on one label for each image.

    Args:
        network: config of a module that takes `num_classes` and turns images (N, 3, H, W) into
            logits (N, num_classes), such as `ConvNeXtClassifier`.
        num_classes: how many classes there are; handed to the network.
        label_smoothing: share of the target that is spread over all classes.
        mixup_alpha, cutmix_alpha: parameters of the beta distributions of mixup and CutMix, 0 for
            without; with both, each batch gets one of them by equal chance. Pairs are formed inside
            a process's batch, which has to be even.
        data_preprocessor: mmengine's; by default batches are only moved to the model's device.

    Raises:
        InputError: the network's config has a num_classes of its own.
    """

    def __init__(
        self,
        network: dict,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        if "num_classes" in network:
            raise InputError("config key model.network.num_classes: set model.num_classes instead")
        self.network = MODELS.build({**network, "num_classes": num_classes})
        self.mixup = None
        self.criterion = LabelSmoothingCrossEntropy(label_smoothing)
        if mixup_alpha or cutmix_alpha:
            self.mixup = Mixup(
                mixup_alpha,
                cutmix_alpha,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )
            self.criterion = SoftTargetCrossEntropy()

    def forward(
        self,
        inputs: Tensor,
        labels: Tensor | None = None,
        img_path: Sequence[str] | None = None,
        mode: str = "tensor",
    ) -> Tensor | dict[str, Tensor] | list[LabelData]:
        """Logits, the loss, or predictions, as mmengine's runner asks for them.

        Args:
            inputs: normalised images (N, 3, H, W).
            labels: (N,) int64, for `loss`.
            img_path: where the images come from, unused.
            mode: `tensor` for logits (N, num_classes), `loss` for dict(loss=...), `predict` for a
                sample with `scores` (num_classes,) and `label` (1,) of each image.
        """
        if mode == "loss":
            return self.loss(inputs, labels)
        logits = self.network(inputs)
        if mode == "tensor":
            return logits
        scores = logits.float().softmax(dim=1)
        return [LabelData(scores=row, label=row.argmax(0, keepdim=True)) for row in scores]

    def loss(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss of a batch, mixed first where the config says so.

        Raises:
            InputError: an odd number of images, which cannot be paired.
        """
        if self.mixup is None:
            return dict(loss=self.criterion(self.network(inputs), labels))
        if len(inputs) % 2:
            raise InputError(
                f"a batch of {len(inputs)} images cannot be mixed in pairs: give "
                "train_dataloader an even batch_size and drop_last=True"
            )
        inputs, targets = self.mixup(inputs, labels)
        return dict(loss=self.criterion(self.network(inputs), targets))


@DATASETS.register_module()
class ClassFolders(ImageFolder):
    """torchvision's ImageFolder: one folder of images for each class, in `data_root/split`.

    Args:
        data_root: folder of the data set.
        split: folder in it, such as `train`.
        pipeline: transforms from dict(img_path, label) to what the model takes.
        classes: names of the folders in the order of the labels; `imagenet-1k` or `imagenet-22k`
            for those sets, whose folders are called by WordNet's numbers; None for the folders that
            are there, in the order of their names.

    Attributes:
        metainfo: `classes`, the names in the order of the labels.

    Raises:
        InputError: the folders are not there, are not those of `classes`, or one has no images.
    """

    def __init__(
        self,
        data_root: str,
        *,
        split: str,
        pipeline: Sequence[dict],
        classes: str | Sequence[str] | None = None,
    ):
        folder = Path(data_root) / split
        self.folders, names = self.folders_and_names(folder, classes)
        self.metainfo = dict(classes=names)
        self.pipeline = Compose(pipeline)
        super().__init__(str(folder))

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """The folders and their labels, which torchvision asks for."""
        _check_folders(Path(directory), self.folders)
        return list(self.folders), {name: label for label, name in enumerate(self.folders)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.samples[index]
        return self.pipeline(dict(img_path=path, label=label))

    @staticmethod
    def folders_and_names(
        folder: Path, classes: str | Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The folders of the classes and what to call them, in the order of the labels."""
        if isinstance(classes, str):
            if classes not in IMAGENETS:
                raise InputError(
                    f"classes={classes!r}: known sets are {', '.join(IMAGENETS)}; or give the "
                    "names of the folders, or None for those that are there"
                )
            info = ImageNetInfo(classes)
            names = (info.index_to_description(label) for label in range(info.num_classes()))
            return tuple(info.label_names()), tuple(names)
        if classes is None:
            if not folder.is_dir():
                raise InputError(
                    f"{folder}: no such folder; it holds a folder of images for each class "
                    "(--data ROOT names another place)"
                )
            classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
        return tuple(classes), tuple(classes)

    @classmethod
    def read_classes(cls, dataset: dict) -> tuple[str, ...]:
        """The class names that a data set of this config has."""
        folder = Path(dataset["data_root"]) / dataset["split"]
        return cls.folders_and_names(folder, dataset.get("classes"))[1]

    @classmethod
    def check_files(cls, dataset: dict) -> None:
        """Look through the folders of a data set of this config.

        Raises:
            InputError: one is missing, none of the classes', or has no images.
        """
        folder = Path(dataset["data_root"]) / dataset["split"]
        _check_folders(folder, cls.folders_and_names(folder, dataset.get("classes"))[0])


def _check_folders(folder: Path, expected: Sequence[str]) -> None:
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; it holds a folder of images for each class "
            "(--data ROOT names another place)"
        )
    found = {path.name for path in folder.iterdir() if path.is_dir()}
    lacking = [name for name in expected if name not in found]
    unknown = sorted(found.difference(expected))
    if lacking or unknown or not expected:
        parts = [f"has {len(found)} folders of classes, the config has {len(expected)}"]
        if lacking:
            parts.append(f"it lacks {', '.join(lacking[:3])}")
        if unknown:
            parts.append(f"the config does not know {', '.join(unknown[:3])}")
        raise InputError(
            f"{folder}: {'; '.join(parts)}; set every dataset's classes (None takes the folders "
            "that are there) and model.num_classes"
        )
    for name in expected:
        inside = (path for path in (folder / name).rglob("*"))
        if not any(path.suffix.lower() in IMG_EXTENSIONS for path in inside):
            raise InputError(f"{folder / name}: no images of this class")


@TRANSFORMS.register_module()
class LoadRGB(BaseTransform):
    """Reads `img_path` into a PIL image `img` in RGB; takes an `img` that is there already.

    Such an image is (H, W, 3) uint8 in BGR order, as OpenCV reads it.

    Raises:
        UnreadableImage: the file is missing, unreadable, cut off or not an image.
    """

    def transform(self, results: dict) -> dict:
        if "img" in results:
            rgb = cv2.cvtColor(results["img"], cv2.COLOR_BGR2RGB)
            return {**results, "img": Image.fromarray(rgb)}
        path = results["img_path"]
        try:
            with open(path, "rb") as file:
                image = Image.open(file).convert("RGB")
        except UnidentifiedImageError:
            raise UnreadableImage(f"{path}: empty, cut off or not an image") from None
        # Pillow's readers of formats fail in ways of their own.
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UnreadableImage(f"{path}: cannot be read ({reason})") from None
        return {**results, "img": image}


@TRANSFORMS.register_module()
class TimmAugment(BaseTransform):
    """timm's augmentation for training: crop, flip, RandAugment, normalisation, random erasing.

    Args:
        input_size: side of the crop in pixels.
        auto_augment: timm's name of a RandAugment policy; None jitters colours instead.
        color_jitter: brightness, contrast and saturation change by up to this, without a policy;
            or one number for each of them, and for the hue (of which 0.5 is the whole circle).
        re_prob: probability of random erasing, with noise.
        scale: share of the image's area that the crop covers, least and most.
        vflip: probability of turning the image upside down.
        interpolation: of the crop's resizing.
        mean, std: of the channels, of values in [0, 1].
    """

    def __init__(
        self,
        input_size: int,
        *,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float | tuple[float, ...] = 0.4,
        re_prob: float = 0.25,
        scale: tuple[float, float] = (0.08, 1.0),
        vflip: float = 0.0,
        interpolation: str = "bicubic",
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
    ):
        self.augment = create_transform(
            input_size,
            is_training=True,
            scale=scale,
            vflip=vflip,
            color_jitter=color_jitter,
            auto_augment=auto_augment,
            interpolation=interpolation,
            mean=tuple(mean),
            std=tuple(std),
            re_prob=re_prob,
            re_mode="pixel",
        )

    def transform(self, results: dict) -> dict:
        return _pack(results, self.augment)


@TRANSFORMS.register_module()
class ResizeForTest(BaseTransform):
    """What the official code evaluates on, normalised.

    Below 384 pixels the short side is resized to 256/224 of `input_size` and the centre is cropped;
    from 384 on the whole image is resized, whatever its ratio.

    Args:
        input_size: side of the result in pixels.
        mean, std: of the channels, of values in [0, 1].
    """

    def __init__(
        self,
        input_size: int,
        *,
        mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, float, float] = IMAGENET_DEFAULT_STD,
    ):
        side = (input_size, input_size) if input_size >= 384 else input_size * 256 // 224
        self.resize = transforms.Compose(
            [
                transforms.Resize(side, interpolation=InterpolationMode.BICUBIC),
                transforms.CenterCrop(input_size),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def transform(self, results: dict) -> dict:
        return _pack(results, self.resize)


def _pack(results: dict, transform: Callable[[Image.Image], Tensor]) -> dict[str, Any]:
    """What `ImageClassifier` takes, of one image: it has no label when it is only predicted."""
    packed = dict(inputs=transform(results["img"]), img_path=str(results["img_path"]))
    if "label" in results:
        packed["labels"] = results["label"]
    return packed


@METRICS.register_module()
class TopAccuracy(BaseMetric):
    """Share of the images, in per cent, whose label is among the k classes of the highest scores.

    Args:
        topk: values of k; one that is not below the number of classes is left out.
        collect_device: where the results of several processes are put together.
        prefix: put before the names `top1`, `top5`, with a slash.
    """

    def __init__(
        self, topk: Sequence[int] = (1, 5), collect_device: str = "cpu", prefix: str | None = None
    ):
        super().__init__(collect_device, prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep whether each image's label is among the best k."""
        scores = torch.stack([sample["scores"] for sample in data_samples])
        labels = data_batch["labels"].to(scores.device)
        kept = [k for k in self.topk if k < scores.shape[1]]
        best = scores.topk(max(kept, default=1)).indices == labels[:, None]  # (N, k)
        hits = {k: best[:, :k].any(dim=1).tolist() for k in kept}
        self.results += [{k: hits[k][i] for k in kept} for i in range(len(labels))]

    def compute_metrics(self, results: list[dict[int, bool]]) -> dict[str, float]:
        """`top1` and so on."""
        return {f"top{k}": 100 * sum(r[k] for r in results) / len(results) for k in results[0]}


@HOOKS.register_module()
class WeightAverageHook(EMAHook):
    """The exponential moving average of the weights as the official code keeps it.

    mmengine's own starts at the weights after the first step and counts the iterations between two
    steps when gradients are accumulated; this one starts at the initial or loaded weights and moves
    once for each step of the optimizer, buffers included, as timm's `ModelEma`. Evaluation in
    training uses the average. A checkpoint holds it as its weights, and the trained ones under
    `ema_state_dict`.

    Args:
        decay: share of the average that stays at each step.
    """

    def __init__(self, decay: float = 0.9999):
        super().__init__(momentum=1 - decay, update_buffers=True)
        self.averaging = False
        self.resumed = False

    def before_run(self, runner) -> None:
        super().before_run(runner)
        self.averaging = self.resumed = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """When training is resumed, take the average from the checkpoint."""
        if runner._resume and "ema_state_dict" in checkpoint:
            super().after_load_checkpoint(runner, checkpoint)
            self.resumed = True
        elif runner._resume:
            print_log("no average in the checkpoint: it starts at the weights", "current")

    def before_train(self, runner) -> None:
        # Weights are initialised and loaded after before_run, where mmengine takes its copy.
        super().before_train(runner)
        if not self.resumed:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())
            # At 0 it would copy the weights; then it moves at every multiple of the interval.
            self.ema_model.steps.fill_(1)
        self.ema_model.interval = runner.optim_wrapper._accumulative_counts
        self.averaging = True

    def _swap_ema_parameters(self) -> None:
        # What is evaluated without training is a checkpoint's weights, an average already.
        if self.averaging:
            super()._swap_ema_parameters()
