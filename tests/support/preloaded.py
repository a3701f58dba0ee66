"""Import what the tools import, in the process that `forked` forks from."""

from unittest.mock import patch

# To ask for a GPU would make PyTorch refuse one to the forked processes.
with patch("torch.cuda.is_available", lambda: False):
    import backbones.openmmlab.classification
    import backbones.openmmlab.detection
    import backbones.openmmlab.doctor.checks
    import backbones.openmmlab.report
    import backbones.openmmlab.segmentation
    import backbones.openmmlab.training.progress
    import backbones.openmmlab.training.runner  # noqa: F401  registers the runner
