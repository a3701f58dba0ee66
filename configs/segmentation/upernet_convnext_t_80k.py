"""UperNet, ConvNeXt-T, ADE20K at 512, 80k steps. Not published."""

_base_ = "./upernet_convnext_t.py"

train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type="PolyLR", power=1.0, begin=0, end=80000, eta_min=0.0, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=8000))
