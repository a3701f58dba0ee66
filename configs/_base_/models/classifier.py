# Mixup 0.8 or CutMix 1.0, by equal chance, on every batch; label smoothing 0.1.
model = dict(
    type="ImageClassifier",
    num_classes=1000,
    label_smoothing=0.1,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    network=dict(type="ConvNeXtClassifier"),
)
