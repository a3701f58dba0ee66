"""Turn a tool's options into the config of a run: apply the transforms in the right order.

Every tool that runs a config parses its options, has them prepared here, checks the data and runs.
"""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from mmengine.config import Config
from mmengine.logging import print_log

from backbones.errors import InputError
from backbones.openmmlab.data.own_bands import use_bands
from backbones.openmmlab.data.own_data import use_data
from backbones.openmmlab.tasks import task_of
from backbones.openmmlab.walk import replace_type
from backbones.weights import check_path, read_checkpoint, trusted, work_offline

from .global_batch import batch_norm_note, set_global_batch
from .loading import leave_training_out, load_config
from .machine import fit_to_machine, use_fused_optimizer
from .names import find_config, published_model
from .strategy import check_strategy
from .tracking import track
from .tta import check_tta, use_tta

# `inspect` is for what builds no run: the config is then as it is written.
Purpose = Literal["train", "evaluate", "inspect"]

# Hooks that a run of our tools has, and where they are registered.
HOOKS = {
    "progress": ("ProgressHook", "backbones.openmmlab.training.progress"),
    "report": ("ReportHook", "backbones.openmmlab.report"),
}

# Hooks that options add, which a saved config has to import where nothing else of training is.
ADDED_HOOKS = {
    "AccumulationHook": "backbones.openmmlab.training.micro_batches",
    "SkipBadImagesHook": "backbones.openmmlab.training.skip_bad_images",
}


@dataclass(frozen=True)
class Options:
    """Hold the options of a run, under the names of the tools' arguments.

    Attributes:
        config: the config file.
        cfg_options: dotted keys and their values.
        data: folder of the data set; None for the config's own.
        work_dir: folder for results; by default `work_dirs/` and the config's name.
        launcher: launcher of the ranks.
        local_rank: local rank of this process, from launchers that set no variable.
        checkpoint: checkpoint of the model to evaluate.
        offline: whether downloads are forbidden.
        trust_checkpoint: whether a checkpoint may run code.
        tta: protocol of test-time augmentation.
        resume: whether to continue from the work dir's last checkpoint.
        init_from: checkpoint to initialize from, of other classes too.
        strategy: `ddp` or `fsdp`; None for the config's.
        compile: whether to compile the network.
        track: trackers to send the figures to.
        skip_bad_images: whether unreadable images are replaced by others.
        global_batch: images of an optimizer step; None for the recipe's.
        scale_lr: `linear` or `sqrt`; None leaves the learning rate.
    """

    config: Path
    cfg_options: Mapping[str, Any] | None = None
    data: Path | None = None
    work_dir: Path | None = None
    launcher: str = "none"
    local_rank: int = 0
    checkpoint: str | None = None
    trust_checkpoint: bool = False
    offline: bool = False
    tta: str | None = None
    resume: bool = False
    init_from: str | None = None
    strategy: str | None = None
    compile: bool = False
    track: Sequence[str] = ()
    skip_bad_images: bool = False
    global_batch: int | None = None
    scale_lr: str | None = None

    @classmethod
    def of(cls, arguments: Namespace) -> "Options":
        """Return the options of a run among a tool's parsed arguments.

        A tool that takes a checkpoint and is given none uses the one published for the config.
        """
        given = dict(vars(arguments))
        if given.get("checkpoint", "") is None:
            given["checkpoint"] = published_model(given["config"]).name
        names = [field.name for field in fields(cls) if field.name in given]
        return cls(**{name: given[name] for name in names})


def prepare(options: Options, purpose: Purpose) -> Config:
    """Read a config and change it as the options ask.

    Args:
        options: options of the run.
        purpose: purpose of the config.

    Returns:
        The config, checked key by key; of a run, fitted to this machine and ready for the runner.

    Raises:
        InputError: a key, value, file or combination of options is wrong.
    """
    os.environ.setdefault("LOCAL_RANK", str(options.local_rank))
    if options.offline:
        work_offline()
    config = load_config(options.config, options.cfg_options)
    for given in (options.checkpoint, options.init_from):
        if given:
            check_path(given)
    if options.tta:
        check_tta(config, options.tta)
    config.work_dir = str(options.work_dir or Path("work_dirs") / find_config(options.config).stem)
    config.launcher = options.launcher
    if options.data or config.get("bands"):
        with trusted() if options.trust_checkpoint else nullcontext():
            trained = read_checkpoint(options.checkpoint) if options.checkpoint else None
        if options.data:
            use_data(config, options.data, config.work_dir, trained)
        use_bands(config, options.data, trained, options.skip_bad_images)
    if purpose == "inspect":
        return config
    add_hooks(config)
    use_our_decoder(config)
    if purpose == "evaluate":
        leave_training_out(config)
        config.load_from = options.checkpoint
        if options.tta:
            use_tta(config, options.tta)
    else:
        _prepare_training(config, options)
    fit_to_machine(config)
    return config


def _prepare_training(config: Config, options: Options) -> None:
    config.resume = options.resume
    if options.strategy:
        config.strategy = options.strategy
    if options.compile:
        config.setdefault("compile", True)
    check_strategy(config)
    use_fused_optimizer(config)
    track(config, options.track)
    start_from(config, options.init_from)
    if options.skip_bad_images:
        hooks = config.get("custom_hooks") or []
        config.custom_hooks = [*hooks, dict(type="SkipBadImagesHook")]
    print_log(set_global_batch(config, options.global_batch, options.scale_lr), "current")
    for hook in config.get("custom_hooks") or []:
        if module := ADDED_HOOKS.get(str(hook.get("type"))):
            _import(config, module)
    if note := batch_norm_note(config):
        print_log(note, "current")


def add_hooks(config: Config) -> None:
    """Add the progress bar and the report of our runs to a config from elsewhere.

    A config that imports them itself, or that sets one of these hooks to None, keeps its settings.
    """
    hooks = config.setdefault("default_hooks", {})
    for name, (kind, module) in HOOKS.items():
        if _import(config, module):
            hooks.setdefault(name, dict(type=kind))


def use_our_decoder(config: Config) -> None:
    """Load a stock config's images with `LoadImage`.

    Training and evaluation then decode as prediction does (EXIF orientation of every format), and
    a file that cannot be read is named.
    """
    loaders = [config.get(f"{split}_dataloader") for split in ("train", "val", "test")]
    if replace_type(loaders, "LoadImageFromFile", "LoadImage"):
        _import(config, "backbones.openmmlab.data.loading")


def _import(config: Config, module: str) -> bool:
    """Import a module, and have the saved config do so; return whether it did not before."""
    import_module(module)
    imports: dict[str, Any] = config.get("custom_imports") or dict(
        imports=[], allow_failed_imports=False
    )
    named = imports["imports"]
    named = [named] if isinstance(named, str) else [*named]  # mmseg's Mask2Former names one alone
    missing = module not in named
    imports["imports"] = [*named, module] if missing else named
    config.custom_imports = imports
    return missing


def start_from(config: Config, checkpoint: str | None = None) -> None:
    """Initialize training from a trained model, except for class-dependent layers.

    Args:
        config: changed in place.
        checkpoint: anything `read_checkpoint` reads; the config's `init_from` if None.

    Raises:
        InputError: the config starts from another checkpoint already.
    """
    checkpoint = checkpoint or config.get("init_from")
    if not checkpoint:
        return
    if config.get("load_from"):
        raise InputError(
            f"init_from={checkpoint}: the config already has load_from={config.load_from}; set "
            "one of them to None",
            code="bad-config",
            where="load_from",
        )
    config.init_from = str(checkpoint)
    # The checkpoint fills the backbone; what it was pretrained from need not be fetched.
    config.model[task_of(config).backbone].pop("init_cfg", None)
