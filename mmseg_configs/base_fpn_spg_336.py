"""Trains injection, neck and an FPN head of the base model on SPG parts at 336 px.

Cost: 20,000 iterations of 8 sketches; for a GPU, not measured yet; weights 53 MB.
"""

_base_ = [
    "./_base_/models/base_fpn.py",
    "./_base_/datasets/spg_336.py",
    "./_base_/schedules/adapters_and_head_20k.py",
    "./_base_/default_runtime.py",
]

model = dict(decode_head=dict(num_classes=86))
