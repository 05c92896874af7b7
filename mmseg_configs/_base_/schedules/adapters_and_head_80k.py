"""`adapters_and_head.py` for 80,000 iterations, with a longer warm-up."""

_base_ = "./adapters_and_head.py"

train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=1500, end=80000),
]
