"""Define operators in plain PyTorch, with kernels that are imported only where they run."""
