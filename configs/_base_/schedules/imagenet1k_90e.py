# 90 epochs of 256 images a step, 8 processes with 32 each: torchvision's references of 2017.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=90, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="MultiStepLR", begin=0, end=90, by_epoch=True, milestones=[30, 60], gamma=0.1)
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
)
auto_scale_lr = dict(enable=False, base_batch_size=256)
