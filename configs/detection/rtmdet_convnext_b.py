"""RTMDet-L, ConvNeXt-B (22K, 384), COCO, 100 epochs. Published: 53.1 box AP."""

# mmdet's own recipe with this backbone in the place of mmpretrain's.
_base_ = "mmdet::rtmdet/rtmdet_l_convnext_b_4xb32-100e_coco.py"

custom_imports = dict(imports=["backbones"])
model = dict(
    backbone=dict(
        _delete_=True,
        type="ConvNeXt",
        arch="base",
        out_indices=(1, 2, 3),
        drop_path_rate=0.7,
        layer_scale_init_value=1.0,
        pad_input=True,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://dl.fbaipublicfiles.com/convnext/convnext_base_22k_1k_384.pth",
        ),
    ),
)
paramwise = dict(_delete_=True, decay_rate=0.8, decay_type="layer_wise")
optim_wrapper = dict(constructor="LayerDecayConstructor", paramwise_cfg=paramwise)
