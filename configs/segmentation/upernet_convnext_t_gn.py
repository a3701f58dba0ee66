"""UperNet with group norms, ConvNeXt-T, ADE20K at 512, 160k steps. Not published."""

_base_ = "./upernet_convnext_t.py"

norm_cfg = dict(type="GN", num_groups=32, requires_grad=True)
model = dict(
    decode_head=dict(norm_cfg=dict(_delete_=True, **norm_cfg)),
    auxiliary_head=dict(norm_cfg=dict(_delete_=True, **norm_cfg)),
)
