"""`adapters_and_head.py` for 20,000 iterations, with a longer warm-up."""

_base_ = "./adapters_and_head.py"

train_cfg = dict(max_iters=20000, val_interval=2000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=500),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=500, end=20000),
]
