"""Base model, aggregated pyramid, UPerNet head (Xiao et al., ECCV 2018)."""

_base_ = "./base.py"

model = dict(
    neck=dict(
        type="AdaptivePyramidNeck",
        in_channels=[640, 1280, 1280],
        out_channels=256,
        frequency_bands=4,
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=256,
        dropout_ratio=0.1,
    ),
)
