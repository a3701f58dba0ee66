# Neither mixup nor CutMix; label smoothing 0.1; a head that starts near zero.
model = dict(
    type="ImageClassifier",
    num_classes=1000,
    label_smoothing=0.1,
    network=dict(type="ConvNeXtClassifier", head_init_scale=0.001),
)
