"""The head alone trains: what features are worth as they are.

With untrained injection these are Stable Diffusion's; give ``model.backbone.adapters`` the folder
of trained ones to probe the fused features.
"""

_base_ = "./adapters_and_head.py"

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.0, decay_mult=0.0), neck=dict(lr_mult=0.0, decay_mult=0.0)
        )
    )
)
