"""Check the pretrained weights that a config names."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.registry import MODELS, DefaultScope

from backbones.errors import InputError
from backbones.openmmlab.data.issues import Issue
from backbones.weights import load_pretrained

from .plan import RunPlan

BACKBONES = ("backbone", "network")


def check_weights(plan: RunPlan) -> Iterator[Issue]:
    """Report how much of the backbone its pretrained file fills; nothing is downloaded."""
    for name in BACKBONES:
        backbone = (plan.config.get("model") or {}).get(name)
        if not isinstance(backbone, Mapping):
            continue
        init = backbone.get("init_cfg")
        if isinstance(init, Mapping) and init.get("type") == "Pretrained":
            yield from _check_backbone(plan, f"model.{name}", backbone, init)


def _check_backbone(plan: RunPlan, key: str, backbone: Mapping, init: Mapping) -> Iterator[Issue]:
    where, source = f"{key}.init_cfg.checkpoint", str(init.get("checkpoint"))
    if (place := _not_here(source)) is not None:
        text = f"{source}: not on this machine; would be downloaded {place}"
        yield Issue("note", where, text, code="not-found")
        return
    scope = plan.config.get("default_scope") or "mmengine"
    settings = {**deepcopy(dict(backbone)), "init_cfg": None}
    try:
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(settings)
    except Exception:  # `check_model` reports it
        return
    if not type(model).__module__.startswith("backbones."):
        if not Path(source).exists():  # mmengine's loader reads it
            text = f"{source}: no such checkpoint file"
            yield Issue("error", where, text, code="not-found")
        return
    options = {k: v for k, v in init.items() if k in ("prefix", "wrapper", "sha256")}
    try:
        coverage = load_pretrained(model, source, **options)
    except InputError as error:
        yield Issue("error", where, str(error), code=error.code)
        return
    total = len(list(model.parameters()))
    new = f", the others ({', '.join(coverage.initial)}) are new" if coverage.initial else ""
    text = f"{source} fills {total - len(coverage.initial)} of the backbone's {total} parameters"
    yield Issue("note", where, text + new, code="checkpoint-mismatch")


def _not_here(source: str) -> str | None:
    """Return the download path of a source that is not on this machine, or None."""
    parts = urlparse(source)
    if parts.scheme in ("timm", "hf-hub"):
        from huggingface_hub import try_to_load_from_cache

        name = f"timm/{parts.path}" if parts.scheme == "timm" else parts.path
        repository = "/".join(name.partition("@")[0].split("/")[:2])
        names = ("model.safetensors", "pytorch_model.bin")
        here = any(isinstance(try_to_load_from_cache(repository, each), str) for each in names)
        return None if here else "to the hub's cache"
    if "://" in source:  # http, or a name of mmengine's such as torchvision://resnet50
        below = [part for part in parts.path.split("/") if part not in ("", ".", "..")]
        below = below or [parts.netloc]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        found = folder.rglob(below[-1]) if folder.is_dir() else ()
        return None if any(found) else f"to {folder}"
    return None
