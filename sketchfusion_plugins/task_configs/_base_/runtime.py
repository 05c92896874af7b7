"""What every task trains with: AdamW, one warm-up, a cosine, checkpoints that resume."""

encoder = dict(variant="sketchfusion_tiny", changes=dict(weights="pretrained"))
# Also, by choice: limit; seed of the split, else that of the adapters it starts from, else 0.
data = dict(source="openmoji", size=128)
# False trains on pictures as they are, which alone can be found in encoder = dict(cache=...).
augment = True
train_dataloader = dict(batch_size=16, num_workers=0)
judge = dict(batch_size=32, workers=0)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="AdapterOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        # One number each, which starts far from where it ends: a threshold of cosine similarity,
        # a temperature.
        custom_keys={
            "threshold": dict(lr_mult=10.0, decay_mult=0.0),
            "log_scale": dict(lr_mult=10.0, decay_mult=0.0),
        },
    ),
)
# Both apply; the second ends with the training.
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=0),
]
# Judged when it ends; also, by choice: val_interval, to be judged on the way too.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=400)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=100, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
custom_hooks = [dict(type="SaveAdaptersHook")]
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    # Seconds: the others wait while the first process judges.
    dist_cfg=dict(backend="nccl", timeout=6 * 3600),
)
log_processor = dict(by_epoch=False)
log_level = "INFO"
randomness = dict(seed=0)
