"""Correspondence: a sketch's points in a photo, with end-point error and contrast."""

_base_ = ["./_base_/runtime.py"]

task = dict(name="correspondence", settings=dict(loss=dict(end_point=1.0, contrastive=1.0)))
