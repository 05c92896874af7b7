"""Your own sketches and PNG masks, cropped to 336 px in training. See folder_128.py."""

_base_ = "./folder_128.py"

train_pipeline = [
    dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures")),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(672, 336), ratio_range=(0.8, 1.6), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(336, 336)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures")),
    dict(type="Resize", scale=(672, 336), keep_ratio=True),
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
                for side in (336, 252, 420)
            ],
            [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]

train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
