"""Everything trains, foundations slowly.

Needs ``model.backbone.freeze_foundations=False`` and ``foundation_dtype="float32"``: steps this
small vanish in bfloat16. Checkpoints then hold the foundations, 4.8 GB for the base model, and with
the optimiser's state three times that.
"""

_base_ = "./adapters_and_head.py"

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "encoder.diffusion": dict(lr_mult=0.01),
            "encoder.semantic": dict(lr_mult=0.01),
        }
    )
)
