"""Trains injection, neck and a linear head of the base model on OpenMoji parts at 336 px.

Cost: 20,000 iterations of 8 sketches; for a GPU, not measured yet; weights 46 MB.
"""

_base_ = [
    "./_base_/models/base_linear.py",
    "./_base_/datasets/openmoji_parts_336.py",
    "./_base_/schedules/adapters_and_head.py",
    "./_base_/default_runtime.py",
]

model = dict(decode_head=dict(num_classes=5))

train_cfg = dict(max_iters=20000, val_interval=2000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=500),
    dict(type="PolyLR", power=0.9, eta_min=1e-6, by_epoch=False, begin=500, end=20000),
]
