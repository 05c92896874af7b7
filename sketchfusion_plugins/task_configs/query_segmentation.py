"""Query segmentation: the part of a photo that a sketch denotes, with BCE and Dice."""

_base_ = ["./_base_/runtime.py"]

task = dict(name="query_segmentation", settings=dict(pooling="ink"))
