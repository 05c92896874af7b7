"""Injection, necks and head train; foundations stay frozen. The usual choice."""

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="AdapterOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    # To 0: a minimum above it would lift rates of 0, by which mmengine's own constructor freezes.
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=100, end=4000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=4000, val_interval=1000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(
        type="CheckpointHook", by_epoch=False, interval=1000, max_keep_ckpts=2, save_best="mIoU"
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="RenderedVisualizationHook"),
)
