"""SPG's free-hand sketches at 128 px: 86 parts of 20 classes, labels on strokes alone.

Vector sketches are read from spg.csv, spg_strokes.npz and parts.json in data/spg, a compact form of
the data set (see sketchfusion_plugins/data/spg.py), and rendered on the fly; training sees every
one anew. To work on picture files instead, write them with `sketchfusion data spg` and read them as
in folder_128.py.
"""

data_root = "data/spg"
renderer = dict(type="RenderStrokes", size=128, width=2.0)

train_pipeline = [
    dict(type="RenderStrokes", size=128, width=2.0, stroke_dropout=0.05, perturbation=0.3),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
# The loaders are for inference on picture files; on the data set the renderer stands in for them.
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures")),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs", meta_keys=("img_path", "ori_shape", "img_shape", "stroke_points")),
]
# For test.py --tta. The drawing as it is comes first: its labels and points are what is compared.
tta_pipeline = [
    dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures")),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale_factor=ratio, keep_ratio=True)
                for ratio in (1.0, 0.75, 1.25)
            ],
            [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)],
            [
                dict(
                    type="PackSegInputs",
                    meta_keys=(
                        "img_path",
                        "ori_shape",
                        "img_shape",
                        "flip",
                        "flip_direction",
                        "stroke_points",
                    ),
                )
            ],
        ],
    ),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="SPGStrokesDataset",
        data_root=data_root,
        split="train",
        num_classes=86,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SPGStrokesDataset",
        data_root=data_root,
        split="val",
        num_classes=86,
        renderer=renderer,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type="IoUMetric", iou_metrics=["mIoU"]),
    dict(type="StrokeMetric"),
]
test_evaluator = val_evaluator
