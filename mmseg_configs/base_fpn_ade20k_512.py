"""Trains injection, neck and an FPN head of the base model on ADE20K at 512 px.

Cost: 80,000 iterations of 4 photographs; for a GPU, not measured yet; weights 53 MB.
"""

_base_ = [
    "./_base_/models/base_fpn.py",
    "./_base_/datasets/ade20k_512.py",
    "./_base_/schedules/adapters_and_head.py",
    "./_base_/default_runtime.py",
]

train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=0.9, eta_min=1e-6, by_epoch=False, begin=1500, end=80000),
]
