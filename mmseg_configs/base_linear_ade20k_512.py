"""Trains injection, neck and a linear head of the base model on ADE20K at 512 px.

Cost: 80,000 iterations of 4 photographs; for a GPU, not measured yet; weights 46 MB.
"""

_base_ = [
    "./_base_/models/base_linear.py",
    "./_base_/datasets/ade20k_512.py",
    "./_base_/schedules/adapters_and_head_80k.py",
    "./_base_/default_runtime.py",
]
