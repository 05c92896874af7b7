"""The frozen semantic branch: an image transformer's patch tokens on a grid.

Any model that fits `SemanticBranch` can stand in; two loaders are given, for transformers' CLIP
and for timm's ViTs (DINOv2, DINOv3, SigLIP, ...).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins.config import SemanticConfig
from sketchfusion_plugins.hub import (
    bundled_architectures,
    cached_snapshots,
    explain_loading,
    find_optional_file,
    read_architecture,
    read_json,
    refuse_unavailable,
    require_weights,
    timm_safetensors,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PROCESSOR_FILE = "preprocessor_config.json"


@runtime_checkable
class SemanticBranch(Protocol):
    """What the encoder asks of a semantic branch.

    Attributes:
        channels: Width of a token.
        patch_size: Pixels per token.
        image_size: Side of the square images that it was trained on.
        mean: Mean of its input normalisation, RGB in 0..1.
        std: Standard deviation of its input normalisation.
    """

    channels: int
    patch_size: int
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: Tensor) -> Tensor:
        """Tokens ``[B, channels, H / patch_size, W / patch_size]`` of a normalised image."""
        ...


class ClipVision(nn.Module):
    """Patch tokens of transformers' CLIP vision tower, without the class token.

    Position embeddings are interpolated for grids other than the trained one.
    """

    def __init__(
        self,
        model: Any,
        final_norm: bool = False,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.channels: int = model.config.hidden_size
        self.patch_size: int = model.config.patch_size
        self.image_size: int = model.config.image_size
        self.mean: Sequence[float] = tuple(mean)
        self.std: Sequence[float] = tuple(std)
        # The tower applies it to the class token alone, which is not used here.
        self.final_norm = model.post_layernorm if final_norm else nn.Identity()
        model.post_layernorm = nn.Identity()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """See `SemanticBranch`."""
        weight = self.model.embeddings.patch_embedding.weight
        output = self.model(image.to(weight.dtype), interpolate_pos_encoding=True)
        tokens = self.final_norm(output.last_hidden_state[:, 1:])
        rows, columns = (side // self.patch_size for side in image.shape[-2:])
        grid: Tensor = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return grid


class TimmVision(nn.Module):
    """Patch tokens of a timm ViT, without its prefix tokens."""

    def __init__(self, model: Any, final_norm: bool = False) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"{type(model).__name__} has no forward_intermediates and cannot be a semantic "
                "branch; choose a ViT such as 'vit_base_patch14_dinov2.lvd142m'."
            )
        config = model.pretrained_cfg
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        self.channels: int = model.num_features
        self.patch_size: int = model.feature_info[-1]["reduction"]
        self.image_size: int = (size or config["input_size"][1:])[0]
        self.mean: Sequence[float] = tuple(config["mean"])
        self.std: Sequence[float] = tuple(config["std"])
        self.last = len(model.feature_info) - 1
        if final_norm and isinstance(getattr(model, "norm", None), nn.Identity):
            # Where timm pools by the mean, the last norm comes after it.
            model.norm = getattr(model, "fc_norm", model.norm)
        model.prune_intermediate_layers([self.last], prune_norm=not final_norm, prune_head=True)
        self.norm = final_norm
        self.weighted = next(
            name
            for name, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), Tensor)
        )
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """See `SemanticBranch`."""
        # A replica of nn.DataParallel has weights, and lists no parameters.
        dtype = self.model.get_submodule(self.weighted).weight.dtype
        tokens: list[Tensor] = self.model.forward_intermediates(
            # Some ViTs begin with a stem of convolutions, which run faster with channels innermost.
            image.to(dtype).contiguous(memory_format=torch.channels_last),
            indices=[self.last],
            norm=self.norm,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return tokens[0]


def resize_for_tokens(image: Tensor, branch: SemanticBranch, shrink: bool = True) -> Tensor:
    """Image as the semantic branch wants it: same field of view, about its trained token count.

    The aspect ratio is kept up to rounding to whole patches and nothing is cropped, so that token
    ``(i, j)`` of the grid covers the same part of the image as the UNet's cells there do.

    Args:
        image: ``[B, 3, H, W]`` in -1..1.
        branch: Branch that will read it.
        shrink: Whether images larger than its own are shrunk; if not, they get more tokens.

    Returns:
        Image ``[B, 3, H', W']``, sides divisible by ``patch_size``, normalised for the branch.
    """
    height, width = image.shape[-2:]
    grid: float = branch.image_size // branch.patch_size
    if not shrink:
        grid = max(grid, math.sqrt(height * width) / branch.patch_size)
    rows = max(1, round(grid * math.sqrt(height / width)))
    columns = max(1, round(grid * math.sqrt(width / height)))
    size = (rows * branch.patch_size, columns * branch.patch_size)
    pixels = image.float()
    if size != (height, width):
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    mean = torch.tensor(branch.mean, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(branch.std, device=image.device).view(1, 3, 1, 1)
    return (pixels * 0.5 + 0.5 - mean) / std


def semantic_changes(source: str | None) -> dict[str, str]:
    """Changes of a configuration, as in `EncoderConfig.replace`, that make a source its branch.

    Args:
        source: A folder, whose layout tells its kind; an id ``owner/name`` of a CLIP on the hub;
            or the name of a timm model, which has no owner. None for no changes.
    """
    if source is None:
        return {}
    changes = {"semantic__source": source}
    if not Path(source).is_dir():
        changes["semantic__kind"] = "clip" if "/" in source else "timm"
    return changes


def load_semantic(
    config: SemanticConfig,
    *,
    weights: str = "pretrained",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
) -> ClipVision | TimmVision:
    """Build the branch from the hub, a local folder, or with random weights.

    Without ``allow_pickle`` pickled weights are refused, but for those of a timm model on the hub
    that has no safetensors: timm reads them by torch's restricted unpickler, which runs no code.

    A CLIP's images are normalised as its ``preprocessor_config.json`` says; without one, or where
    that says nothing, with OpenAI's mean and standard deviation.

    Raises:
        OSError: It cannot be loaded; the message says how to mend it.
        ValueError: The model is of a kind that is not supported.
    """
    refuse_unavailable(config.source, weights)
    if _is_timm(config):
        return _load_timm(config, weights, dtype, allow_pickle)
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = Path(config.source)
    if weights == "random":
        if folder.is_dir():
            architecture = read_json(folder / "config.json")
            vision = architecture.get("vision_config", architecture)
        else:
            vision = read_architecture(config.source)["vision"]
        model = CLIPVisionModel(CLIPVisionConfig(**vision)).to(dtype)
    else:
        with explain_loading("CLIP image encoder", config.source, config.revision):
            model, loaded = _load_clip(
                config,
                dtype=dtype,
                use_safetensors=None if allow_pickle else True,
                output_loading_info=True,
            )
            require_weights(loaded["missing_keys"])
    normalisation = _read_normalisation(config)
    return ClipVision(
        model,
        config.final_norm,
        normalisation.get("image_mean") or CLIP_MEAN,
        normalisation.get("image_std") or CLIP_STD,
    ).eval()


def _load_clip(config: SemanticConfig, **options: Any) -> Any:
    """What transformers' ``from_pretrained`` gives; of pickled weights, a conversion in the cache.

    Online transformers finds it itself, as of ``openai/clip-vit-large-patch14-336``.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    revision = config.revision or "main"
    try:
        return CLIPVisionModel.from_pretrained(config.source, revision=revision, **options)
    except OSError:
        if config.revision is not None or Path(config.source).is_dir():
            raise
        having = [
            name
            for name, folder in cached_snapshots(config.source).items()
            if any(folder.glob("model*.safetensors"))
        ]
        if not having or revision in having:
            raise
        # Of a conversion transformers keeps the weights alone.
        vision = CLIPVisionConfig.from_pretrained(config.source, revision=revision)
        return CLIPVisionModel.from_pretrained(
            config.source, revision=having[0], config=vision, **options
        )


def _is_timm(config: SemanticConfig) -> bool:
    """Whether timm reads it; a folder's layout overrules ``kind``."""
    path = Path(config.source) / "config.json"
    if not path.is_file():
        return config.kind == "timm"
    with explain_loading("CLIP image encoder", config.source, config.revision):
        return "architecture" in read_json(path)


def _read_normalisation(config: SemanticConfig) -> dict[str, Any]:
    """What a CLIP's source says of ``image_mean`` and ``image_std``."""
    if not Path(config.source).is_dir() and config.source in bundled_architectures():
        return read_architecture(config.source)
    with explain_loading("CLIP image encoder", config.source, config.revision):
        path = find_optional_file(config.source, PROCESSOR_FILE, config.revision)
        return {} if path is None else read_json(path)


def _load_timm(
    config: SemanticConfig, weights: str, dtype: torch.dtype, allow_pickle: bool
) -> TimmVision:
    import timm

    folder = Path(config.source).is_dir()
    name = f"local-dir:{config.source}" if folder else config.source
    if not folder and not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:5]
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise ValueError(
            f"timm knows no model {name!r}.{hint} See timm.list_models('vit_*'). A CLIP needs its "
            "folder, or its id 'owner/name' on the hub."
        )
    try:
        with explain_loading("image transformer", name, config.revision):
            safely = weights == "pretrained" and not allow_pickle
            model = timm.create_model(
                name,
                pretrained=weights == "pretrained",
                pretrained_cfg_overlay=_without_pickle(name) if safely else None,
                num_classes=0,
                dynamic_img_size=True,
            )
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        raise ValueError(
            f"{name} has no dynamic_img_size, which lets a timm ViT read images of any size, and "
            "cannot be a semantic branch; choose one such as 'vit_base_patch14_dinov2.lvd142m'."
        ) from error
    if weights == "pretrained":
        _warn_of_activation(name, model.pretrained_cfg)
    return TimmVision(model.to(dtype), config.final_norm).eval()


def _without_pickle(name: str) -> dict[str, str]:
    """What makes timm read no pickled file of a folder; see `timm_safetensors`.

    Raises:
        ValueError: It is known before loading that there are no others; says where they are.
    """
    import timm

    if name.startswith("local-dir:"):
        return timm_safetensors(name)
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.url and not (cfg.hf_hub_id or cfg.file):
        raise ValueError(f"timm has its weights pickled alone, at {cfg.url}.")
    return {}


def _warn_of_activation(name: str, config: Mapping[str, Any]) -> None:
    import timm

    notes = " ".join(config.get("notes") or ())
    if "natively quickgelu" not in notes.lower() or "quickgelu" in name:
        return
    variant = name.replace("clip_", "clip_quickgelu_", 1)
    advice = f"'{variant}'" if timm.is_model(variant) else "timm.list_models('*quickgelu*')"
    warnings.warn(
        f"the weights of {name} were trained with QuickGELU, and timm runs them with GELU under "
        f"this name, which changes the features. Use {advice}.",
        stacklevel=2,
    )
