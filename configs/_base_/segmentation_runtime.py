custom_imports = dict(
    imports=[
        "backbones.openmmlab.segmentation",
        "backbones.openmmlab.report",
        "backbones.openmmlab.training.progress",
        "backbones.openmmlab.training.runner",
    ],
    allow_failed_imports=False,
)
default_scope = "mmseg"
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="VerifiedCheckpointHook", by_epoch=False, interval=16000, max_keep_ckpts=3
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
    progress=dict(type="ProgressHook"),
    report=dict(type="ReportHook"),
)
custom_hooks = [dict(type="LabelRangeHook"), dict(type="InterruptHook")]
env_cfg = dict(
    tf32=True,
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = dict(
    type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"
)
log_processor = dict(type="PeakMemoryLogProcessor", by_epoch=False)
log_level = "INFO"
load_from = None
resume = False
tta_model = dict(type="SegTTAModel")
