"""What a module is, whatever frameworks have wrapped around it: its encoder, its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from sketchfusion_plugins.encoder import SketchFusionEncoder

WRAPPERS = (nn.DataParallel, DistributedDataParallel, AveragedModel)
# timm's own averages, whose package is not loaded for their sake.
TIMM_WRAPPERS = ("ModelEmaV2", "ModelEmaV3")


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, data parallelism and averages of weights."""
    names = dict(module.named_children())
    if "_orig_mod" in names:
        return unwrap(names["_orig_mod"])
    bases = {base.__name__ for base in type(module).__mro__}
    wraps = isinstance(module, WRAPPERS) or not bases.isdisjoint(TIMM_WRAPPERS)
    return unwrap(names["module"]) if wraps else module


def find_encoder(module: nn.Module) -> tuple[str, SketchFusionEncoder]:
    """The encoder inside a module, with the prefix of its keys (empty, or ending in a dot).

    Raises:
        TypeError: There is none, or more than one.
    """
    # Known by its class's method: the encoder lies a floor above this file, and a compiled module
    # passes on whatever attribute of the module inside it is asked for.
    found: list[tuple[str, Any]] = [
        (f"{name}." if name else "", child)
        for name, child in module.named_modules()
        if hasattr(type(child), "foundation_names")
    ]
    if len(found) != 1:
        raise TypeError(
            f"expected a module with one SketchFusionEncoder inside, got {len(found)} in "
            f"{type(module).__name__}."
        )
    prefix, encoder = found[0]
    return prefix, encoder


def device_of(module: nn.Module) -> torch.device:
    """Device of a module's parameters; the CPU for one without."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
