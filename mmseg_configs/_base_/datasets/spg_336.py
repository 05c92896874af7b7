"""SPG's free-hand sketches at 336 px: 86 parts of 20 classes, labels on strokes alone.

Read from the data set's own files in data/spg and rendered on the fly, as in spg_128.py.
"""

_base_ = "./spg_128.py"

renderer = dict(size=336)

train_pipeline = [
    dict(type="RenderStrokes", size=336, width=2.0, stroke_dropout=0.05, perturbation=0.3),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(renderer=renderer))
test_dataloader = val_dataloader
