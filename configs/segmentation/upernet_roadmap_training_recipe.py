"""UperNet, roadmap step training_recipe, ADE20K at 512, 160k steps. Not published."""

_base_ = "./upernet_roadmap.py"

model = dict(backbone=dict(step="training_recipe"))
