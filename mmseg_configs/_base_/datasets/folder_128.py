"""Your own sketches and PNG masks, cropped to 128 px in training.

    data/sketches/meta.json                       {"classes": ["background", "wheel"]}
    data/sketches/images/{train,val}/NAME.png
    data/sketches/annotations/{train,val}/NAME.png  class index per pixel, 255 for none

Set num_classes of all three data sets and of the head to the number of classes. Pictures are read
with transparency on white and turned as their EXIF data say; masks are those of the turned ones.
"""

train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures")),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(256, 128), ratio_range=(0.8, 1.6), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(128, 128)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures")),
    dict(type="Resize", scale=(256, 128), keep_ratio=True),
    # After resizing: predictions are judged at the mask's own size.
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
                dict(type="Resize", scale=(2 * side, side), keep_ratio=True)
                for side in (128, 96, 160)
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
        data_root="data/sketches",
        num_classes=2,
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
        data_root="data/sketches",
        num_classes=2,
        data_prefix=dict(img_path="images/val", seg_map_path="annotations/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
