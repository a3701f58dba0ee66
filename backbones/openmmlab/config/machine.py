"""What of a config this machine cannot run, and how many processes its launcher has started."""

import os

import torch
from mmengine.config import Config
from mmengine.logging import print_log

# Where each launcher says how many processes there are.
PROCESS_COUNTS = dict(pytorch="WORLD_SIZE", slurm="SLURM_NTASKS", mpi="OMPI_COMM_WORLD_SIZE")


def process_count(config: Config) -> int:
    """How many processes the config's launcher has started."""
    return int(os.environ.get(PROCESS_COUNTS.get(config.get("launcher"), ""), 1))


def fit_to_machine(config: Config) -> None:
    """Replace what this machine cannot run, saying each in one line.

    SyncBN becomes BN where there is nothing to synchronise with or no GPU to do it on; automatic
    mixed precision becomes float32 and nccl becomes gloo where there is no GPU.
    """
    processes = process_count(config)
    cuda = torch.cuda.is_available()
    if (processes == 1 or not cuda) and _replace_type(config._cfg_dict, "SyncBN", "BN"):
        why = "one process" if processes == 1 else "no GPU"
        print_log(
            f"{why}: SyncBN becomes BN, statistics are those of one process's batch", "current"
        )
    if cuda:
        return
    config.env_cfg.dist_cfg.backend = "gloo"
    optim = config.get("optim_wrapper")
    if optim and optim.get("type") == "AmpOptimWrapper":
        dtype = optim.pop("dtype", "float16")
        optim.pop("loss_scale", None)
        optim.type = "OptimWrapper"
        print_log(f"no GPU: training in float32 instead of {dtype}", "current")


def _replace_type(node: object, old: str, new: str) -> int:
    """Replace `type=old` by `type=new` everywhere; how many there were."""
    if isinstance(node, dict):
        hits = int(node.get("type") == old)
        if hits:
            node["type"] = new
        return hits + sum(_replace_type(value, old, new) for value in node.values())
    if isinstance(node, list | tuple):
        return sum(_replace_type(value, old, new) for value in node)
    return 0
