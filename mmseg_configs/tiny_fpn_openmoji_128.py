"""Trains injection, neck and an FPN head of the tiny model on OpenMoji parts at 128 px.

Cost: 4000 iterations of 16 sketches, about 75 min on one CPU core (1.1 s each); weights 2.3 MB.
"""

_base_ = [
    "./_base_/models/tiny_fpn.py",
    "./_base_/datasets/openmoji_parts_128.py",
    "./_base_/schedules/adapters_and_head.py",
    "./_base_/default_runtime.py",
]

model = dict(decode_head=dict(num_classes=5))
