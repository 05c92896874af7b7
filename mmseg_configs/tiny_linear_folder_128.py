"""Trains injection, neck and a linear head of the tiny model on your own sketches at 128 px.

Cost: 4000 iterations of 16 sketches, about 60 min on one CPU core (0.9 s each); weights 1.4 MB.
"""

_base_ = [
    "./_base_/models/tiny_linear.py",
    "./_base_/datasets/folder_128.py",
    "./_base_/schedules/adapters_and_head.py",
    "./_base_/default_runtime.py",
]

model = dict(decode_head=dict(num_classes=2))
