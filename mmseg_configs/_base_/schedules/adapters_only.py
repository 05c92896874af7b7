"""Injection and necks train under a fixed head: set ``load_from`` to a trained checkpoint."""

_base_ = "./adapters_and_head.py"

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=0.0, decay_mult=0.0)))
)
