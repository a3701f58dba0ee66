"""UperNet, ConvNeXt-T, group norms in place of synchronized batch norms. Not published."""

_base_ = "./upernet_convnext_t.py"

norm_cfg = dict(type="GN", num_groups=32, requires_grad=True)
model = dict(
    decode_head=dict(norm_cfg=dict(_delete_=True, **norm_cfg)),
    auxiliary_head=dict(norm_cfg=dict(_delete_=True, **norm_cfg)),
)
