"""The head alone trains, on backbone and neck as they are.

Set ``load_from`` to a trained checkpoint: a fresh neck is a random projection, and
``model.backbone.adapters`` loads injection alone.
"""

_base_ = "./adapters_and_head.py"

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.0, decay_mult=0.0),
            neck=dict(lr_mult=0.0, decay_mult=0.0),
            # mmengine looks for keys anywhere in a name, and the longest counts: else UPerNet's
            # bottlenecks would be necks.
            decode_head=dict(lr_mult=1.0),
        )
    )
)
