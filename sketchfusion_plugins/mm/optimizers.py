"""Parameter groups of what trains alone, with layer-wise learning rates."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from sketchfusion_plugins.encoder import SketchFusionEncoder


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdapterOptimWrapperConstructor(DefaultOptimWrapperConstructor):  # type: ignore[misc]
    """mmengine's constructor, for parameters that train alone.

    mmengine's own gives an optimiser without ``paramwise_cfg`` every frozen parameter, and with one
    writes a warning for each.

    ``paramwise_cfg`` may hold ``layer_decay_rate`` beside mmengine's keys: the injection into the
    n-th last UNet block that runs learns at ``lr * layer_decay_rate ** n``, n counting from 0. What
    is outside the encoder is not affected.
    """

    paramwise_cfg: dict[str, Any]

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimiser wrapper of a model.

        Raises:
            ValueError: ``layer_decay_rate`` is not in (0, 1], or has no ``lr`` to be a share of.
        """
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
        if prefix in self.depths:
            for group in params[start:]:
                rate = self.decay_rate ** self.depths[prefix]
                group["lr"] = group.get("lr", self.base_lr) * rate
        if not prefix:
            # What is held fixed by a rate of 0 would count when gradients are clipped together.
            params[:] = [group for group in params if group.get("lr") != 0]
            if not params:
                raise ValueError(
                    "nothing would train: every parameter has a learning rate of 0. Give some part "
                    "an lr_mult above 0 in paramwise_cfg.custom_keys."
                )


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
