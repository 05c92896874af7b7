"""Base model, the paper's aggregation to one map of stride 8, batch norm and a 1x1 convolution."""

_base_ = "./base.py"

model = dict(
    neck=dict(
        type="AdaptiveAggregationNeck",
        in_channels=[640, 1280, 1280],
        out_channels=768,
        out_stride=8,
        frequency_bands=4,
    ),
    decode_head=dict(type="LinearHead", in_channels=768),
)
