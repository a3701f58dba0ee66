"""UperNet, CLIP ConvNeXt-L (LAION-2B), ADE20K at 640, 160k steps. Not published."""

_base_ = "./upernet_convnext_l_22k.py"

model = dict(
    # CLIP's own statistics of images, not ImageNet's.
    data_preprocessor=dict(mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323]),
    backbone=dict(init_cfg=dict(checkpoint="timm:convnext_large_mlp.clip_laion2b_ft_soup_320")),
)
