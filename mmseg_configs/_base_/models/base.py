"""What all models share: input, backbone and loss. `base_*.py` add a neck and a head."""

data_preprocessor = dict(
    type="SegDataPreProcessor",
    # -1 is black and 1 is white.
    mean=[127.5, 127.5, 127.5],
    std=[127.5, 127.5, 127.5],
    bgr_to_rgb=True,
    # Padding follows normalisation: paper is white.
    pad_val=1,
    seg_pad_val=255,
    size_divisor=32,
    test_cfg=dict(size_divisor=32),
)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type="SketchFusion",
        variant="sketchfusion_base",
        weights="pretrained",
        foundation_dtype="bfloat16",
    ),
    decode_head=dict(
        num_classes=150,
        norm_cfg=dict(type="BN"),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
    test_cfg=dict(mode="whole"),
)
