"""Operators of the backbones: plain PyTorch definitions, and kernels that are imported only where they run."""
