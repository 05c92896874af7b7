"""The base model's miniature; see there. Its foundations are part of the package."""

_base_ = "./base_linear.py"

model = dict(
    backbone=dict(variant="sketchfusion_tiny", foundation_dtype="float32"),
    neck=dict(in_channels=[96, 144, 144], out_channels=192, norm_groups=16),
    decode_head=dict(in_channels=192),
)
