"""Operators: plain PyTorch definitions, and kernels imported only where they run."""
