"""UperNet, roadmap step kernel_9, ADE20K at 512, 160k steps. Not published."""

_base_ = "./upernet_roadmap.py"

model = dict(backbone=dict(step="kernel_9"))
