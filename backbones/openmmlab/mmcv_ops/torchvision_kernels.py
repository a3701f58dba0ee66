"""Import torchvision's compiled operators when one is first called."""


def torchvision_kernels():
    """Return the namespace of torchvision's operators, registered with PyTorch.

    Not imported at the top of a module: it takes a second, and every import of this package calls
    `install`.
    """
    import torch
    import torchvision  # noqa: F401

    return torch.ops.torchvision
