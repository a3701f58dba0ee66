"""List the keys that are known to be read from the untyped dicts of a config."""

from dataclasses import fields

from backbones.roadmap import Design

# What the runner, our tools and mmdet's and mmseg's read at the top of a config. Anything else
# there is a variable that the config uses itself.
TOP_KEYS = {
    "model", "work_dir", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg",
    "val_cfg", "test_cfg", "auto_scale_lr", "optim_wrapper", "param_scheduler", "val_evaluator",
    "test_evaluator", "default_hooks", "custom_hooks", "data_preprocessor", "load_from", "resume",
    "launcher", "env_cfg", "log_processor", "log_level", "visualizer", "vis_backends",
    "default_scope", "randomness", "experiment_name", "custom_imports", "model_wrapper_cfg",
    "compile", "activation_checkpointing", "efficient_conv_bn_eval", "runner_type", "tta",
    "tta_model", "tta_pipeline", "inference_dtype", "init_from", "strategy", "sync_bn",
    "find_unused_parameters", "detect_anomalous_params", "broadcast_buffers", "bands",
}  # fmt: skip

DATALOADER_KEYS = {
    "batch_size", "num_workers", "persistent_workers", "pin_memory", "drop_last", "sampler",
    "batch_sampler", "dataset", "collate_fn", "prefetch_factor", "timeout", "worker_init_fn",
    "num_batch_per_epoch",
}  # fmt: skip
# The heads of mmdet share these dicts: a key of one of them is taken for known in all.
ASSIGNMENT_KEYS = {"assigner", "sampler", "allowed_border", "pos_weight", "debug"}
GUIDED_KEYS = {"ga_assigner", "ga_sampler", "center_ratio", "ignore_ratio"}
POINT_KEYS = {"num_points", "oversample_ratio", "importance_sample_ratio"}
RPN_KEYS = ASSIGNMENT_KEYS | GUIDED_KEYS
PROPOSAL_KEYS = {"nms_pre", "max_per_img", "nms", "min_bbox_size", "nms_post"}
RCNN_KEYS = ASSIGNMENT_KEYS | POINT_KEYS | {
    "mask_size", "mask_thr_binary", "pos_radius", "max_num_grid", "isr", "carl", "dynamic_rcnn",
}  # fmt: skip
REFINEMENT_KEYS = {"subdivision_steps", "subdivision_num_points", "scale_factor"}  # PointRend
LOOP_KEYS = {"by_epoch", "max_epochs", "max_iters", "val_begin", "val_interval", "fp16",
             "dynamic_intervals"}  # fmt: skip

# Untyped dicts at the top of a config.
TOP_DICTS = {
    "train_cfg": LOOP_KEYS,
    "val_cfg": {"fp16"},
    "test_cfg": {"fp16"},
    "train_dataloader": DATALOADER_KEYS,
    "val_dataloader": DATALOADER_KEYS,
    "test_dataloader": DATALOADER_KEYS,
}

# Untyped dicts by the end of their path; a list's index is written [].
UNTYPED_KEYS = {
    "train_cfg.rpn": RPN_KEYS,
    "train_cfg.rpn.[]": RPN_KEYS,
    "train_cfg.rpn_proposal": PROPOSAL_KEYS,
    "train_cfg.rcnn": RCNN_KEYS,
    "train_cfg.rcnn.[]": RCNN_KEYS,
    "train_cfg": RPN_KEYS | POINT_KEYS | {
        "rpn", "rpn_proposal", "rcnn", "init", "refine", "initial_epoch", "initial_assigner",
        "reg_assigner", "alpha", "beta", "neg_pos_ratio", "smoothl1_beta", "augments", "isr",
        "carl",
    },
    "test_cfg.rpn": PROPOSAL_KEYS,
    "test_cfg.rcnn": REFINEMENT_KEYS | {
        "score_thr", "nms", "max_per_img", "mask_thr_binary"
    },
    "test_cfg": PROPOSAL_KEYS | REFINEMENT_KEYS | {
        "rpn", "rcnn", "mode", "crop_size", "stride", "score_thr", "mask_thr", "mask_thr_binary",
        "filter_thr", "iou_thr", "conf_thr", "object_mask_thr", "kernel", "sigma", "chunked_size",
        "panoptic", "panoptic_on", "semantic_on", "instance_on", "max_per_image",
        "filter_low_score", "local_maximum_kernel", "corner_topk", "distance_threshold", "top_k",
        "topk", "score_voting", "multi_label",
    },
    "data_preprocessor.test_cfg": {"size", "size_divisor"},
    "data_prefix": {
        "img", "seg", "img_path", "seg_map_path", "img_path2", "depth_map_path", "sub_data_root",
        "anno",
    },
    "filter_cfg": {"filter_empty_gt", "min_size", "bbox_min_size"},
    "metainfo": {
        "classes", "palette", "label_map", "reduce_zero_label", "base_classes", "novel_classes",
        "bands",
    },
    "auto_scale_lr": {"enable", "base_batch_size"},
    "randomness": {"seed", "diff_rank_seed", "deterministic"},
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit", "tf32"},
    "mp_cfg": {"mp_start_method", "opencv_num_threads"},
    "dist_cfg": {"backend", "timeout", "init_backend"},
    "custom_imports": {"imports", "allow_failed_imports"},
    "arch": {"depths", "dims"},
    "design": {field.name for field in fields(Design)},  # of a step of the roadmap
    "compile": {"fullgraph", "dynamic", "backend", "mode"},
    "clip_grad": {"max_norm", "norm_type", "error_if_nonfinite", "foreach"},
    "loss_scale": {  # torch.amp.GradScaler
        "init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled",
    },
    "tta.[].test_cfg": {"mode", "crop_size", "stride"},
    "tta.[]": {"pipeline", "test_cfg"},
    "default_hooks": {
        "timer", "logger", "param_scheduler", "checkpoint", "sampler_seed", "visualization",
        "runtime_info", "progress", "report",
    },
}  # fmt: skip

# Classes of dicts that need no type.
DEFAULT_TYPES = {"optim_wrapper": "OptimWrapper", "log_processor": "LogProcessor"}

# Names that are no misspelling of `type`.
NOT_TYPE = {"dtype"}

# Dicts whose keys are the user's own, and what may be in the dict under each.
FREE_KEYS = {"custom_keys": {"lr_mult", "decay_mult"}}
NAMED = {"tta"}  # dicts whose keys are the user's own and whose values are not: protocols

# Arguments of classes that look types up elsewhere than in a registry, and endings of keys whose
# dict has a type of its own.
FOREIGN = {"Albu": {"transforms", "bbox_params"}}
FOREIGN_KEYS = (".adapt_cfg", "_trans")  # StageCascadeRPNHead's, FPG's

# What a constructor of the optimizer wrapper reads from its paramwise_cfg; ours lists its own.
CONSTRUCTOR_KEYS = {
    "DefaultOptimWrapperConstructor": {
        "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult",
        "dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "custom_keys",
    },
    "LearningRateDecayOptimizerConstructor": {"decay_rate", "decay_type", "num_layers"},
    "LayerDecayOptimizerConstructor": {"layer_decay_rate", "decay_type", "num_layers"},
}  # fmt: skip
# Other libraries' configs have keys for these that they do not read.
LAX_CONSTRUCTORS = {"LearningRateDecayOptimizerConstructor", "LayerDecayOptimizerConstructor"}

# Keys whose value may be of several kinds.
EITHER = {"arch", "compile", "loss_scale"}

# Keys that a builder takes out before it calls the class, by the root registry of the class.
BUILDER_KEYS = {
    "model": {"requires_grad"},  # build_norm_layer
    "optim_wrapper": {"constructor", "paramwise_cfg", "optimizer"},
    "parameter scheduler": {"convert_to_iter_based"},
    "hook": {"priority"},
    "weight initializer": {
        "wrapper",
        "sha256",
        "replace_head",
        "stem_bands",
    },  # ConvNeXt.init_weights
    "mmcv.ops": {"class_agnostic", "split_thr"},  # batched_nms
}

# Keys that a class takes out of a dict before it builds what is in it, by the dict's name.
POPPED_KEYS = {
    "loss_cls": {"bg_cls_weight"},
    "dcn": {"fallback_on_stride"},
    "upsample_cfg": {"scale_factor"},
}

# Arguments that name another class, which is given all arguments that are not the class's own.
DELEGATES = {"resize_type", "ema_type"}
