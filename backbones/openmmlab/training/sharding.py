"""Shard weights, gradients and optimizer state over the ranks: FSDP (arXiv:2304.11277).

PyTorch's `fully_shard` (FSDP2) turns every parameter into a DTensor of its own in place, so a
model keeps its class's methods and the names, shapes and dimensions of its parameters: layer decay,
the exclusion of biases from weight decay, and checkpoints are what they are without it.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from backbones.errors import InputError

from .layer_decay import NETWORKS
from .ranks import all_gather_object


def will_be_sharded(config: Config) -> bool:
    """Return whether a run of this config shards its model; evaluations keep it whole."""
    return config.get("strategy") == "fsdp" and bool(config.get("train_cfg"))


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` has sharded the model."""
    return isinstance(model, FSDPModule)


def shard(model: nn.Module) -> None:
    """Shard a model over all ranks in place, by units of ConvNeXt.

    A block, or a downsampling, is gathered when it is computed and divided again after; the rest,
    neck and heads, together for the length of a step. Loading a state dict of whole tensors goes on
    working. A unit at a time is moved to the device, so the device need not hold them all.

    Raises:
        InputError: a parameter without dimensions, which cannot be divided.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise InputError(
                f"--strategy fsdp: {name} has no dimension to shard; use ddp",
                code="unsupported",
                where=name,
            )
    device = torch.device(get_device())
    for module in model.modules():
        if isinstance(module, BaseDataPreprocessor):
            module.to(device)
    mesh = init_device_mesh(device.type, (get_world_size(),))
    for unit in _units(model):
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_load_state_dict_pre_hook(_divide_weights)


def divide_loaded_state(optimizer: Optimizer) -> None:
    """Make the optimizer of a sharded model accept a state of whole tensors."""
    optimizer.register_load_state_dict_pre_hook(_divide_optimizer_state)


# torch.distributed.checkpoint.state_dict has functions for this, but their optimizer states are not
# those of other runs. Tried with torch 2.11: before the first step `get_optimizer_state_dict` takes
# one and saves AdamW's step as 1; keys are names where an optimizer has numbers; a state that lacks
# a parameter without a gradient is refused; and numbered states of whole tensors end in a KeyError,
# or with `broadcast_from_rank0` stay undivided in part.
def whole_states(
    model: nn.Module, optim_wrapper: OptimWrapper, save_optimizer: bool = True
) -> dict[str, Any]:
    """Return weights and optimizer state as an unsharded run has them, on the main rank.

    One tensor at a time is gathered and moved to the CPU; every rank calls it at the same point.
    """
    weights: Any = model.state_dict()
    states: dict[str, Any] = dict(state_dict=_gathered(weights))
    states["state_dict"]._metadata = weights._metadata  # versions of modules, as PyTorch keeps them
    if save_optimizer:
        states["optimizer"] = _gathered(optim_wrapper.state_dict())
    return states


@HOOKS.register_module()
class WholeValidationHook(Hook):
    """Gather the whole weights of a sharded model while it validates.

    They are gathered by the first image. So the ranks need not run the network equally often,
    which sliding windows over images of different sizes would not do.
    """

    priority = "VERY_HIGH"

    def before_val(self, runner) -> None:
        if not min(all_gather_object(len(runner.val_dataloader))):
            raise InputError(
                "--strategy fsdp: a rank has no image to validate; start fewer processes",
                code="no-data",
                where="val_dataloader",
            )
        runner.model.set_reshard_after_forward(False)

    def after_val(self, runner) -> None:
        model = runner.model
        model.set_reshard_after_forward(True)
        # As the root is set up by itself: backward, which needs it first, follows forward.
        model.set_reshard_after_forward(False, recurse=False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _units(model: nn.Module) -> Iterator[nn.Module]:
    for network in [m for m in model.modules() if isinstance(m, NETWORKS)]:
        for stage in network.stages:
            yield from stage.children()
        yield from network.downsample_layers


def _gathered(state: dict) -> dict:
    def gather(value: Tensor) -> Tensor | None:
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        return whole.cpu() if is_main_process() else None

    return cast(dict, apply_to(state, lambda value: isinstance(value, Tensor), gather))


def _divided(tensor: Tensor, like: DTensor) -> Tensor:
    # Every rank has read the whole tensor, and keeps a copy of its part alone.
    part = distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()


def _divide_weights(model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for name, own in model.state_dict().items():
        given = state_dict.get(prefix + name)
        if isinstance(own, DTensor) and given is not None and not isinstance(given, DTensor):
            state_dict[prefix + name] = _divided(given, own)


def _divide_optimizer_state(optimizer: Optimizer, state_dict: dict) -> dict:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
    state = dict(state_dict["state"])
    for number, parameter in zip(numbers, parameters, strict=False):  # PyTorch compares lengths
        state[number] = {
            name: _divided(value, parameter)
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for name, value in state.get(number, {}).items()
        }
    return {**state_dict, "state": state}
