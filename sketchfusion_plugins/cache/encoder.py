"""An encoder that looks for what it would compute in a `FeatureStore` first.

A record is named by all that it depends on: the image's values as the encoder is fed them, after
any preprocessing, the weights and settings of what computed it, its precision, and the seed where
one matters. Records are of single images, whatever batch they came in. Images that are missing are
computed together, and rounded as batches of that size are.

Values are kept as they were computed, bit for bit: nearly all of a record are tokens, which
foundations that are held in bfloat16 make half as large without any loss on top. An image of 336 px
takes 2.4 MB for Stable Diffusion 2.1 with CLIP ViT-L/14, 1.2 MB in bfloat16, and 9.0 MB as a map of
1280 channels; one of 128 px 54 kB, 29 kB and 197 kB for the miniature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sketchfusion_plugins.cache.store import FeatureStore, tensor_bytes
from sketchfusion_plugins.encoder import FeatureLevels, FoundationOutputs, SketchFusionEncoder
from sketchfusion_plugins.fingerprint import attention_heads, sample_modules
from sketchfusion_plugins.images import check_image
from sketchfusion_plugins.noise import as_integer
from sketchfusion_plugins.wrappers import find_encoder

Keep = Literal["foundations", "results"]
Tensors = dict[str, Tensor]

# Part of every key: raise it when the same weights and settings come to compute something else.
FORMAT = 3
# Values of the configuration that say where weights come from and how memory is used.
_WHEREABOUTS = {
    "diffusion": ("source", "revision", "variant", "unet_file", "ensemble_chunk", "seed"),
    "semantic": ("source", "revision", "variant"),
}
# The first is what LoRA's layers have alone; the others are methods of transformers' models, too.
_LORA_SWITCHES = ("merged_adapters", "active_adapters", "disable_adapters", "scaling")


class CachedEncoder(SketchFusionEncoder):
    """What `use_cache` makes of an encoder; it is used as before.

    Images that ask for a gradient, calls whose result depends on a generator, replicas of
    `torch.nn.DataParallel`, and `torch.export` pass the cache by.
    """

    _store: FeatureStore
    _keep: Keep
    # Names of weights are remembered as long as no weight changes.
    _named: dict[str, tuple[tuple[Any, ...], str]]

    def encode(
        self,
        image: Tensor,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        fuse: bool = True,
    ) -> FoundationOutputs:
        """See `SketchFusionEncoder.encode`."""
        drawn = self.diffusion.config.posterior == "sample"
        if self._keep != "foundations" or not self._is_nameable(
            image, generator if drawn else None
        ):
            return super().encode(image, seed=seed, generator=generator, fuse=fuse)
        fuse = fuse and len(self.injector.projections) > 0

        def compute(part: Tensor) -> Tensors:
            made = SketchFusionEncoder.encode(self, part, seed=seed, fuse=fuse)
            tokens = {} if made.tokens is None else {"tokens": made.tokens}
            return {"latents": made.latents, **tokens}

        found = self._look_up(
            image, self._describe_foundations(seed if drawn else 0, fuse), compute
        )
        size = (image.shape[-2], image.shape[-1])
        return FoundationOutputs(found["latents"], found.get("tokens"), size)

    def forward_levels(
        self,
        image: Tensor | FoundationOutputs,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        fuse: bool = True,
    ) -> FeatureLevels:
        """See `SketchFusionEncoder.forward_levels`."""
        if not self._keeps_results(image, generator):
            return super().forward_levels(image, seed=seed, generator=generator, fuse=fuse)
        assert isinstance(image, Tensor)
        blocks = self.level_blocks

        def compute(part: Tensor) -> Tensors:
            made = SketchFusionEncoder.forward_levels(self, part, seed=seed, fuse=fuse)
            return dict(zip(made.names, made.maps, strict=True))

        found = self._look_up(image, self._describe_results("levels", seed, fuse), compute)
        return FeatureLevels(
            tuple(found[block.name] for block in blocks),
            tuple(block.stride for block in blocks),
            tuple(block.name for block in blocks),
        )

    def forward(
        self,
        image: Tensor | FoundationOutputs,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """See `SketchFusionEncoder.forward`."""
        if not self._keeps_results(image, generator):
            return super().forward(image, seed=seed, generator=generator)
        assert isinstance(image, Tensor)
        single = self.config.aggregation is None or isinstance(self.config.aggregation.stride, int)

        def compute(part: Tensor) -> Tensors:
            # From the foundations on, so that levels are not kept beside the maps.
            encoded = SketchFusionEncoder.encode(self, part, seed=seed)
            made = SketchFusionEncoder.forward(self, encoded, seed=seed)
            maps = (made,) if isinstance(made, Tensor) else made
            return {f"map{number}": values for number, values in enumerate(maps)}

        found = self._look_up(image, self._describe_results("maps", seed, True), compute)
        maps = tuple(found[f"map{number}"] for number in range(len(found)))
        return maps[0] if single else maps

    def train(self, mode: bool = True) -> CachedEncoder:
        """See `SketchFusionEncoder.train`; an encoder whose results are kept stays in eval mode."""
        super().train(mode and self._keep != "results")
        return self

    def _keeps_results(
        self, image: Tensor | FoundationOutputs, generator: torch.Generator | None
    ) -> bool:
        if self._keep != "results" or isinstance(image, FoundationOutputs):
            return False
        return self._is_nameable(image, generator)

    def _is_nameable(self, image: Tensor, generator: torch.Generator | None) -> bool:
        check_image(image, self.config.in_channels)
        # A replica of nn.DataParallel lists no weights to be named by.
        if getattr(self, "_is_replica", False) or torch.compiler.is_exporting():
            return False
        wants_gradient = image.requires_grad and torch.is_grad_enabled()
        return generator is None and not wants_gradient and not image.is_meta

    @torch.compiler.disable
    def _look_up(
        self, image: Tensor, description: dict[str, Any], compute: Callable[[Tensor], Tensors]
    ) -> Tensors:
        """Tensors of a batch, of which `compute` makes those that are missing."""
        keys = record_keys(description, image)
        records = [self._store.get(key) for key in keys]
        missing = [index for index, record in enumerate(records) if record is None]
        if missing:
            # A batch without a hit is computed and returned as if there were no cache.
            whole = len(missing) == len(keys)
            made = compute(image if whole else image[missing])
            for place, index in enumerate(missing):
                record = {name: values[place] for name, values in made.items()}
                self._store.put(keys[index], record)
                records[index] = record
            if whole:
                return made
        found = [record for record in records if record is not None]
        return {
            name: torch.stack([record[name].to(image.device) for record in found])
            for name in found[0]
        }

    def _describe_foundations(self, seed: int | None, fuse: bool) -> dict[str, Any]:
        """What VAE and semantic branch compute depends on; the UNet is no part of it."""
        diffusion, semantic = self.diffusion, self.semantic
        assert isinstance(semantic, nn.Module)
        description: dict[str, Any] = {
            "kind": "foundations",
            "vae": self._name("vae", diffusion.vae),
            "posterior": diffusion.config.posterior,
            "seed": as_integer(diffusion.config.seed if seed is None else seed),
            "scaling": [diffusion.scaling_factor, diffusion.shift_factor],
            "statistics": [diffusion.latents_mean, diffusion.latents_std],
        }
        if fuse:
            description["semantic"] = [
                self._name("semantic", semantic),
                [self.config.semantic.final_norm, self.config.semantic.shrink],
                [semantic.patch_size, semantic.image_size],
                [list(semantic.mean), list(semantic.std)],
            ]
        return description

    def _describe_results(self, kind: str, seed: int | None, fuse: bool) -> dict[str, Any]:
        """What levels, or maps, depend on."""
        config = self.config.replace(diffusion=self.diffusion.config).to_dict()
        parts = ["diffusion", "semantic", "injection", *(["aggregation"] if kind == "maps" else [])]
        used = {part: config[part] for part in parts}
        for part, names in _WHEREABOUTS.items():
            for name in names:
                del used[part][name]
        drawn = not (config["diffusion"]["noise_free"] and used["diffusion"]["posterior"] == "mode")
        adapters: dict[str, nn.Module] = {"injection": self.injector}
        if kind == "maps" and self.aggregator is not None:
            adapters["aggregation"] = self.aggregator
        return {
            **self._describe_foundations(seed if drawn else 0, True),
            "kind": kind,
            "config": used,
            "fuse": fuse,
            "levels": [block.name for block in self.level_blocks],
            "noise": [self.diffusion.signal_scale, self.diffusion.noise_scale],
            "unet": self._name("unet", self.diffusion.denoiser),
            "adapters": [self._name(name, part) for name, part in adapters.items()],
        }

    @torch.compiler.disable
    def _name(self, part: str, module: nn.Module) -> str:
        """Hash of a module's classes with their settings, its weights and precision.

        Raises:
            RuntimeError: It would train.
        """
        tensors = list(chain(module.parameters(), module.buffers()))
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            advice = "do without a cache: use_cache(encoder, None)"
            if part in ("injection", "aggregation"):
                advice = "keep less: use_cache(encoder, store, keep='foundations')"
            raise RuntimeError(
                f"{part} would train, but what is kept of it ({self._keep}) gives it no gradient. "
                f"Freeze it with requires_grad_(False); or, to train it, {advice}."
            )
        switches = _lora_switches(module)
        state = (type(module), switches, *(_version(tensor) for tensor in tensors))
        known = self._named.get(part)
        if known is not None and known[0] == state:
            return known[1]
        digest = hashlib.sha256(f"{type(module).__module__}.{type(module).__qualname__}".encode())
        digest.update(str([tensor.dtype for tensor in tensors]).encode())
        # Weights do not tell one activation from another, nor heads of attention.
        kinds = [
            f"{type(child).__qualname__}({child.extra_repr()}){attention_heads(child)}"
            for child in module.modules()
            if not hasattr(child, "_orig_mod")  # torch.compile's wrapper, which computes the same
        ]
        digest.update(f"{kinds}{switches}".encode())
        if part in ("injection", "aggregation"):
            # They are small, and a step of training changes them little.
            for tensor in tensors:
                digest.update(tensor_bytes(tensor))
        else:
            # Of another precision, rounding is part of what they compute.
            for title, values in sample_modules({part: module}).items():
                digest.update(title.encode())
                digest.update(tensor_bytes(values))
            for buffer in module.buffers():
                digest.update(tensor_bytes(buffer))
        self._named[part] = (state, digest.hexdigest())
        return digest.hexdigest()


def use_cache(encoder: nn.Module, store: FeatureStore | None, keep: Keep = "foundations") -> None:
    """Make an encoder look into a store before it computes, and keep there what it computed.

    The encoder changes in place, as with `torch.distributed.fsdp.fully_shard`, so that whatever
    holds it (a task, a timm model, a backbone) uses the store too.

    Weights that change are noticed, unless they are written through ``.data``, which torch does not
    count: diffusers' ``EMAModel.copy_to`` does so. Call this function after it; or copy with
    ``parameter.copy_(...)`` under `torch.no_grad`. Frozen foundations are known by a few values of
    every tensor: who edits single weights of them, or hooks into them, does without a cache. What
    one device or precision of matrix products has computed is found by others, which round
    otherwise.

    Args:
        encoder: The encoder, or a module with one inside.
        store: The store; None to do without again.
        keep: ``"foundations"``, latents and tokens, to train injection and aggregation: from the
            second epoch on VAE and semantic branch do not run. Encoders with other adapters, or
            another UNet, find them too. ``"results"``, levels or aggregated maps, to train what
            comes after: nothing of the encoder runs. It freezes injection and aggregation for good.

    Raises:
        TypeError: There is no encoder, more than one, or one of a subclass.
        ValueError: Foundations may train, the semantic branch is no module whose weights tell it
            from others, or an unknown ``keep``.

    Example:
        >>> use_cache(encoder, FeatureStore("features.cache"))  # doctest: +SKIP
    """
    if keep not in get_args(Keep):
        raise ValueError(f"keep must be one of {', '.join(get_args(Keep))}, got {keep!r}.")
    _, encoder = find_encoder(encoder)
    if type(encoder) not in (SketchFusionEncoder, CachedEncoder):
        raise TypeError(
            f"expected a SketchFusionEncoder, got its subclass {type(encoder).__name__}, whose own "
            "methods a cache would not see. Use an encoder without them."
        )
    if store is None:
        encoder.__class__ = SketchFusionEncoder
        return
    if not encoder.config.freeze_foundations:
        raise ValueError(
            "this encoder's foundations may train, so what they compute changes and cannot be "
            "kept. Build it with freeze_foundations=True."
        )
    if not isinstance(encoder.semantic, nn.Module):
        raise ValueError(
            f"the semantic branch is a {type(encoder.semantic).__name__}, whose weights cannot be "
            "told from another's. Make it a torch.nn.Module."
        )
    encoder.__class__ = CachedEncoder
    assert isinstance(encoder, CachedEncoder)
    encoder._store, encoder._keep = store, keep
    encoder._named = {}
    if keep == "results":
        encoder.requires_grad_(False)
        encoder.eval()


def record_keys(description: dict[str, Any], image: Tensor) -> list[str]:
    """A key for every image of a batch."""
    device = image.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    about = [FORMAT, description, str(image.dtype), list(image.shape[1:]), str(autocast)]
    prefix = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    keys = []
    for pixels in image.detach().cpu():
        digest = prefix.copy()
        digest.update(tensor_bytes(pixels))
        keys.append(digest.hexdigest())
    return keys


def _lora_switches(module: nn.Module) -> str:
    """What decides, beside weights, what peft's layers compute; empty without any."""
    return "".join(
        str([getattr(child, name, None) for name in _LORA_SWITCHES])
        for child in module.modules()
        if hasattr(type(child), _LORA_SWITCHES[0])
    )


def _version(tensor: Tensor) -> tuple[Any, ...]:
    """Differs after every change of a tensor, in place or not."""
    count = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), count, tensor.dtype
