"""Injection and necks train under a head of fixed weights.

Set ``load_from`` to a trained checkpoint. The head stays in training mode: its dropout is on, and
its batch norms normalise by the batch and go on averaging their statistics.
"""

_base_ = "./adapters_and_head.py"

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=0.0, decay_mult=0.0)))
)
