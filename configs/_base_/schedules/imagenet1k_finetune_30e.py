# 30 epochs of 512 images a step, 16 processes with 32 each at 224, 32 with 16 at 384.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=30, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
# A ratio, so that every layer's rate falls to the same share of its own.
param_scheduler = [
    dict(
        type="CosineAnnealingLR",
        begin=0,
        end=30,
        eta_min_ratio=1e-6 / 5e-5,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=0.8, decay_type="layer_wise"),
    optimizer=dict(type="AdamW", lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-8),
)
auto_scale_lr = dict(enable=False, base_batch_size=512)
