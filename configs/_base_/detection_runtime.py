custom_imports = dict(
    imports=[
        "backbones.openmmlab.detection",
        "backbones.openmmlab.report",
        "backbones.openmmlab.training.progress",
        "backbones.openmmlab.training.runner",
    ],
    allow_failed_imports=False,
)
default_scope = "mmdet"
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="VerifiedCheckpointHook", interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="DetVisualizationHook"),
    progress=dict(type="ProgressHook"),
    report=dict(type="ReportHook"),
)
custom_hooks = [dict(type="InterruptHook")]
env_cfg = dict(
    tf32=True,
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = dict(
    type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"
)
log_processor = dict(type="PeakMemoryLogProcessor", window_size=50, by_epoch=True)
log_level = "INFO"
load_from = None
resume = False
tta_model = dict(type="MaskTTAModel")
