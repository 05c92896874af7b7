"""Retrieval: sketches and photos in one space, with InfoNCE."""

_base_ = ["./_base_/runtime.py"]

task = dict(name="retrieval", settings=dict(dim=256, grid=4, loss="contrast"))
