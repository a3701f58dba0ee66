"""Walk from ResNet to ConvNeXt step by step: section 2 of the paper as one network.

"A ConvNet for the 2020s" (arXiv:2201.03545) turns a ResNet-50 into ConvNeXt-T and a ResNet-200 into
ConvNeXt-B by one change at a time (Figure 2, Tables 10 and 11). Here every change is a choice of a
`Design`, and `STEPS` are the paper's 17 rows. Where its text leaves a detail open, the published
multiply-adds decide; they cannot tell norms and activations apart, and what was chosen there stands
with the choice.
"""

from .designs import REGIMES, STEPS, SWIN, Design, Published, Step, design
from .network import Block, ModernizedResNet, ModernizedResNetClassifier

__all__ = [
    "REGIMES",
    "STEPS",
    "SWIN",
    "Block",
    "Design",
    "ModernizedResNet",
    "ModernizedResNetClassifier",
    "Published",
    "Step",
    "design",
]
