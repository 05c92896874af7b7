"""OpenMoji's line drawings at 336 px: background, object, skin, hair and white surfaces.

Written by: sketchfusion data openmoji-seg --size 336 --out data/openmoji_parts_336
"""

_base_ = "./openmoji_parts_128.py"

train_dataloader = dict(batch_size=8, dataset=dict(data_root="data/openmoji_parts_336"))
val_dataloader = dict(dataset=dict(data_root="data/openmoji_parts_336"))
test_dataloader = val_dataloader
