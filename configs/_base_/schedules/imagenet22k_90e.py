# 90 epochs of 4096 images a step, 128 processes with 32 each; fewer accumulate.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=90)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-9, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=5,
        end=90,
        eta_min_ratio=1e-6 / 4e-3,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=1.0, decay_type="layer_wise"),
    optimizer=dict(type="AdamW", lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
)
auto_scale_lr = dict(enable=False, base_batch_size=4096)
