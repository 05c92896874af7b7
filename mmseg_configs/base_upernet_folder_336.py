"""Trains injection, neck and a UPerNet head of the base model on your own sketches at 336 px.

Cost: 20,000 iterations of 8 sketches; for a GPU, not measured yet; weights 77 MB.
"""

_base_ = [
    "./_base_/models/base_upernet.py",
    "./_base_/datasets/folder_336.py",
    "./_base_/schedules/adapters_and_head_20k.py",
    "./_base_/default_runtime.py",
]

model = dict(decode_head=dict(num_classes=2))
