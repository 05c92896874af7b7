"""Recognition: a class for every sketch, with cross entropy."""

_base_ = ["./_base_/runtime.py"]

task = dict(name="recognition", settings=dict(label_smoothing=0.1, grid=4))
