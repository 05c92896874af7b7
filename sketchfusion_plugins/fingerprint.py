"""Short hashes that tell models apart by their weights, and values that tell activations apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

SAMPLES_PER_TENSOR = 16
# The null prompt's embedding is no weight: it is computed, on every machine a little otherwise.
COMPUTED = "null_embedding"
# Of batch norms; in eval mode they do not read it, and timm's frozen ones have none.
COUNTER = ".num_batches_tracked()"
# GELU and its approximations differ most between -3 and -1.
ACTIVATION_POINTS = (-2.5, -1.5, -0.5, 0.5)
_ACTIVATION_FILES = (
    "torch.nn.modules.activation",
    "transformers.activations",
    "timm.layers.activations",
)
# Attention is written with a module or without, from version to version.
_OF_ATTENTION = (nn.LogSoftmax, nn.Softmax, nn.Softmax2d, nn.Softmin)


def plain_name(name: str) -> str:
    """Name of a tensor as it is without `torch.compile`, whichever part was compiled."""
    return name.replace("_orig_mod.", "")


def sample_values(tensor: Tensor) -> Tensor:
    """At most 16 evenly spaced values of a tensor, on the CPU.

    Raises:
        ValueError: It has none, being on the meta device.
    """
    if tensor.is_meta:
        raise ValueError(
            "the model's weights are on the meta device and have no values yet. Fill them first, "
            "or build it on another device."
        )
    flat = tensor.detach().flatten()
    count = min(SAMPLES_PER_TENSOR, flat.numel())
    # Not on the default device: some know no float64, and "meta" no values.
    index = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64, device="cpu").long()
    return flat[index.to(flat.device)].cpu()


def sample_modules(
    modules: Mapping[str, nn.Module], origins: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A few evenly spaced values of every tensor of modules.

    Args:
        modules: Modules by name.
        origins: What this function gave for the modules before. It stands for tensors whose
            precision alone has changed since: float16 rounds other than bfloat16 does, and loses
            small values. And for counts of batches, whatever has become of them, unless a module's
            weights are others.

    Returns:
        Values on the CPU by name and shape, in the order that is hashed.
    """
    origins = {} if origins is None else origins
    samples = {}
    for name, module in modules.items():
        state = {plain_name(key): tensor for key, tensor in module.state_dict().items()}
        state = {key: tensor for key, tensor in state.items() if not key.endswith(COMPUTED)}
        found = {
            f"{name}.{key}{tuple(tensor.shape)}": sample_values(tensor)
            for key, tensor in state.items()
        }
        counts = {
            title: values
            for title, values in origins.items()
            if title.startswith(f"{name}.") and title.endswith(COUNTER)
        }
        merged = {**counts, **found} if _replaced(found, origins) else {**found, **counts}
        for title, values in sorted(merged.items()):
            origin = origins.get(title)
            samples[title] = values if origin is None or _differs(values, origin) else origin
    return samples


def fingerprint_modules(
    modules: Mapping[str, nn.Module], origins: Mapping[str, Tensor] | None = None
) -> str:
    """Short hash of modules' weights, the same whether they are held in float32 or bfloat16.

    It reads a few evenly spaced values of every tensor, rounded to bfloat16. With ``origins``, see
    `sample_modules`, it is the same for every precision.
    """
    digest = hashlib.sha256()
    for title, values in sample_modules(modules, origins).items():
        digest.update(title.encode())
        digest.update(_round(values).numpy().tobytes())
    return digest.hexdigest()[:16]


def attention_heads(module: nn.Module) -> list[int]:
    """How many heads attention has inside a module of diffusers, transformers or timm.

    Weights do not tell: they have the same shapes for any number.

    Returns:
        Numbers, ascending, each once.
    """
    named = (getattr(m, key, None) for m in module.modules() for key in ("heads", "num_heads"))
    return sorted({number for number in named if isinstance(number, int)})


@torch.no_grad()
def sample_activations(module: nn.Module) -> list[float]:
    """Values at `ACTIVATION_POINTS` of every kind of activation without weights inside a module.

    Weights do not tell one activation from another. What it computes does, and stays the same when
    a library gives its class another name.

    Returns:
        As many values for each kind, in ascending order, to six digits: the same in every precision
        and on every device. Empty without activations of torch, transformers or timm.
    """
    found = set()
    for child in module.modules():
        known = type(child).__module__.startswith(_ACTIVATION_FILES)
        if known and not isinstance(child, _OF_ATTENTION) and not child.state_dict():
            # Anew each time, because some compute in place; and past what torch.compile or a hook
            # would add.
            points = torch.tensor(ACTIVATION_POINTS, dtype=torch.float64, device="cpu")
            values = child.forward(points).tolist()
            found.add(tuple(float(f"{value:.6g}") for value in values))
    return [value for values in sorted(found) for value in values]


def _replaced(found: Mapping[str, Tensor], origins: Mapping[str, Tensor]) -> bool:
    """Whether any values but counts are others than they were."""
    return any(
        title in origins and _differs(values, origins[title])
        for title, values in found.items()
        if not title.endswith(COUNTER)
    )


def _differs(values: Tensor, origin: Tensor) -> bool:
    """Whether values are another's in no precision, or in no succession of two."""
    forms = (origin, origin.half(), origin.bfloat16().half())
    return not any(torch.equal(_round(values), _round(form)) for form in forms)


def _round(values: Tensor) -> Tensor:
    # As integers, so that NaN equals itself.
    return values.bfloat16().view(torch.int16)
