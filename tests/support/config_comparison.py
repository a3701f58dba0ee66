"""Compare two configs, and misspell every key of one."""

from collections.abc import Container, Iterator
from typing import Any

from mmengine.config import Config

from backbones import InputError
from backbones.openmmlab.config import validate

PROTOCOLS = {("tta",)}  # whose keys are names of protocols, the user's own

# Every difference from OpenMMLab's own config of the same experiment that there may be, and why.
ALLOWED = {
    "model.backbone.type": "our own backbone, registered for both libraries",
    "model.backbone.out_indices": "our default: all four stages",
    "model.backbone.gap_before_final_norm": "an argument of mmpretrain's backbone only",
    "model.backbone.init_cfg.checkpoint": "the official file; theirs is a conversion of it",
    "model.backbone.init_cfg.prefix": "our loader finds the backbone in a file by itself",
    "model.pretrained": "a deprecated argument, None there",
    "train_dataloader.pin_memory": "batches are copied to a GPU without a wait",
    "val_dataloader.pin_memory": "batches are copied to a GPU without a wait",
    "test_dataloader.pin_memory": "batches are copied to a GPU without a wait",
    "model.type": "the same label maps in less memory and time",
    "model.keep_logits": "label maps alone unless test-time augmentation averages the logits",
    "model.decode_head.type": "the same function with a third of the multiply-adds",
    "model.roi_head.bbox_roi_extractor.type": "boxes stay float32 when features are bf16",
    "model.roi_head.mask_roi_extractor.type": "boxes stay float32 when features are bf16",
    "model.rpn_head.type": "scores and deltas in float32 when features are bf16",
    "model.roi_head.type": "the same function, masks of the predicted class alone",
    "model.roi_head.bbox_head.type": "the same function, float32 results; FCs are an argument",
    "model.roi_head.bbox_head.num_shared_fcs": "Shared2FCBBoxHead says it in its name",
    **{
        f"model.roi_head.bbox_head.{stage}.type": "the same function, float32 results"
        for stage in range(3)
    },
    "model.roi_head.mask_head.type": "the same function, one class at a time on demand",
    "tta_model": "test-time augmentation of masks, which mmdet does not have",
    "optim_wrapper.constructor": "the same multipliers, with num_layers from the depths",
    "optim_wrapper.paramwise_cfg.num_layers": "comes from the depths",
    "optim_wrapper.dtype": "bf16 instead of fp16",
    "param_scheduler.0.end": "500 steps of warm-up as in the official detectors, not 1000",
    "param_scheduler.1.begin": "the official segmentors' rate falls during the warm-up too",
    "optim_wrapper.loss_scale": "dynamic is the default",
    "env_cfg.tf32": "a GPU's float32 products, which mmengine leaves to PyTorch",
    "default_hooks.checkpoint.type": "a checkpoint is read back before it takes its name",
    "val_evaluator.type": "faster, the same figures",
    "test_evaluator.type": "faster, the same figures",
    "train_dataloader.dataset.pipeline.0.type": "names an image that cannot be read",
    "val_dataloader.dataset.pipeline.0.type": "names an image that cannot be read",
    "test_dataloader.dataset.pipeline.0.type": "names an image that cannot be read",
    "default_hooks.checkpoint.max_keep_ckpts": "a checkpoint of XL takes 5 GB",
    "log_processor.type": "memory on a machine without a GPU",
    "auto_scale_lr": "the global batch size, which tools/train.py accumulates to",
    "default_hooks.progress": "a bar in a terminal",
    "default_hooks.report": "report.html in the work dir",
    "custom_hooks": "a resumable checkpoint at Ctrl-C, a check of the labels",
    "custom_imports.imports": "ours instead of mmpretrain",
    "tta": "both protocols by name; theirs is compared on its own below",
    **dict.fromkeys(
        [
            "checkpoint_file",
            "crop_size",
            "data_preprocessor",
            "data_root",
            "dataset_type",
            "img_ratios",
            "max_epochs",
            "norm_cfg",
            "optimizer",
            "test_pipeline",
            "train_pipeline",
            "tta_pipeline",
            "vis_backends",
        ],
        "a helper variable of theirs",
    ),
}


def plain(node: Any) -> Any:
    """Return tuples as lists, without `backend_args=None`, which has no effect."""
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items() if (k, v) != ("backend_args", None)}
    return [plain(v) for v in node] if isinstance(node, list | tuple) else node


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Return the paths at which two plain trees differ."""
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        ours, theirs = dict(enumerate(ours)), dict(enumerate(theirs))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours.keys() | theirs.keys():
            inside = f"{path}.{key}" if path else str(key)
            if key in ours and key in theirs:
                yield from differences(ours[key], theirs[key], inside)
            else:
                yield inside
    elif ours != theirs:
        yield path


def key_paths(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Return the path of every key in a tree of dicts and lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from key_paths(value, (*path, key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from key_paths(value, (*path, i))


def rename(config: Config, path: tuple, old: str, new: str) -> None:
    node = config._cfg_dict
    for part in path:
        node = node[part]
    node[new] = node.pop(old)


def accepted_misspellings(config: Config, spared: Container[tuple] = ()) -> list[tuple]:
    """Rename each key of a config in turn and return the paths that `validate` does not refuse.

    Args:
        config: left as it was.
        spared: paths of the dicts whose keys are the user's own.
    """
    accepted = []
    for *parents, key in list(key_paths(config.to_dict())):
        if tuple(parents) in spared or parents[-1:] == ["custom_keys"]:
            continue
        misspelled = f"{key}x"
        rename(config, tuple(parents), key, misspelled)
        try:
            validate(config)
        except InputError as error:
            where = ".".join(map(str, [*parents, misspelled]))
            if (error.code, error.where) != ("unknown-key", where):
                accepted.append((*parents, misspelled))
        else:
            accepted.append((*parents, misspelled))
        rename(config, tuple(parents), misspelled, key)
    return accepted
