"""The base model's miniature; see there. Its foundations are part of the package."""

_base_ = "./base_fpn.py"

model = dict(
    backbone=dict(variant="sketchfusion_tiny", foundation_dtype="float32"),
    neck=dict(in_channels=[96, 144, 144], out_channels=64, norm_groups=16),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64),
)
