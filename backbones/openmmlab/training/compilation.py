"""torch.compile for the parts of a model whose work is the same for every image."""

import torch
from torch import nn

# Sampling, assigning, NMS and pasting follow the boxes: a graph of them would never be used twice.
STATIC_PARTS = ("backbone", "neck", "rpn_head", "decode_head", "auxiliary_head", "network")
ROI_PARTS = ("bbox_head", "mask_head")


def compile_parts(
    model: nn.Module,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: str = "inductor",
    mode: str | None = None,
) -> list[str]:
    """Compile the forward pass of backbone, neck and heads; the rest of the model stays eager.

    Parameters and their names stay as they are. The number of regions is dynamic from the start;
    images become so when a second size comes, so that multi-scale training compiles each part a
    few times and then no more.

    Args:
        model: a detector, segmentor or classifier; changed in place.
        fullgraph, dynamic, backend, mode: as in `torch.compile`; `dynamic` is for the maps.

    Returns:
        The names of what was compiled.
    """
    options = dict(fullgraph=fullgraph, backend=backend, mode=mode)
    compiled = []

    def compile_forward(name: str, part: nn.Module | None, dynamic: bool | None) -> None:
        if isinstance(part, nn.ModuleList):  # a cascade's stages
            for i, stage in enumerate(part):
                compile_forward(f"{name}.{i}", stage, dynamic)
        elif part is not None:
            # The heads' loss and predict call forward itself, which `nn.Module.compile` leaves out.
            part.forward = torch.compile(part.forward, dynamic=dynamic, **options)
            compiled.append(name)

    for name in STATIC_PARTS:
        compile_forward(name, getattr(model, name, None), dynamic)
    roi_head = getattr(model, "roi_head", None)
    for name in ROI_PARTS:
        compile_forward(f"roi_head.{name}", getattr(roi_head, name, None), True)
    return compiled
