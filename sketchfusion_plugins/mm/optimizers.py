"""Parameter groups of what trains alone, with layer-wise learning rates."""

from __future__ import annotations

from itertools import chain
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from sketchfusion_plugins.encoder import SketchFusionEncoder

# As mmengine tells them.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdapterOptimWrapperConstructor(DefaultOptimWrapperConstructor):  # type: ignore[misc]
    """mmengine's constructor, for parameters that train alone.

    mmengine's own gives an optimiser without ``paramwise_cfg`` every frozen parameter, and with one
    writes a warning for each.

    ``paramwise_cfg`` may hold ``layer_decay_rate`` beside mmengine's keys: the injection into the
    n-th last UNet block that runs learns at ``lr * layer_decay_rate ** n``, n counting from 0. What
    is outside the encoder is not affected.

    What a rate of 0 holds fixed asks for no gradient from then on (``requires_grad`` of the model's
    parameters), and nothing is computed for it; unless data parallelism counts on it. A key of
    ``custom_keys`` that states no decay leaves the rules for norms, biases and what has one
    dimension in force.
    """

    paramwise_cfg: dict[str, Any]

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimiser wrapper of a model.

        Raises:
            ValueError: ``layer_decay_rate`` is not in (0, 1], or has no ``lr`` to be a share of.
        """
        self.is_parallel = hasattr(model, "module")
        model = getattr(model, "module", model)
        options = dict(self.paramwise_cfg or {})
        self.decay_rate = options.pop("layer_decay_rate", 1.0)
        if not 0 < self.decay_rate <= 1:
            raise ValueError(f"layer_decay_rate must be in (0, 1], got {self.decay_rate}.")
        if self.decay_rate < 1 and self.base_lr is None:
            raise ValueError(
                f"layer_decay_rate={self.decay_rate} needs the optimiser's lr, which it is a share "
                "of: give one, such as optimizer=dict(type='AdamW', lr=1e-3)."
            )
        self.depths = _depths(model) if self.decay_rate < 1 else {}
        # Without any option mmengine takes model.parameters(), frozen ones too.
        self.paramwise_cfg = options or {"bypass_duplicate": False}
        return super().__call__(model)

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **options: Any
    ) -> None:
        """Add the groups of a module; see mmengine."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return
        start = len(params)
        super().add_params(params, module, prefix=prefix, **options)
        self._keep_decay_rules(params[start:], module, prefix)
        if prefix in self.depths:
            for group in params[start:]:
                rate = self.decay_rate ** self.depths[prefix]
                group["lr"] = group.get("lr", self.base_lr) * rate
        if not prefix:
            # What is held fixed by a rate of 0 would count when gradients are clipped together.
            fixed = [group for group in params if group.get("lr") == 0]
            params[:] = [group for group in params if group.get("lr") != 0]
            if not params:
                raise ValueError(
                    "nothing would train: every parameter has a learning rate of 0. Give some part "
                    "an lr_mult above 0 in paramwise_cfg.custom_keys."
                )
            for parameter in chain.from_iterable(group["params"] for group in fixed):
                if not self.is_parallel:
                    parameter.requires_grad_(False)

    def _keep_decay_rules(
        self, groups: list[dict[str, Any]], module: nn.Module, prefix: str
    ) -> None:
        """Undo that mmengine drops them where a key matches, for a module's own parameters."""
        if self.base_wd is None:
            return
        rules, keys = self.paramwise_cfg, self.paramwise_cfg.get("custom_keys", {})
        names = {id(value): name for name, value in module.named_parameters(recurse=False)}
        is_norm = isinstance(module, NORMS)
        for group in groups:
            (parameter,) = group["params"]
            name = names.get(id(parameter))
            if name is None:
                continue
            # As mmengine does: the longest key counts, of equal ones the first in the alphabet.
            path = f"{prefix}.{name}"
            ordered = sorted(sorted(keys), key=len, reverse=True)
            matched = next((key for key in ordered if key in path), "")
            if not matched or {"decay_mult", "weight_decay"} & keys[matched].keys():
                continue
            applying = {
                "norm_decay_mult": is_norm,
                "bias_decay_mult": name == "bias",
                "flat_decay_mult": parameter.ndim == 1,
            }
            stated = (rules.get(rule) for rule, applies in applying.items() if applies)
            decay = next((value for value in stated if value is not None), 1.0)
            group["weight_decay"] = self.base_wd * decay


def _depths(model: nn.Module) -> dict[str, int]:
    """Blocks that run after every injection, by the injection's name in the model."""
    depths = {}
    for name, module in model.named_modules():
        if isinstance(module, SketchFusionEncoder):
            blocks = [block.name for block in module.diffusion.denoiser.blocks]
            start = f"{name}." if name else ""
            for site in module.injector.projections:
                path = f"{start}injector.projections.{site}"
                depths[path] = len(blocks) - 1 - blocks.index(site)
    return depths
