"""Trains injection, neck and a UPerNet head of the tiny model on SPG parts at 128 px.

Cost: 4000 iterations of 16 sketches, about 80 min on one CPU core (1.2 s each); weights 3.2 MB.
"""

_base_ = [
    "./_base_/models/tiny_upernet.py",
    "./_base_/datasets/spg_128.py",
    "./_base_/schedules/adapters_and_head.py",
    "./_base_/default_runtime.py",
]

model = dict(decode_head=dict(num_classes=86))
