"""The fused encoder: against the libraries end to end, and in every use of a torch module."""

from __future__ import annotations

import json
import math
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionModel

from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.diffusion import Diffusion
from sketchfusion_plugins.encoder import FeatureLevels, FoundationOutputs, SketchFusionEncoder
from sketchfusion_plugins.null_prompt import load_null_embedding
from sketchfusion_plugins.presets import preset
from sketchfusion_plugins.semantic import SemanticBranch

SITES = ("down0", "down1", "down2", "down3", "up0", "up1", "up2")
FOUNDATIONS = ("diffusion.", "semantic.")


def _adapters(encoder: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in encoder.named_parameters()
        if not name.startswith(FOUNDATIONS)
    }


def _foundations(encoder: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in encoder.named_parameters()
        if name.startswith(FOUNDATIONS)
    }


def _relative(got: Tensor, expected: Tensor) -> float:
    return ((got.float() - expected.float()).norm() / expected.float().norm()).item()


# --- the flow ----------------------------------------------------------------------------------


class Reference:
    """The whole flow, written with diffusers, transformers and torch's functions alone."""

    def __init__(self, pipeline: Path, clip: Path, run_unet: Any) -> None:
        self.vae = AutoencoderKL.from_pretrained(pipeline, subfolder="vae").eval()
        self.unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet").eval()
        self.scheduler = diffusers.PNDMScheduler.from_pretrained(pipeline, subfolder="scheduler")
        self.clip = CLIPVisionModel.from_pretrained(clip).eval()
        self.processor = json.loads((clip / "preprocessor_config.json").read_text())
        self.run_unet = run_unet

    def tokens(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        rows = round(8 * math.sqrt(height / width))
        columns = round(8 * math.sqrt(width / height))
        pixels = (image + 1) / 2
        if (height, width) != (8 * rows, 8 * columns):
            pixels = F.interpolate(pixels, (8 * rows, 8 * columns), mode="bicubic", antialias=True)
        mean = torch.tensor(self.processor["image_mean"]).view(1, 3, 1, 1)
        std = torch.tensor(self.processor["image_std"]).view(1, 3, 1, 1)
        hidden = self.clip((pixels - mean) / std, interpolate_pos_encoding=True).last_hidden_state
        return hidden[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))

    def levels(
        self,
        image: Tensor,
        state: dict[str, Tensor],
        prompt: Tensor,
        draws: int = 1,
        inject_skips: bool = True,
    ) -> list[Tensor]:
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
        tokens = self.tokens(image)

        def addition(name: str, hidden: Tensor) -> Tensor:
            weight = state.get(f"injector.projections.{name}.weight")
            if weight is None:
                return torch.zeros(())
            projected = F.conv2d(tokens, weight, state[f"injector.projections.{name}.bias"])
            return F.interpolate(projected, hidden.shape[-2:], mode="bilinear")

        latents = self.vae.encode(image).latent_dist.mode() * self.vae.config.scaling_factor
        generator = torch.Generator().manual_seed(0)
        runs = []
        for _ in range(draws):
            noise = torch.randn(latents.shape[1:], generator=generator)
            noisy = self.scheduler.add_noise(latents, noise[None], torch.tensor([195]))
            runs.append(self.run_unet(self.unet, noisy, 195, prompt, addition, inject_skips))
        return [torch.stack([run[name] for run in runs]).mean(0) for name in ("up2", "up1", "up0")]


@pytest.fixture(scope="module")
def reference(pipeline_folder: Path, clip_folder: Path, run_unet: Any) -> Reference:
    return Reference(pipeline_folder, clip_folder, run_unet)


@pytest.mark.parametrize("size", [(64, 64), (33, 57), (96, 64)])
@pytest.mark.parametrize("inject_skips", [True, False])
@torch.no_grad()
def test_levels_equal_the_flow_in_the_libraries(
    size: tuple[int, int], inject_skips: bool, build: Any, reference: Reference, sketches: Any
) -> None:
    encoder = build(injection__inject_skips=inject_skips)
    image = sketches(2, *size)
    prompt = load_null_embedding(encoder.config.diffusion, {"cross_attention_dim": 32})
    state = encoder.state_dict()
    expected = reference.levels(image, state, prompt, inject_skips=inject_skips)
    got = encoder.forward_levels(image)
    assert got.names == ("up2", "up1", "up0")
    assert got.strides == (8, 16, 32)
    for level, values in zip(got.maps, expected, strict=True):
        # Factors of signal and noise are rounded once more in add_noise.
        torch.testing.assert_close(level, values, atol=2e-4, rtol=1e-4)
    plain = reference.levels(image, {}, prompt)
    assert _relative(plain[0], expected[0]) > 0.1


@torch.no_grad()
def test_ensemble_equals_the_flow_in_the_libraries(
    build: Any, reference: Reference, sketches: Any
) -> None:
    encoder = build(diffusion__ensemble=3, diffusion__ensemble_chunk=2)
    image = sketches(2)
    prompt = load_null_embedding(encoder.config.diffusion, {"cross_attention_dim": 32})
    expected = reference.levels(image, encoder.state_dict(), prompt, draws=3)
    for level, values in zip(encoder.forward_levels(image).maps, expected, strict=True):
        torch.testing.assert_close(level, values, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_tokens_equal_the_libraries(build: Any, reference: Reference, sketches: Any) -> None:
    image = sketches(2, 96, 64)
    expected = reference.tokens(image)
    torch.testing.assert_close(build().forward_tokens(image), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_large_image_may_have_more_tokens(
    build: Any, reference: Reference, sketches: Any
) -> None:
    image = sketches(2, 96, 128)
    clip, mean, std = (
        reference.clip,
        *(
            torch.tensor(reference.processor[name]).view(1, 3, 1, 1)
            for name in ("image_mean", "image_std")
        ),
    )
    hidden = clip(((image + 1) / 2 - mean) / std, interpolate_pos_encoding=True).last_hidden_state
    expected = hidden[:, 1:].transpose(1, 2).unflatten(2, (96 // 8, 128 // 8))
    encoder = build(semantic__shrink=False)
    torch.testing.assert_close(encoder.forward_tokens(image), expected, atol=1e-4, rtol=1e-4)
    tokens = encoder.encode(image).tokens
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
    assert build().forward_tokens(image).shape[2:] == (round(8 * 0.75**0.5), round(8 / 0.75**0.5))


@torch.no_grad()
def test_zero_injection_is_plain_stable_diffusion(build: Any, sketches: Any) -> None:
    encoder = build(untouched=True)
    image = sketches(2, 40, 72)
    fused, plain = encoder.forward_levels(image), encoder.forward_levels(image, fuse=False)
    assert all(torch.equal(a, b) for a, b in zip(fused.maps, plain.maps, strict=True))


@torch.no_grad()
def test_fuse_switch(build: Any, sketches: Any) -> None:
    encoder, image = build(), sketches(1)
    plain = build(untouched=True).forward_levels(image)
    for a, b, c in zip(
        encoder.forward_levels(image, fuse=False).maps,
        plain.maps,
        encoder.forward_levels(image).maps,
        strict=True,
    ):
        assert torch.equal(a, b)
        assert _relative(c, a) > 0.1


@torch.no_grad()
def test_forward_is_the_aggregated_levels(build: Any, sketches: Any) -> None:
    encoder, image = build(), sketches(2, 33, 57)
    levels = encoder.forward_levels(image)
    # The map is of the padded image, cropped to the cells that the image touches.
    expected = encoder.aggregator(levels.maps, (5, 8))
    assert torch.equal(encoder(image), expected)
    assert torch.equal(encoder.aggregate(levels, (33, 57)), expected)


@torch.no_grad()
def test_fine_maps_keep_their_place(build: Any, sketches: Any) -> None:
    """At stride 4 the padded image has more cells than the image: they are cut, not squeezed."""
    image = sketches(1, 33, 57)
    single, pyramid = build(aggregation__stride=4), build(aggregation__stride=(32, 4))
    levels = single.forward_levels(image).maps
    assert torch.equal(single(image), single.aggregator(levels, (10, 16))[..., :9, :15])
    coarse, fine = pyramid(image)
    assert torch.equal(coarse, pyramid.aggregator.maps[0](levels, (2, 2)))
    assert torch.equal(fine, pyramid.aggregator.maps[1](levels, (10, 16))[..., :9, :15])


@torch.no_grad()
def test_without_aggregation(build: Any, sketches: Any) -> None:
    encoder = build(aggregation=None)
    assert encoder.aggregator is None
    assert len(encoder.forward_levels(sketches(1)).maps) == 3
    with pytest.raises(ValueError, match="without aggregation; call forward_levels"):
        encoder(sketches(1))


@torch.no_grad()
def test_batch_equals_singles(build: Any, sketches: Any) -> None:
    encoder, images = build(), sketches(4)
    singles = torch.cat([encoder(image[None]) for image in images])
    # Convolutions of other batch sizes may sum in another order.
    torch.testing.assert_close(encoder(images), singles, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder(images[[3, 1]]), singles[[3, 1]], atol=1e-4, rtol=1e-4)
    assert _relative(singles[0], singles[1]) > 0.05


@torch.no_grad()
def test_seeds(build: Any, sketches: Any) -> None:
    encoder, image = build(diffusion__seed=3), sketches(1)
    first = encoder(image)
    assert torch.equal(encoder(image), first)
    assert torch.equal(encoder(image, seed=3), first)
    assert torch.equal(encoder(image, generator=torch.Generator().manual_seed(3)), first)
    assert not torch.allclose(encoder(image, seed=4), first)
    generator = torch.Generator().manual_seed(3)
    encoder(image, generator=generator)
    assert not torch.allclose(encoder(image, generator=generator), first)


def test_global_generator_is_left_alone(config: EncoderConfig, sketches: Any) -> None:
    image = sketches(1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    values = config.replace(
        weights="random", aggregation=None, injection__sites=(), diffusion__posterior="sample"
    )
    encoder = SketchFusionEncoder(values)
    encoder.forward_levels(image)
    assert torch.equal(torch.get_rng_state(), before)


# --- what was encoded before -------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (33, 57)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"diffusion__ensemble": 3, "diffusion__ensemble_chunk": 2, "aggregation__stride": (4, 32)},
        {"diffusion__posterior": "sample", "foundation_dtype": "bfloat16"},
        {"injection__sites": ()},
    ],
)
def test_encoded_images_give_what_images_give(
    changes: dict[str, Any], size: tuple[int, int], build: Any, sketches: Any
) -> None:
    encoder, image = build(**changes).train(), sketches(2, *size)
    adapters = list(_adapters(encoder).values())
    for seed in (None, 5):
        encoded = encoder.encode(image, seed=seed)
        assert encoded.image_size == size
        assert (encoded.tokens is None) == (changes.get("injection__sites") == ())
        assert not any(part.requires_grad for part in encoded if isinstance(part, Tensor))
        results = [encoder(given, seed=seed) for given in (image, encoded)]
        maps = [result if isinstance(result, tuple) else (result,) for result in results]
        assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))
        grads = [torch.autograd.grad(sum(m.sum() for m in found), adapters) for found in maps]
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    # One generator serves the posterior's sample and then the noise, in one call and in two.
    one, two = (torch.Generator().manual_seed(7) for _ in range(2))
    expected = encoder.forward_levels(image, generator=one)
    got = encoder.forward_levels(encoder.encode(image, generator=two), generator=two)
    assert all(torch.equal(a, b) for a, b in zip(expected.maps, got.maps, strict=True))
    assert torch.equal(one.get_state(), two.get_state())


@torch.no_grad()
def test_encoded_without_tokens(build: Any, sketches: Any) -> None:
    encoder, image = build(), sketches(1)
    encoded = encoder.encode(image, fuse=False)
    assert encoded.tokens is None
    got = encoder.forward_levels(encoded, fuse=False)
    expected = encoder.forward_levels(image, fuse=False)
    assert all(torch.equal(a, b) for a, b in zip(got.maps, expected.maps, strict=True))
    with pytest.raises(ValueError, match="hold no tokens to inject"):
        encoder(encoded)


def test_what_another_encoder_encoded_is_refused(build: Any, sketches: Any) -> None:
    encoder = build()
    latents, tokens, size = encoder.encode(sketches(2, 40, 64))
    for wrong in (
        FoundationOutputs(latents[:, :3], tokens, size),
        FoundationOutputs(latents[..., :7], tokens, size),
        FoundationOutputs(latents[0], tokens, size),
        FoundationOutputs(latents, tokens, (40, 65)),
    ):
        with pytest.raises(ValueError, match=r"expected latents .* got \["):
            encoder(wrong)
    for wrong in (tokens[:1], tokens[:, :9]):
        with pytest.raises(ValueError, match=r"expected tokens \[2, 48, rows, columns\], got \["):
            encoder(FoundationOutputs(latents, wrong, size))


# --- shapes ------------------------------------------------------------------------------------


def _shape(size: tuple[int, int], stride: int) -> tuple[int, ...]:
    return (2, 64, math.ceil(size[0] / stride), math.ceil(size[1] / stride))


def test_shapes_of_all_sizes(config: EncoderConfig) -> None:
    """On the meta device, where a forward pass costs nothing."""
    strides = (4, 8, 16, 32)
    values = config.replace(weights="random", aggregation__stride=strides)
    with torch.device("meta"):
        encoder = SketchFusionEncoder(values).eval()
        for size in ((32, 32), (33, 57), (96, 64), (336, 336), (41, 128)):
            image = torch.empty(2, 3, *size)
            maps, levels = encoder(image), encoder.forward_levels(image)
            assert [tuple(level.shape) for level in maps] == [_shape(size, s) for s in strides]
            assert levels.strides == strides[1:]
            assert [tuple(level.shape) for level in levels.maps] == [
                _shape(size, stride) for stride in strides[1:]
            ]


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_shape_of_one_map(stride: int, config: EncoderConfig) -> None:
    with torch.device("meta"):
        encoder = SketchFusionEncoder(config.replace(weights="random", aggregation__stride=stride))
        assert encoder(torch.empty(2, 3, 33, 57)).shape == _shape((33, 57), stride)


@pytest.mark.parametrize("size", [(32, 32), (33, 57), (96, 64)])
@torch.no_grad()
def test_real_shapes_are_those_of_the_meta_device(
    size: tuple[int, int], build: Any, sketches: Any
) -> None:
    maps = build(aggregation__stride=(4, 32))(sketches(1, *size))
    assert [tuple(level.shape[2:]) for level in maps] == [
        (math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in (4, 32)
    ]
    assert all(bool(level.isfinite().all()) for level in maps)


@pytest.mark.parametrize("style", ["sd15", "bk_sdm", "sdxl"])
def test_other_unets(
    style: str, config: EncoderConfig, tmp_path: Path, make_unet: Any, make_vae: Any, sketches: Any
) -> None:
    make_unet(style).save_config(tmp_path / "unet")
    make_vae().save_config(tmp_path / "vae")
    diffusers.DDIMScheduler().save_config(tmp_path / "scheduler")
    values = config.replace(diffusion__source=str(tmp_path), weights="random")
    encoder = SketchFusionEncoder(values)
    levels = encoder.forward_levels(sketches(1, 40, 64))
    assert levels.strides == (8, 16, 32)
    assert [tuple(level.shape[2:]) for level in levels.maps] == [(5, 8), (3, 4), (2, 2)]
    result = encoder(sketches(1, 40, 64))
    assert result.shape == (1, 64, 5, 8)
    result.square().mean().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in _adapters(encoder).values())
    assert "mid" not in encoder.injector.projections


@torch.no_grad()
def test_one_channel(build: Any, sketches: Any) -> None:
    grey = sketches(2)[:, :1]
    assert torch.equal(build(in_channels=1)(grey), build()(grey.repeat(1, 3, 1, 1)))


@torch.no_grad()
def test_four_channels(build: Any, sketches: Any) -> None:
    encoder, image = build(in_channels=4), sketches(2)
    opaque = torch.cat([image, torch.ones(2, 1, 64, 64)], 1)
    torch.testing.assert_close(encoder(opaque), build()(image), atol=1e-5, rtol=1e-5)
    transparent = torch.cat([image, -torch.ones(2, 1, 64, 64)], 1)
    white = torch.ones(2, 3, 64, 64)
    torch.testing.assert_close(encoder(transparent), build()(white), atol=1e-5, rtol=1e-5)


# --- taps and sites ----------------------------------------------------------------------------


def test_default_sites_are_the_released_codes(build: Any) -> None:
    assert tuple(build().injector.projections) == SITES


@pytest.mark.parametrize("sites", [(), ("mid",), ("up1", "down0")])
@torch.no_grad()
def test_chosen_sites(sites: tuple[str, ...], build: Any, sketches: Any) -> None:
    encoder, image = build(injection__sites=sites), sketches(1)
    assert set(encoder.injector.projections) == set(sites)
    plain = encoder.forward_levels(image, fuse=False)
    fused = encoder.forward_levels(image)
    same = all(torch.equal(a, b) for a, b in zip(plain.maps, fused.maps, strict=True))
    assert same == (not sites)


def test_unknown_names(build: Any) -> None:
    with pytest.raises(ValueError, match=r"site\(s\) up3; blocks that run .* down0, .*up2\."):
        build(injection__sites=("up0", "up3"))
    with pytest.raises(ValueError, match=r"unknown tap.*up7.*down0, .*up3"):
        build(taps=("up7",))


@torch.no_grad()
def test_configured_taps_come_fine_to_coarse(build: Any, sketches: Any) -> None:
    levels = build(taps=("up1", "down0", "mid")).forward_levels(sketches(1))
    assert isinstance(levels, FeatureLevels)
    assert levels.strides == (16, 16, 64)
    assert set(levels.names[:2]) == {"down0", "up1"}
    assert levels.names[2] == "mid"
    assert [level.shape[-1] for level in levels.maps] == [4, 4, 1]


@torch.no_grad()
def test_set_taps(build: Any, sketches: Any) -> None:
    encoder, image = build(), sketches(1)
    before = encoder.forward_levels(image)
    encoder.set_taps(("up0",))
    after = encoder.forward_levels(image)
    assert after.names == ("up0",)
    assert torch.equal(after.maps[0], before.maps[2])
    names = [name for name, _ in encoder.named_parameters()]
    assert not any("up_blocks.1" in name or "up_blocks.2" in name for name in names)
    assert tuple(encoder.injector.projections) == SITES[:5]
    assert encoder.aggregator is None
    assert encoder.config.taps == ("up0",)
    assert encoder.config.aggregation is None
    # The configuration describes what is left.
    again = SketchFusionEncoder(encoder.config)
    assert set(again.state_dict()) == set(encoder.state_dict())
    with pytest.raises(ValueError, match="up2"):
        encoder.set_taps(("up2",))


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["zero", "official"])
@pytest.mark.parametrize("stride", [8, (8, 16)])
def test_every_adapter_gets_a_gradient_and_no_foundation_does(
    init: str, stride: int | tuple[int, ...], build: Any, sketches: Any
) -> None:
    """The released code detaches its levels, so that its injection never trains."""
    encoder = build(untouched=True, injection__init=init, aggregation__stride=stride).train()
    result = encoder(sketches(2, 40, 64))
    maps = result if isinstance(result, tuple) else (result,)
    target = torch.Generator().manual_seed(0)
    loss = sum((level * torch.randn(level.shape, generator=target)).mean() for level in maps)
    loss.backward()
    adapters = _adapters(encoder)
    assert len(adapters) > 2 * len(SITES)
    for name, parameter in adapters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name
    for name, parameter in _foundations(encoder).items():
        assert not parameter.requires_grad, name
        assert parameter.grad is None, name


def test_foundations_do_not_move_in_a_step(build: Any, sketches: Any) -> None:
    encoder = build(untouched=True).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.1, weight_decay=0.5)
    encoder(sketches(2)).square().mean().backward()
    optimizer.step()
    moved = {name for name, t in encoder.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == set(_adapters(encoder))


def test_loss_falls(build: Any, sketches: Any) -> None:
    encoder = build(untouched=True, aggregation__normalize=True).train()
    trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    images = sketches(2)
    losses = []
    for _ in range(6):
        pooled = encoder(images).mean((2, 3))
        loss = F.cosine_similarity(pooled[:1], pooled[1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_train_keeps_foundations_in_eval_mode(build: Any) -> None:
    encoder = build()
    for mode in (True, False, True):
        assert encoder.train(mode) is encoder
        assert encoder.training == encoder.aggregator.training == mode
        assert not any(m.training for part in encoder.foundations() for m in part.modules())
    unfrozen = build(freeze_foundations=False).train()
    assert all(module.training for module in unfrozen.modules())


def test_dropout_acts_in_every_epoch(build: Any, sketches: Any) -> None:
    """The released code leaves train mode after its first epoch."""
    encoder, image = build(aggregation__dropout=0.5), sketches(1)
    with torch.no_grad():
        for _ in range(2):
            encoder.train()
            assert not torch.equal(encoder(image), encoder(image))
            encoder.eval()
            assert torch.equal(encoder(image), encoder(image))


@pytest.mark.parametrize(
    ("source", "kind", "final_norm"),
    [
        (None, "clip", False),
        (None, "clip", True),
        ("test_vit", "timm", False),
        ("test_vit3", "timm", True),
        ("vit_tiny_patch16_dinov3_qkvb", "timm", False),
    ],
)
@pytest.mark.parametrize("style", ["small", "bk_sdm"])
def test_unfrozen_foundations_have_no_dead_parameter(
    source: str | None,
    kind: str,
    final_norm: bool,
    style: str,
    config: EncoderConfig,
    tmp_path: Path,
    make_unet: Any,
    make_vae: Any,
    sketches: Any,
) -> None:
    make_unet(style).save_config(tmp_path / "unet")
    make_vae().save_config(tmp_path / "vae")
    diffusers.DDIMScheduler().save_config(tmp_path / "scheduler")
    values = config.replace(
        weights="random",
        diffusion__source=str(tmp_path),
        freeze_foundations=False,
        semantic__source=source or config.semantic.source,
        semantic__kind=kind,
        semantic__final_norm=final_norm,
    )
    encoder = SketchFusionEncoder(values).train()
    encoder(sketches(1)).square().mean().backward()
    dead = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert dead == []


@pytest.mark.parametrize("frozen", [True, False])
def test_gradient_checkpointing(frozen: bool, build: Any, sketches: Any) -> None:
    image = sketches(2, 40, 64)
    results = []
    for enable in (False, True, False):
        encoder = build(freeze_foundations=frozen).train()
        encoder.set_grad_checkpointing(True)
        encoder.set_grad_checkpointing(enable)
        calls = [0]

        def count(_: Any, __: Any, calls: list[int] = calls) -> None:
            calls[0] += 1

        # Recomputation stops as soon as it has what it needs, so a hook after may never run.
        encoder.diffusion.denoiser.unet.up_blocks[1].resnets[0].register_forward_pre_hook(count)
        output = encoder(image)
        output.square().mean().backward()
        grads = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
        results.append((output, grads, calls[0]))
    (plain, grads, once), (output, others, twice), (_, __, again) = results
    assert (once, twice, again) == (1, 2, 1)
    assert torch.equal(plain, output)
    assert set(grads) == set(others)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, atol=1e-6, rtol=1e-4, msg=name)


def test_gradient_checkpointing_of_a_light_vae(sketches: Any) -> None:
    small = preset("tiny").replace(weights="random", freeze_foundations=False)
    encoder, image = SketchFusionEncoder(small).eval(), sketches(1)
    with torch.no_grad():
        expected = encoder(image)
    encoder.set_grad_checkpointing()
    torch.testing.assert_close(encoder(image).detach(), expected)


def test_parameter_count(build: Any) -> None:
    encoder = build()
    count = encoder.trainable_parameters()
    assert count.trainable == sum(p.numel() for p in _adapters(encoder).values())
    assert count.total == sum(p.numel() for p in encoder.parameters())
    share = 100 * count.trainable / count.total
    assert str(count) == (
        f"trainable params: {count.trainable:,} || all params: {count.total:,} || "
        f"trainable%: {share:.4f}"
    )
    assert build(freeze_foundations=False).trainable_parameters().trainable == count.total


# --- precision ---------------------------------------------------------------------------------


def test_bfloat16_foundations(build: Any, sketches: Any) -> None:
    encoder, image = build(foundation_dtype="bfloat16").train(), sketches(2)
    assert {p.dtype for p in _foundations(encoder).values()} == {torch.bfloat16}
    assert {p.dtype for p in _adapters(encoder).values()} == {torch.float32}
    levels = encoder.forward_levels(image)
    with torch.no_grad():
        expected = build().forward_levels(image)
    for level, values in zip(levels.maps, expected.maps, strict=True):
        assert level.dtype == torch.float32
        # bfloat16 keeps 8 bits: 0.4 % per operation, over some fifty layers.
        assert _relative(level, values) < 0.05
    result = encoder(image)
    assert result.dtype == torch.float32
    result.square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in _adapters(encoder).values())
    assert all(bool(p.grad.abs().sum() > 0) for p in _adapters(encoder).values())


def test_autocast(build: Any, sketches: Any) -> None:
    encoder, image = build().train(), sketches(2)
    with torch.no_grad():
        expected = encoder(image)
    with torch.autocast("cpu", torch.bfloat16):
        result = encoder(image)
        loss = result.float().square().mean()
    loss.backward()
    assert _relative(result, expected) < 0.1
    assert all(bool(p.grad.isfinite().all()) for p in _adapters(encoder).values())


@torch.no_grad()
def test_whole_encoder_in_bfloat16(build: Any, sketches: Any) -> None:
    image = sketches(1)
    expected = build()(image)
    encoder = build().to(torch.bfloat16)
    for given in (image, image.bfloat16()):
        result = encoder(given)
        assert result.dtype == torch.bfloat16
        assert _relative(result, expected) < 0.1
    assert encoder.forward_tokens(image).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@torch.no_grad()
def test_images_of_other_precision(dtype: torch.dtype, build: Any, sketches: Any) -> None:
    encoder, image = build(), sketches(1)
    result = encoder(image.to(dtype))
    assert result.dtype == torch.float32
    assert _relative(result, encoder(image)) < 0.01


# --- as a module -------------------------------------------------------------------------------


@torch.no_grad()
def test_compiles_without_graph_breaks(build: Any, sketches: Any) -> None:
    # Up to here every kind of block has run.
    encoder, image = build(taps=("up0", "up1")), sketches(1, 40, 64)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image), encoder(image), atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("copy", [deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@torch.no_grad()
def test_copies(copy: Any, build: Any, sketches: Any) -> None:
    # Not from a file, whose tensors lie where they lie: sums round as the memory is aligned.
    encoder, image = build(weights="random"), sketches(1)
    other = copy(encoder)
    assert torch.equal(other(image), encoder(image))
    next(other.injector.parameters()).zero_()
    assert next(encoder.injector.parameters()).abs().sum() > 0
    assert other.config == encoder.config


def test_an_encoder_that_recomputes_can_be_pickled(build: Any, sketches: Any) -> None:
    encoder, image = build(weights="random", freeze_foundations=False).train(), sketches(1)
    encoder.set_grad_checkpointing()
    other = pickle.loads(pickle.dumps(encoder))
    grads = []
    for model in (encoder, other):
        model(image).square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4, msg=name)


@torch.no_grad()
def test_state_dict_round_trip(build: Any, randomize: Any, sketches: Any) -> None:
    encoder, image = build(), sketches(1)
    other = randomize(build(), seed=99)
    assert not torch.allclose(other(image), encoder(image))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(image), encoder(image))


def test_meta_device(config: EncoderConfig) -> None:
    with torch.device("meta"):
        encoder = SketchFusionEncoder(config.replace(weights="random"))
    assert all(tensor.is_meta for tensor in encoder.state_dict().values())
    assert encoder.diffusion.denoiser.null_embedding.is_meta
    real = SketchFusionEncoder(config.replace(weights="random"))
    assert {name: t.shape for name, t in encoder.state_dict().items()} == {
        name: t.shape for name, t in real.state_dict().items()
    }


class Corners(nn.Module):
    """A semantic branch of one's own: the mean colour of every patch of 16 px, and a constant."""

    channels = 4
    patch_size = 16
    image_size = 64
    mean = (0.0, 0.0, 0.0)
    std = (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.ones(1))
        self.seen: tuple[int, ...] = ()

    def forward(self, image: Tensor) -> Tensor:
        self.seen = tuple(image.shape)
        pooled = F.avg_pool2d(image, 16)
        return torch.cat([pooled, self.offset.expand_as(pooled[:, :1])], 1)


class PlainBranch:
    """The same without being a module."""

    channels, patch_size, image_size = 4, 16, 64
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __call__(self, image: Tensor) -> Tensor:
        pooled = F.avg_pool2d(image, 16)
        return torch.cat([pooled, torch.ones_like(pooled[:, :1])], 1)


def test_own_semantic_branch(config: EncoderConfig, randomize: Any, sketches: Any) -> None:
    branch, plain = Corners(), PlainBranch()
    assert isinstance(branch, SemanticBranch)
    assert isinstance(plain, SemanticBranch)
    encoder = randomize(SketchFusionEncoder(config, semantic=branch)).train()
    other = randomize(SketchFusionEncoder(config, semantic=plain)).train()
    image = sketches(2, 64, 128)
    result = encoder(image)
    # 4 patches of 16 px, times the square root of the aspect.
    assert branch.seen == (2, 3, 48, 96)
    result.square().mean().backward()
    assert branch.offset.grad is None
    assert not branch.offset.requires_grad
    assert encoder.injector.projections["up0"].in_channels == 4
    assert torch.equal(other(image), result)
    assert encoder.foundation_names() == ("diffusion", "semantic")
    assert other.foundation_names() == ("diffusion",)


@torch.no_grad()
def test_ready_diffusion_branch(
    config: EncoderConfig,
    make_unet: Any,
    make_vae: Any,
    schedule: dict[str, Any],
    prompt: Tensor,
    sketches: Any,
) -> None:
    branch = Diffusion(config.diffusion, make_vae(), make_unet(), schedule, prompt).eval()
    encoder = SketchFusionEncoder(config, diffusion=branch)
    assert encoder.diffusion is branch
    expected = branch(sketches(1))
    got = encoder.forward_levels(sketches(1), fuse=False)
    assert all(
        torch.equal(level, expected[n]) for n, level in zip(got.names, got.maps, strict=True)
    )


@torch.no_grad()
def test_encoder_has_the_settings_of_its_ready_branch(
    build: Any, config: EncoderConfig, randomize: Any, sketches: Any, tmp_path: Path
) -> None:
    assert SketchFusionEncoder(config, diffusion=build().diffusion).config == config
    branch = build(diffusion__timestep=50, taps=("up0", "up1")).diffusion
    encoder = randomize(SketchFusionEncoder(config, diffusion=branch)).eval()
    assert encoder.config.diffusion == branch.config
    assert encoder.config.diffusion.timestep == 50
    assert encoder.config.taps == ("up0", "up1")
    encoder.save_pretrained(tmp_path)
    again = SketchFusionEncoder.from_pretrained(tmp_path).eval()
    image = sketches(1)
    # Sums round as memory is aligned, which differs between loaded and copied foundations.
    torch.testing.assert_close(again(image), encoder(image), atol=1e-4, rtol=1e-4)


def test_taps_that_a_ready_branch_does_not_return_are_refused(
    build: Any, config: EncoderConfig
) -> None:
    branch = build().diffusion
    with pytest.raises(ValueError, match=r"returns up0, up1, up2, .* names the taps mid\."):
        SketchFusionEncoder(config.replace(taps=("mid",)), diffusion=branch)
    taps = ("up2", "up0", "up1")
    encoder = SketchFusionEncoder(config.replace(taps=taps), diffusion=branch)
    assert encoder.config.taps == taps


def test_ready_branches_stay_on_their_device(build: Any, config: EncoderConfig) -> None:
    given = build()
    with torch.device("meta"):
        encoder = SketchFusionEncoder(config, diffusion=given.diffusion, semantic=given.semantic)
    assert not any(parameter.is_meta for parameter in given.parameters())
    assert all(parameter.is_meta for parameter in encoder.injector.parameters())


@pytest.mark.parametrize("name", ["diffusion", "semantic"])
@pytest.mark.parametrize("preset_name", ["small", "tiny"])
def test_random_foundations_are_the_same_beside_a_ready_branch(
    name: str, preset_name: str, config: EncoderConfig
) -> None:
    """Whoever drew the other branch, and whatever seed drew the given one."""
    config = (config if preset_name == "small" else preset("tiny")).replace(weights="random")
    given = SketchFusionEncoder(config.replace(random_seed=7))
    beside = SketchFusionEncoder(config, **{name: getattr(given, name)})
    own = SketchFusionEncoder(config)
    other = {"diffusion": "semantic", "semantic": "diffusion"}[name]
    expected = getattr(own, other).state_dict()
    assert all(
        torch.equal(tensor, expected[key])
        for key, tensor in getattr(beside, other).state_dict().items()
    )


@pytest.mark.parametrize(
    ("image", "error", "named"),
    [
        (torch.zeros(3, 64, 64), ValueError, r"\[B, 3, H, W\], got 3 dimensions"),
        (torch.zeros(1, 1, 64, 64), ValueError, r"expected 3 channel\(s\), got 1"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), TypeError, "got torch.uint8"),
        (torch.full((1, 3, 64, 64), 255.0), ValueError, "values from 255 to 255"),
        (torch.full((1, 3, 64, 64), torch.nan), ValueError, "NaN"),
        (torch.zeros(1, 3, 16, 64), ValueError, "at least 32 px, got 16 x 64"),
        ([[0.0]], TypeError, "got list"),
    ],
)
def test_bad_input(image: Any, error: type[Exception], named: str, build: Any) -> None:
    encoder = build()
    for method in (encoder, encoder.forward_levels, encoder.forward_tokens):
        with pytest.raises(error, match=named):
            method(image)


# --- several processes -------------------------------------------------------------------------

WORKER = """
import json, sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from sketchfusion_plugins import EncoderConfig, SketchFusionEncoder

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
)
given = torch.load(f"{folder}/given.pt")
encoder = SketchFusionEncoder(EncoderConfig.from_dict(json.loads(given["config"]))).train()
encoder.load_state_dict(given["state"])
model = DistributedDataParallel(encoder, find_unused_parameters=False)
images, targets = given["images"][2 * rank:2 * rank + 2], given["targets"][2 * rank:2 * rank + 2]
for _ in range(2):  # the second pass raises if the first left a parameter without a gradient
    model.zero_grad()
    (model(images) * targets).mean().backward()
grads = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
torch.save(grads, f"{folder}/grads{rank}.pt")
distributed.destroy_process_group()
"""


def test_distributed_gradients_equal_those_of_the_union(
    build: Any, sketches: Any, two_processes: Any, tmp_path: Path
) -> None:
    encoder = build().train()
    images = sketches(4)
    targets = torch.randn(4, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(
        {
            "config": json.dumps(encoder.config.to_dict()),
            "state": encoder.state_dict(),
            "images": images,
            "targets": targets,
        },
        tmp_path / "given.pt",
    )
    with two_processes(WORKER, tmp_path):
        (encoder(images) * targets).mean().backward()
    adapters = _adapters(encoder)
    for rank in range(2):
        grads = torch.load(tmp_path / f"grads{rank}.pt")
        assert set(grads) == set(adapters)
        for name, parameter in adapters.items():
            assert parameter.grad is not None
            torch.testing.assert_close(
                grads[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
