"""List the model families of mmdet's and mmseg's wheels, each with one of its configs.

A family is a kind of neck, head or training; its other configs differ in the backbone, the data or
the schedule.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Family:
    """Describe a family and what its config needs besides the new backbone.

    Attributes:
        name: the family's usual name.
        library: `mmdet` or `mmseg`.
        config: the config's path below `configs` in the library's wheel, without the suffix.
        changes: new values of keys below `model`, set after the model has been narrowed.
        backbone: arguments of ConvNeXt other than its size.
        wide: whether its heads keep their widths, which their code fixes.
        size: (height, width) of the images in pixels.
        masks: whether the images have masks; RTMDet's box detector fails on them.
        needs: a package that the library imports and does not declare.
        reason: why it does not work with any ConvNeXt; empty if it does.
    """

    name: str
    library: str
    config: str
    changes: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    wide: bool = False
    size: tuple[int, int] = (128, 160)
    masks: bool = True
    needs: str = ""
    reason: str = ""


def _detector(name: str, config: str, changes: dict | None = None, **options: Any) -> Family:
    return Family(name, "mmdet", config, changes or {}, **options)


def _segmentor(name: str, config: str, changes: dict | None = None, **options: Any) -> Family:
    return Family(name, "mmseg", config, changes or {}, **{"size": (64, 64), **options})


DETECTORS = (
    # Two stages and cascades.
    _detector("Faster R-CNN", "faster_rcnn/faster-rcnn_r50_fpn_1x_coco"),
    _detector(
        "Faster R-CNN DC5",
        "faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco",
        {
            "rpn_head.in_channels": 320,
            "rpn_head.feat_channels": 32,
            "roi_head.bbox_roi_extractor.out_channels": 320,
            "roi_head.bbox_head.in_channels": 320,
        },
    ),
    _detector("RPN", "rpn/rpn_r50_fpn_1x_coco"),
    _detector("Fast R-CNN", "fast_rcnn/fast-rcnn_r50_fpn_1x_coco"),
    _detector("Mask R-CNN", "mask_rcnn/mask-rcnn_r50_fpn_1x_coco"),
    _detector("Cascade R-CNN", "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco"),
    _detector("Cascade Mask R-CNN", "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco"),
    _detector("HTC", "htc/htc_r50_fpn_1x_coco"),
    _detector("HTC without semantic", "htc/htc-without-semantic_r50_fpn_1x_coco"),
    _detector(
        "SCNet",
        "scnet/scnet_r50_fpn_1x_coco",
        {
            "roi_head.feat_relay_head.in_channels": 32,
            "roi_head.feat_relay_head.out_conv_channels": 32,
        },
    ),
    _detector("Libra R-CNN", "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco"),
    _detector("Dynamic R-CNN", "dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco"),
    _detector("Double-Head R-CNN", "double_heads/dh-faster-rcnn_r50_fpn_1x_coco"),
    _detector(
        "Grid R-CNN",
        "grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco",
        {"roi_head.grid_head.point_feat_channels": 8},
    ),
    _detector("GRoIE", "groie/faste-rcnn_r50_fpn_groie_1x_coco"),
    _detector("SABL Faster R-CNN", "sabl/sabl-faster-rcnn_r50_fpn_1x_coco", wide=True),
    _detector("Mask Scoring R-CNN", "ms_rcnn/ms-rcnn_r50_fpn_1x_coco"),
    _detector("PAFPN", "pafpn/faster-rcnn_r50_pafpn_1x_coco"),
    _detector("Seesaw loss", "seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1"),
    _detector("PointRend", "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco"),
    _detector("CrowdDet", "crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman"),
    _detector("Panoptic FPN", "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco"),
    _detector(
        "PISA Faster R-CNN",
        "pisa/faster-rcnn_r50_fpn_pisa_1x_coco",
        # Untrained scores are below the threshold of the boxes that it matches.
        {"train_cfg.rcnn.sampler.score_thr": 0.0},
    ),
    _detector("FPN-CARAFE", "carafe/faster-rcnn_r50_fpn-carafe_1x_coco"),
    _detector("Deformable RoI pooling", "dcn/faster-rcnn_r50_fpn_dpool_1x_coco"),
    _detector("Modulated deformable RoI pooling", "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco"),
    _detector("Cascade RPN", "cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco"),
    _detector("GA-RPN", "guided_anchoring/ga-rpn_r50_fpn_1x_coco"),
    _detector("GA-Faster R-CNN", "guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco"),
    _detector("Sparse R-CNN", "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco"),
    _detector(
        "QueryInst",
        "queryinst/queryinst_r50_fpn_1x_coco",
        {
            "test_cfg.rcnn.max_per_img": 20,
            # Untrained boxes lie outside the image, where mmdet cannot paste a mask on a CPU.
            "roi_head.bbox_head.5.bbox_coder.clip_border": True,
        },
    ),
    # One stage.
    _detector("GA-RetinaNet", "guided_anchoring/ga-retinanet_r50_fpn_1x_coco"),
    _detector("RetinaNet", "retinanet/retinanet_r50_fpn_1x_coco"),
    _detector("Libra RetinaNet", "libra_rcnn/libra-retinanet_r50_fpn_1x_coco"),
    _detector("PISA RetinaNet", "pisa/retinanet-r50_fpn_pisa_1x_coco"),
    _detector("SABL RetinaNet", "sabl/sabl-retinanet_r50_fpn_1x_coco"),
    _detector("GHM", "ghm/retinanet_r50_fpn_ghm-1x_coco"),
    _detector("FreeAnchor", "free_anchor/freeanchor_r50_fpn_1x_coco"),
    _detector("NAS-FPN", "nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco"),
    _detector("FPG", "fpg/retinanet_r50_fpg_crop640_50e_coco", size=(128, 128)),
    _detector("FSAF", "fsaf/fsaf_r50_fpn_1x_coco"),
    _detector("FCOS", "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco"),
    _detector(
        "NAS-FCOS, FCOS head", "nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco"
    ),
    _detector("NAS-FCOS", "nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco"),
    _detector("ATSS", "atss/atss_r50_fpn_1x_coco"),
    _detector("DyHead", "dyhead/atss_r50_fpn_dyhead_1x_coco"),
    _detector("PAA", "paa/paa_r50_fpn_1x_coco", needs="scikit-learn"),
    _detector("GFL", "gfl/gfl_r50_fpn_1x_coco"),
    _detector("LD", "ld/ld_r18-gflv1-r101_fpn_1x_coco"),
    _detector(
        "LAD",
        "lad/lad_r50-paa-r101_fpn_2xb8_coco_1x",
        {
            "teacher_ckpt": None,
            "teacher_backbone": dict(type="ConvNeXt", arch="atto", _delete_=True),
        },
        needs="scikit-learn",
    ),
    _detector("VFNet", "vfnet/vfnet_r50_fpn_1x_coco"),
    _detector("TOOD", "tood/tood_r50_fpn_1x_coco"),
    _detector("DDOD", "ddod/ddod_r50_fpn_1x_coco"),
    _detector("AutoAssign", "autoassign/autoassign_r50-caffe_fpn_1x_coco"),
    _detector("FoveaBox", "foveabox/fovea_r50_fpn_4xb4-1x_coco"),
    _detector("FoveaBox-align", "foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco"),
    _detector("RepPoints", "reppoints/reppoints-moment_r50_fpn_1x_coco"),
    _detector(
        "CenterNet",
        "centernet/centernet_r18_8xb16-crop512-140e_coco",
        {"neck.in_channels": 320, "neck.num_deconv_filters": (32, 32, 64)},
        backbone=dict(contiguous_maps=True),
    ),
    _detector(
        "CenterNet with DCNv2",
        "centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco",
        {"neck.in_channels": 320, "neck.num_deconv_filters": (32, 32, 64)},
        backbone=dict(contiguous_maps=True),
    ),
    _detector("CenterNet-update", "centernet/centernet-update_r50_fpn_8xb8-amp-lsj-200e_coco"),
    _detector("YOLOF", "yolof/yolof_r50-c5_8xb8-1x_coco", {"neck.in_channels": 320}),
    _detector(
        "YOLOv3",
        "yolo/yolov3_d53_8xb8-320-273e_coco",
        {"neck.in_channels": [320, 160, 80], "bbox_head.in_channels": [512, 256, 128]},
        backbone=dict(out_indices=(1, 2, 3)),
    ),
    _detector("YOLOX", "yolox/yolox_tiny_8xb8-300e_coco", backbone=dict(out_indices=(1, 2, 3))),
    _detector(
        "RTMDet",
        "rtmdet/rtmdet_tiny_8xb32-300e_coco",
        backbone=dict(out_indices=(1, 2, 3), pad_input=True),
        masks=False,
    ),
    _detector(
        "SSD",
        "ssd/ssd300_coco",
        {
            "neck.in_channels": (160, 320),
            "neck.out_channels": (160, 320, 512, 256, 256, 256),
            "bbox_head.in_channels": (160, 320, 512, 256, 256, 256),
        },
        backbone=dict(out_indices=(2, 3), output_stride=16),
        size=(320, 320),
        reason="prediction reads `loss_cls`, which mmdet's SSDHead lacks: any backbone fails",
    ),
    # Instances and panoptics.
    _detector("YOLACT", "yolact/yolact_r50_1xb8-55e_coco"),
    _detector("SOLO", "solo/solo_r50_fpn_1x_coco"),
    _detector("Decoupled SOLO", "solo/decoupled-solo_r50_fpn_1x_coco"),
    _detector("SOLOv2", "solov2/solov2_r50_fpn_1x_coco"),
    _detector("SOLOv2 light with DCN", "solov2/solov2-light_r50-dcn_fpn_ms-3x_coco"),
    _detector("CondInst", "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance", wide=True),
    _detector("BoxInst", "boxinst/boxinst_r50_fpn_ms-90k_coco", wide=True),
    _detector(
        "RTMDet-Ins",
        "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco",
        backbone=dict(out_indices=(1, 2, 3), pad_input=True),
    ),
    _detector("MaskFormer panoptic", "maskformer/maskformer_r50_ms-16xb1-75e_coco"),
    _detector("Mask2Former instance", "mask2former/mask2former_r50_8xb2-lsj-50e_coco"),
    _detector("Mask2Former panoptic", "mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic"),
    # Transformers.
    _detector("DETR", "detr/detr_r50_8xb2-150e_coco", {"test_cfg.max_per_img": 20}),
    _detector("Conditional DETR", "conditional_detr/conditional-detr_r50_8xb2-50e_coco", wide=True),
    _detector("DAB-DETR", "dab_detr/dab-detr_r50_8xb2-50e_coco"),
    _detector(
        "Deformable DETR",
        "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
        {"bbox_head.embed_dims": 32},
    ),
    _detector(
        "Deformable DETR, two-stage",
        "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco",
        wide=True,
    ),
    _detector("DINO", "dino/dino-4scale_r50_8xb2-12e_coco", {"bbox_head.embed_dims": 32}),
    _detector(
        "DDQ-DETR",
        "ddq/ddq-detr-4scale_r50_8xb2-12e_coco",
        {"bbox_head.embed_dims": 32, "decoder.num_layers": 2},
    ),
    # Tied to another backbone or package.
    _detector(
        "Grounding DINO",
        "grounding_dino/grounding_dino_r50_scratch_8xb2_1x_coco",
        {"encoder.num_cp": 0},  # one layer is left, fewer than it would checkpoint
        wide=True,
        reason="mmdet's BertModel calls `batch_encode_plus`, which transformers 5 lacks, and its "
        "text encoder's weights are downloaded: any backbone fails",
    ),
    _detector(
        "DetectoRS RFP",
        "detectors/cascade-rcnn_r50-rfp_1x_coco",
        {"neck.rfp_backbone.pretrained": None, "neck.rfp_backbone.rfp_inplanes": 32},
        reason="its neck feeds its output back into the layers of a DetectoRS_ResNet",
    ),
    _detector(
        "DetectoRS RFP with SAC",
        "detectors/detectors_cascade-rcnn_r50_1x_coco",
        {"neck.rfp_backbone.pretrained": None, "neck.rfp_backbone.rfp_inplanes": 32},
        reason="its neck feeds its output back into the layers of a DetectoRS_ResNet",
    ),
    _detector(
        "TridentNet",
        "tridentnet/tridentnet_r50-caffe_1x_coco",
        reason="the detector reads the three branches of a TridentResNet",
    ),
)
SEGMENTORS = (
    _segmentor("UPerNet", "upernet/upernet_r50_4xb4-80k_ade20k-512x512"),
    _segmentor("Semantic FPN", "sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512"),
    _segmentor("Semantic PointRend", "point_rend/pointrend_r50_4xb4-160k_ade20k-512x512"),
    _segmentor(
        "FastFCN",
        "fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512",
        {"auxiliary_head.in_channels": 160},
    ),
    _segmentor("K-Net, UPerNet", "knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512"),
    _segmentor("K-Net, FCN", "knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512"),
    _segmentor("SegFormer", "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512"),
    _segmentor(
        "Segmenter, mask transformer",
        "segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512",
        {
            "decode_head.in_channels": 320,
            "decode_head.channels": 32,
            "decode_head.num_heads": 2,
        },
        backbone=dict(out_indices=(3,)),
    ),
    _segmentor(
        "Segmenter, linear",
        "segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512",
        {"decode_head.in_channels": 320, "decode_head.channels": 320},
        backbone=dict(out_indices=(3,)),
    ),
    _segmentor(
        "SETR naive",
        "setr/setr_vit-l_naive_8xb2-160k_ade20k-512x512",
        backbone=dict(out_indices=(0, 1, 2, 3)),
    ),
    _segmentor(
        "SETR PUP",
        "setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512",
        backbone=dict(out_indices=(0, 1, 2, 3)),
    ),
    _segmentor(
        "SETR MLA",
        "setr/setr_vit-l_mla_8xb2-160k_ade20k-512x512",
        backbone=dict(out_indices=(0, 1, 2, 3)),
        reason="its neck adds four maps of one resolution, as a vision transformer's are",
    ),
    _segmentor("OCRNet, FCN first", "ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024"),
    _segmentor("OCRNet, HRNet's form", "ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512"),
    _segmentor("Mask2Former", "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512"),
    _segmentor("MaskFormer", "maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512"),
    _segmentor("FCN", "fcn/fcn_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("PSPNet", "pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("DeepLabV3", "deeplabv3/deeplabv3_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("DeepLabV3+", "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("ANN", "ann/ann_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("APCNet", "apcnet/apcnet_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("CCNet", "ccnet/ccnet_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("DANet", "danet/danet_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("DNLNet", "dnlnet/dnl_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("EMANet", "emanet/emanet_r50-d8_4xb2-80k_cityscapes-512x1024"),
    _segmentor("EncNet", "encnet/encnet_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("GCNet", "gcnet/gcnet_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("ISANet", "isanet/isanet_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor("NonLocal", "nonlocal_net/nonlocal_r50-d8_4xb4-160k_ade20k-512x512"),
    _segmentor(
        "DMNet",
        "dmnet/dmnet_r50-d8_4xb4-160k_ade20k-512x512",
        backbone=dict(contiguous_maps=True),
    ),
    _segmentor(
        "PSANet", "psanet/psanet_r50-d8_4xb4-160k_ade20k-512x512", {"decode_head.mask_size": (9, 9)}
    ),
    _segmentor(
        "SegNeXt",
        "segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512",
        {"decode_head.ham_channels": 32, "decode_head.ham_kwargs.MD_R": 16},
    ),
    _segmentor(
        "BiSeNetV1",
        "bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024",
        {
            "backbone.context_channels": (80, 160, 320),
            "backbone.spatial_channels": (64, 64, 64, 80),
            "auxiliary_head.0.in_channels": 80,
            "auxiliary_head.1.in_channels": 80,
        },
    ),
    _segmentor(
        "LR-ASPP",
        "mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024",
        {"decode_head.in_channels": (40, 80, 320)},
        backbone=dict(out_indices=(0, 1, 3), output_stride=8),
        size=(416, 416),  # its pooling window of 49 x 49 must fit the map
    ),
    _segmentor(
        "ICNet",
        "icnet/icnet_r50-d8_4xb2-80k_cityscapes-832x832",
        reason="its backbone calls the stem and the layers of a ResNet one by one",
    ),
    _segmentor(
        "DPT",
        "dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512",
        reason="its head reads the tokens and the class token of a vision transformer",
    ),
)
FAMILIES = DETECTORS + SEGMENTORS
