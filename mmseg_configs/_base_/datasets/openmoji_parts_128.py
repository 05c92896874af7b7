"""OpenMoji's line drawings at 128 px: background, object, skin, hair and white surfaces.

Written by: sketchfusion data openmoji-seg --size 128 --out data/openmoji_parts_128
"""

train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures")),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures")),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
# For test.py --tta. The picture as it is comes first: it is the one that is shown.
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
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="SketchParts",
        data_root="data/openmoji_parts_128",
        num_classes=5,
        data_prefix=dict(img_path="images/train", seg_map_path="annotations/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SketchParts",
        data_root="data/openmoji_parts_128",
        num_classes=5,
        data_prefix=dict(img_path="images/val", seg_map_path="annotations/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
