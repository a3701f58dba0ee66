# DINOv3's linear probing: 40,000 steps of 16 crops, 8 processes with 2 each, in float32.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=40000, val_interval=5000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="CosineAnnealingLR", T_max=40000, begin=0, end=40000, eta_min=0.0, by_epoch=False),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-3),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
