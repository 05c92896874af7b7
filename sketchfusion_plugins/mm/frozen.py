"""Checkpoints of models with frozen foundations inside: what trains is saved, and no more."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sketchfusion_plugins.adapter_file import CheckpointError
from sketchfusion_plugins.checkpoint import fingerprint, sample_foundations
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.wrappers import find_encoder

FINGERPRINT = "foundation_fingerprint"


class FrozenFoundations:
    """Mixin for a `torch.nn.Module` with one `SketchFusionEncoder` inside.

    Frozen foundations are no part of its state dict, and copies share their tensors. A state dict
    remembers which foundations it was trained on, and refuses to load onto others; one that holds
    foundations (`full_state_dict`, or that of a module whose foundations train) replaces those that
    are there. There is none while parts of frozen foundations train, such as LoRA.
    """

    _loading_prefix: str
    _loading_foundations: bool
    _loading_fingerprint: bool

    def hide_foundations(self: Any) -> None:
        """To be called once the encoder is there."""
        self.register_load_state_dict_pre_hook(_begin_loading)
        _, encoder = find_encoder(self)
        if not encoder.config.freeze_foundations:
            return
        if not any(parameter.is_meta for parameter in encoder.parameters()):
            self.register_buffer(FINGERPRINT, _fingerprint(encoder))
        self.register_state_dict_post_hook(_drop_foundations)
        self.register_load_state_dict_post_hook(_finish_loading)

    def full_state_dict(self: Any, prefix: str = "") -> dict[str, Tensor]:
        """All that the encoder computes with, foundations too; 2.3 GB for the base model in bf16.

        For export only: it loads into a model with any weights of the same architecture.
        """
        inner, encoder = find_encoder(self)
        state = dict(encoder.state_dict(prefix=prefix + inner))
        if encoder.config.freeze_foundations:
            known = getattr(self, FINGERPRINT, None)
            # Built on the meta device, foundations were given values since.
            state[prefix + FINGERPRINT] = _fingerprint(encoder) if known is None else known
        return state

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        # An averaged copy of the model (EMA) would otherwise hold the foundations twice. Modules
        # are its own: one that were shared would move or be cast with it.
        _, encoder = find_encoder(self)
        if encoder.config.freeze_foundations:
            for module in encoder.foundations():
                for parameter in module.parameters():
                    memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
                memo.update((id(buffer), buffer.detach()) for buffer in module.buffers())
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


def _foundation_prefixes(module: Any, prefix: str) -> tuple[str, ...]:
    inner, encoder = find_encoder(module)
    return tuple(f"{prefix}{inner}{name}." for name in encoder.foundation_names())


def _drop_foundations(module: Any, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    encoder = find_encoder(module)[1]
    trained = [
        name
        for branch, part in zip(encoder.foundation_names(), encoder.foundations(), strict=True)
        for name, parameter in part.named_parameters(prefix=branch)
        if parameter.requires_grad
    ]
    if trained:
        raise CheckpointError(
            f"{len(trained)} parameters of frozen foundations train, such as {trained[0]}, and a "
            "checkpoint would not hold them. Build the model with freeze_foundations=False."
        )
    frozen = _foundation_prefixes(module, prefix)
    for name in [name for name in state if name.startswith(frozen)]:
        del state[name]


def _begin_loading(module: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    # A hook that runs after loading is not told the prefix, nor what there was to load.
    module._loading_prefix = prefix
    frozen = _foundation_prefixes(module, prefix)
    module._loading_foundations = any(name.startswith(frozen) for name in state)
    saved, own = state.get(prefix + FINGERPRINT), getattr(module, FINGERPRINT, None)
    module._loading_fingerprint = saved is not None
    encoder = find_encoder(module)[1]
    config = encoder.config
    if saved is not None and not config.freeze_foundations:
        del state[prefix + FINGERPRINT]
        # Where foundations train they begin as those that the adapters were trained on, if there
        # are any yet. What float16 rounds has another fingerprint.
        unknown = any(p.is_meta or p.dtype == torch.float16 for p in encoder.parameters())
        if not (module._loading_foundations or unknown):
            own = _fingerprint(encoder)
    if saved is None or own is None or torch.equal(saved.cpu(), own.cpu()):
        return
    if module._loading_foundations:
        return
    raise CheckpointError(
        f"this checkpoint was trained on other foundations (fingerprint "
        f"{bytes(saved.tolist()).hex()}) than this model has: {config.diffusion.source} and "
        f"{config.semantic.source}, {config.weights} weights, fingerprint "
        f"{bytes(own.tolist()).hex()}. Build the model with the ones it was trained on."
    )


def _finish_loading(module: Any, incompatible: Any) -> None:
    frozen = _foundation_prefixes(module, module._loading_prefix)
    missing = incompatible.missing_keys
    lost = [name for name in missing if name.startswith(frozen)]
    if not module._loading_foundations:
        missing[:] = [name for name in missing if name not in lost]
        return
    own = getattr(module, FINGERPRINT, None)
    if lost or own is None:
        return
    encoder = find_encoder(module)[1]
    if not module._loading_fingerprint:
        # They come from where foundations train, which are what they are: from now on these.
        encoder.holds_trained_foundations = True
        encoder.foundation_samples = sample_foundations(encoder)
        own.copy_(_fingerprint(encoder))
        missing.remove(module._loading_prefix + FINGERPRINT)
        return
    found = fingerprint(encoder)
    if bytes(own.tolist()).hex() != found:
        raise CheckpointError(
            f"this checkpoint holds foundations with fingerprint {found}, expected "
            f"{bytes(own.tolist()).hex()}, which it was trained on. It is damaged or was put "
            "together from two files; export it again."
        )


def _fingerprint(encoder: SketchFusionEncoder) -> Tensor:
    return torch.tensor(list(bytes.fromhex(fingerprint(encoder))), dtype=torch.uint8)
