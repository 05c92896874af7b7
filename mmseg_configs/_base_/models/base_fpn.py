"""Base model, aggregated pyramid, FPN head (Kirillov et al., CVPR 2019)."""

_base_ = "./base.py"

model = dict(
    neck=dict(
        type="AdaptivePyramidNeck",
        in_channels=[640, 1280, 1280],
        out_channels=256,
        frequency_bands=4,
    ),
    decode_head=dict(
        type="FPNHead",
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
    ),
)
