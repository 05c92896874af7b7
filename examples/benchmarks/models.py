"""The parts of every row, sharing one set of weights for each precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sketchfusion_plugins import EncoderConfig, SketchFusionEncoder, preset
from sketchfusion_plugins.hub import read_architecture
from sketchfusion_plugins.semantic import SemanticBranch

PRESETS = {"base": "paper", "tiny": "tiny"}
# What a user would take instead: timm models of a comparable size, by their common names.
OTHERS = {
    "base": {"DINOv2-L": "vit_large_patch14_dinov2", "DINOv2-B": "vit_base_patch14_dinov2"},
    "tiny": {
        "ViT-tiny": "vit_tiny_patch16_224",
        "ViT-small": "vit_small_patch16_224",
        "ResNet-18": "resnet18",
    },
}
# Stable Diffusion 2.1's text encoder, and one that suits the miniature.
TEXT = {
    "base": {"hidden_size": 1024, "intermediate_size": 4096, "layers": 23, "heads": 16},
    "tiny": {"hidden_size": 192, "intermediate_size": 768, "layers": 3, "heads": 3},
}


@dataclass(frozen=True)
class Models:
    """Everything in one precision.

    Attributes:
        encoder: Ours.
        whole_unet: diffusers' own UNet on the same weights; what ours cuts away is random.
        text: Text encoder, for the empty prompt.
        tokens: Token ids of the empty prompt, ``[1, length]``.
        scheduler: Noise schedule.
    """

    encoder: SketchFusionEncoder
    whole_unet: nn.Module
    text: nn.Module
    tokens: Tensor
    scheduler: Any


def build_models(model: str, precision: str, device: torch.device, source: Any = None) -> Models:
    """Random foundations, with injection as the released code initialises it.

    Args:
        model: ``"base"`` or ``"tiny"``.
        precision: Of the foundations; adapters stay float32.
        device: Where they live.
        source: Encoder to copy weights from, so that two precisions can be compared.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    config = encoder_config(model).replace(foundation_dtype=precision)
    dtype = getattr(torch, precision)
    if source is None:
        encoder = SketchFusionEncoder(config)
    else:
        with torch.device("meta"):
            encoder = SketchFusionEncoder(config)
        adopt(encoder, source, dtype)
    encoder = encoder.to(device).eval()
    architecture = read_architecture(config.diffusion.source)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(architecture["unet"]).eval()
    unet.load_state_dict(encoder.diffusion.denoiser.unet.state_dict(), strict=False, assign=True)
    fill(unet, dtype, device)
    shape = TEXT[model]
    length = encoder.diffusion.denoiser.null_embedding.shape[1]
    options = CLIPTextConfig(
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        max_position_embeddings=length,
    )
    with torch.device("meta"):
        text = CLIPTextModel(options).eval()
    fill(text, dtype, device)
    tokens = torch.zeros(1, length, dtype=torch.long, device=device)
    return Models(encoder, unet, text, tokens, DDIMScheduler(**architecture["scheduler"]))


def encoder_config(model: str) -> EncoderConfig:
    """Configuration that is measured."""
    return preset(PRESETS[model]).replace(weights="random", injection__init="official")


def adopt(encoder: SketchFusionEncoder, source: SketchFusionEncoder, dtype: torch.dtype) -> None:
    """Give an encoder without storage the weights of another, foundations in a precision."""
    state = source.state_dict()
    names = tuple(f"{name}." for name in source.foundation_names())
    encoder.load_state_dict(
        {key: value.to(dtype) if key.startswith(names) else value for key, value in state.items()},
        assign=True,
    )
    denoiser = encoder.diffusion.denoiser
    denoiser.null_embedding = source.diffusion.denoiser.null_embedding.to(dtype)
    buffers = dict(source.named_buffers())
    for name, module in encoder.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = buffers[f"{name}.{key}"]


def fill(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Small random numbers wherever weights have no storage yet; no gradients."""
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None:
                values = parameter.data
                if values.is_meta:
                    values = torch.randn(values.shape, device=device, dtype=dtype) * 0.02
                child._parameters[name] = nn.Parameter(values, requires_grad=False)
        for name, buffer in list(child._buffers.items()):
            if buffer is not None and buffer.is_meta:
                order = torch.arange(buffer.numel(), device=device).reshape(buffer.shape)
                child._buffers[name] = order.to(buffer.dtype)


def variant(models: Models, **changes: Any) -> SketchFusionEncoder:
    """Our encoder with another configuration on the same weights, nothing copied."""
    encoder = models.encoder
    config = encoder.config.replace(**changes)
    with torch.device("meta"):
        skeleton = SketchFusionEncoder(
            config.replace(aggregation=None), semantic=_NoSemantic(encoder.semantic)
        )
    diffusion = skeleton.diffusion
    diffusion.vae = encoder.diffusion.vae
    state = models.whole_unet.state_dict()
    unet = diffusion.denoiser.unet
    unet.load_state_dict({key: state[key] for key in unet.state_dict()}, assign=True)
    unet.requires_grad_(False)
    diffusion.denoiser.null_embedding = encoder.diffusion.denoiser.null_embedding
    skeleton.semantic = encoder.semantic
    skeleton.injector.projections = encoder.injector.projections
    return skeleton.eval()


def build_other(name: str, size: int, device: torch.device) -> tuple[Callable[[Tensor], Any], int]:
    """A timm model without classifier and the size it is run at, a multiple of its patch."""
    import timm

    options: dict[str, Any] = {"num_classes": 0}
    if name.startswith("vit"):
        patch = int(name.split("patch")[1].split("_")[0])
        size = round(size / patch) * patch
        options["img_size"] = size
    model = timm.create_model(name, **options).eval().requires_grad_(False).to(device)
    return model, size


class _NoSemantic:
    """Stands in while a skeleton is built."""

    def __init__(self, branch: SemanticBranch) -> None:
        self.channels, self.patch_size = branch.channels, branch.patch_size
        self.image_size, self.mean, self.std = branch.image_size, branch.mean, branch.std

    def __call__(self, image: Tensor) -> Tensor:
        raise NotImplementedError
