# Three box heads of four convolutions on tighter and tighter boxes, and three mask heads.
_base_ = "./mask_rcnn.py"

box_head = {
    **_base_.model.roi_head.bbox_head,
    "num_shared_convs": 4,
    "num_shared_fcs": 1,
    "conv_out_channels": 256,
    "reg_decoded_bbox": True,
    "norm_cfg": dict(type="SyncBN", requires_grad=True),
    "loss_bbox": dict(type="GIoULoss", loss_weight=10.0),
}
rcnn = _base_.model.train_cfg.rcnn
model = dict(
    type="CascadeRCNN",
    rpn_head=dict(
        loss_bbox=dict(_delete_=True, type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0)
    ),
    roi_head=dict(
        type="CascadeMaskRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            {
                **box_head,
                "bbox_coder": {**box_head["bbox_coder"], "target_stds": [xy, xy, wh, wh]},
            }
            for xy, wh in [(0.1, 0.2), (0.05, 0.1), (0.033, 0.067)]
        ],
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[
            {
                **rcnn,
                "assigner": dict(
                    type="MaxIoUAssigner",
                    pos_iou_thr=iou,
                    neg_iou_thr=iou,
                    min_pos_iou=iou,
                    match_low_quality=False,
                    ignore_iof_thr=-1,
                ),
            }
            for iou in (0.5, 0.6, 0.7)
        ],
    ),
)
del box_head, rcnn
