# 300 epochs of 4096 images a step, 32 processes with 128 each; fewer accumulate.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=300, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
# From 0, which mmengine cannot multiply, over 20 epochs, then cosine to 1e-6, all by iterations.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-9, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        begin=20,
        end=300,
        eta_min_ratio=1e-6 / 4e-3,
        convert_to_iter_based=True,
    ),
]
# A decay rate of 1 leaves all learning rates alike; biases, norms and gammas have no weight decay.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="bfloat16",
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(decay_rate=1.0, decay_type="layer_wise"),
    optimizer=dict(type="AdamW", lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
)
auto_scale_lr = dict(enable=False, base_batch_size=4096)
