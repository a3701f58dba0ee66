"""Fit a config to this machine, and count the ranks that its launcher has started."""

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from backbones import launchers
from backbones.openmmlab.walk import replace_type

# Optimizers of which PyTorch has such a kernel.
FUSED = ("Adam", "AdamW", "SGD")


def process_count(config: Config) -> int:
    """Return how many ranks the config's launcher has started."""
    return launchers.process_count(config.get("launcher", "none"))


def is_first_rank(config: Config) -> bool:
    """Return whether this is the first of the ranks that the config's launcher has started.

    Known before they can talk to one another, which is when data and config are checked.
    """
    return launchers.rank_of(config.get("launcher", "none")) == 0


def use_fused_optimizer(config: Config) -> None:
    """Let the optimizer take its step in one kernel for many weights, where training has a GPU.

    That kernel looks for gradients that are not finite itself, so the host does not wait for them.
    A config that sets `fused` or `foreach` keeps what it says.
    """
    optimizer = (config.get("optim_wrapper") or {}).get("optimizer") or {}
    if torch.cuda.is_available() and optimizer.get("type") in FUSED:
        if not {"fused", "foreach"} & optimizer.keys():
            optimizer["fused"] = True


def fit_to_machine(config: Config) -> None:
    """Replace what this machine cannot run, and log each replacement.

    SyncBN becomes BN where there is nothing to synchronize with or no GPU to do it on; automatic
    mixed precision becomes float32 and nccl becomes gloo where there is no GPU.
    """
    processes = process_count(config)
    cuda = torch.cuda.is_available()
    if (processes == 1 or not cuda) and replace_type(config._cfg_dict, "SyncBN", "BN"):
        why = "one rank" if processes == 1 else "no GPU"
        print_log(f"{why}: SyncBN becomes BN, with statistics of one rank's batch", "current")
    if cuda:
        return
    for split in ("train", "val", "test"):
        loader = config.get(f"{split}_dataloader")
        if isinstance(loader, dict) and loader.get("pin_memory"):
            loader["pin_memory"] = False  # PyTorch would warn that there is nothing to pin for
    environment = config.setdefault("env_cfg", {})
    environment["dist_cfg"] = {**(environment.get("dist_cfg") or {}), "backend": "gloo"}
    optim = config.get("optim_wrapper")
    if optim and optim.get("type") == "AmpOptimWrapper":
        dtype = optim.pop("dtype", "float16")
        optim.pop("loss_scale", None)
        optim.type = "OptimWrapper"
        print_log(f"no GPU: training in float32 instead of {dtype}", "current")
