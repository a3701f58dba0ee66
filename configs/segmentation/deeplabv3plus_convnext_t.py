"""DeepLabV3+, output stride 8, ConvNeXt-T, ADE20K at 512, 160k steps. Not published."""

# UperNet's recipe (arXiv:2201.03545, Table 4) with DeepLabV3+'s heads.
_base_ = "./upernet_convnext_t.py"

model = dict(
    backbone=dict(output_stride=8),
    decode_head=dict(
        _delete_=True,
        type="DepthwiseSeparableASPPHead",
        in_channels=768,
        in_index=3,
        channels=512,
        dilations=(1, 12, 24, 36),
        c1_in_channels=96,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
)
