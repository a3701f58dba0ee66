"""Compile the parts of a model that do the same work for every image."""

import torch
from torch import nn

from backbones.openmmlab.tasks import module_at, task_of_model


def compile_parts(
    model: nn.Module,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: str = "inductor",
    mode: str | None = None,
) -> list[str]:
    """Compile the forward pass of the parts that the model's task names; the rest stays eager.

    Sampling, assigning, NMS and pasting follow the boxes: a graph of them would never be reused.
    Parameters and their names stay unchanged. The number of regions is dynamic from the start;
    images become so when a second size comes, so that multi-scale training compiles each part a
    few times and then no more.

    Args:
        model: a detector, segmentor or classifier; changed in place.
        fullgraph, dynamic, backend, mode: as in `torch.compile`; `dynamic` is for the maps.

    Returns:
        The names of the compiled modules.

    Raises:
        InputError: the model belongs to no task.
    """
    task = task_of_model(model)
    compiled: list[str] = []

    def compile_forward(name: str, part: nn.Module | None, dynamic: bool | None) -> None:
        if isinstance(part, nn.ModuleList):  # a cascade's stages
            for i, stage in enumerate(part):
                compile_forward(f"{name}.{i}", stage, dynamic)
        elif part is not None:
            # The heads' loss and predict call forward itself, which `nn.Module.compile` leaves out.
            part.forward = torch.compile(
                part.forward, dynamic=dynamic, fullgraph=fullgraph, backend=backend, mode=mode
            )
            compiled.append(name)

    for name in task.compiled_parts:
        compile_forward(name, module_at(model, name), dynamic)
    for name in task.compiled_region_parts:
        compile_forward(name, module_at(model, name), True)
    return compiled
