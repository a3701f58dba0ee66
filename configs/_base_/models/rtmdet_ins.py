"""RTMDet-Ins-L with what mmdet's RTMDet with ConvNeXt-B changes: norms, optimizer, RGB images."""

_base_ = "mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco.py"

norm_cfg = dict(type="GN", num_groups=32)
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg),
)
optim_wrapper = dict(
    constructor="LayerDecayConstructor",
    paramwise_cfg=dict(_delete_=True, decay_rate=0.8, decay_type="layer_wise"),
    optimizer=dict(lr=0.001),
)
