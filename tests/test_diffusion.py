"""The diffusion branch against diffusers' own parts; loading against what can be broken."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sketchfusion_plugins.config import DiffusionConfig, SemanticConfig
from sketchfusion_plugins.diffusion import Diffusion, load_diffusion, noise_scales
from sketchfusion_plugins.hub import RETIRED_REPOSITORIES
from sketchfusion_plugins.noise import draw_noise
from sketchfusion_plugins.null_prompt import cache_path
from sketchfusion_plugins.semantic_loading import load_semantic

TAPS = ("up0", "up1", "up2")

Outputs = dict[str, Tensor]


def _randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Setting:
    """A branch beside untouched copies of what it was made from."""

    def __init__(
        self,
        unet: Any,
        vae: Any,
        scheduler: dict[str, Any],
        prompt: Tensor,
        run_unet: Callable[..., Outputs],
        **options: Any,
    ) -> None:
        self.unet, self.vae, self.prompt = deepcopy(unet), deepcopy(vae), prompt
        self.scheduler = diffusers.DDIMScheduler(**scheduler)
        self.run_unet = run_unet
        self.config = DiffusionConfig(source="unused", **options)
        self.branch = Diffusion(self.config, vae, unet, scheduler, prompt).eval()

    def latents(self, image: Tensor) -> Tensor:
        return self.vae.encode(image).latent_dist.mode() * self.vae.config.scaling_factor

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        step = torch.tensor([self.config.timestep])
        return self.scheduler.add_noise(latents, noise, step)

    def taps(self, sample: Tensor) -> Outputs:
        outputs = self.run_unet(self.unet, sample, self.config.timestep, self.prompt)
        return {name: outputs[name] for name in TAPS}


@pytest.fixture
def setting(
    make_unet: Any, make_vae: Any, schedule: dict[str, Any], prompt: Tensor, run_unet: Any
) -> Callable[..., Setting]:
    def make(**options: Any) -> Setting:
        return Setting(make_unet(), make_vae(), schedule, prompt, run_unet, **options)

    return make


def _assert_close(got: Outputs, expected: Outputs, tolerance: float) -> None:
    assert set(got) == set(expected)
    for name, output in got.items():
        torch.testing.assert_close(
            output,
            expected[name],
            atol=tolerance,
            rtol=tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )


# --- latents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
@torch.no_grad()
def test_latents_are_the_scaled_mode(size: tuple[int, int], setting: Any, sketches: Any) -> None:
    case = setting()
    image = sketches(2, *size)
    got = case.branch.encode(image, seed=0)
    # Channels lie innermost in ours, which rounds otherwise.
    torch.testing.assert_close(got, case.latents(image), rtol=1e-5, atol=1e-5)
    assert got.shape == (2, 4, size[0] // 8, size[1] // 8)


@torch.no_grad()
def test_latents_may_have_statistics_of_every_channel(
    make_unet: Any, make_vae: Any, schedule: dict[str, Any], prompt: Tensor, sketches: Any
) -> None:
    mean, std = [0.5, -1.0, 0.2, 0.1], [2.0, 3.0, 4.0, 5.0]
    vae = make_vae()
    scale = vae.config.scaling_factor
    mode = vae.encode(sketches(2)).latent_dist.mode()
    vae.register_to_config(latents_mean=mean, latents_std=std)
    branch = Diffusion(DiffusionConfig(source="unused"), vae, make_unet(), schedule, prompt)
    for channel, got in enumerate(branch.encode(sketches(2)).unbind(1)):
        # diffusers' StableDiffusionXLImg2ImgPipeline.prepare_latents.
        expected = (mode[:, channel] - mean[channel]) * scale / std[channel]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_sampled_posterior_is_seeded(setting: Any, sketches: Any) -> None:
    case = setting(posterior="sample")
    image = sketches(2)
    got = case.branch.encode(image, seed=0)
    posterior = case.vae.encode(image).latent_dist
    noise = (got / case.vae.config.scaling_factor - posterior.mean) / posterior.std
    # Every image of a batch gets the same draw, a standard normal one.
    torch.testing.assert_close(noise[0], noise[1], atol=1e-3, rtol=1e-3)
    assert abs(noise[0].mean()) < 0.25
    assert 0.8 < noise[0].std() < 1.2
    assert torch.equal(case.branch.encode(image, seed=0), got)
    assert not torch.allclose(case.branch.encode(image, seed=1), got)


@torch.no_grad()
@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_the_largest_seeds_sample_too(setting: Any, sketches: Any, seed: int) -> None:
    case = setting(posterior="sample")
    got = case.branch.encode(sketches(1), seed=seed)
    assert torch.equal(case.branch.encode(sketches(1), seed=seed), got)
    assert not torch.equal(case.branch.encode(sketches(1), seed=seed ^ 1), got)


@torch.no_grad()
@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3), torch.tensor(3)])
def test_whole_numbers_of_other_kinds_sample_too(setting: Any, sketches: Any, seed: Any) -> None:
    case = setting(posterior="sample")
    assert torch.equal(case.branch.encode(sketches(1), seed), case.branch.encode(sketches(1), 3))


@torch.no_grad()
def test_posterior_noise_is_not_the_diffusion_noise(setting: Any, sketches: Any) -> None:
    case = setting(posterior="sample")
    posterior = case.vae.encode(sketches(1)).latent_dist
    latents = case.branch.encode(sketches(1), seed=0) / case.vae.config.scaling_factor
    noise = (latents - posterior.mean) / posterior.std
    diffusion = _randn(4, 8, 8, seed=0)
    correlation = torch.corrcoef(torch.stack([noise.flatten(), diffusion.flatten()]))[0, 1]
    assert abs(correlation) < 0.3


@torch.no_grad()
def test_sampled_posterior_of_a_given_generator(setting: Any, sketches: Any) -> None:
    case = setting(posterior="sample")
    image = sketches(1)
    got = case.branch.encode(image, seed=0, generator=torch.Generator().manual_seed(11))
    # diffusers' own sample draws one standard normal tensor from the generator.
    expected = case.vae.encode(image).latent_dist.sample(torch.Generator().manual_seed(11))
    torch.testing.assert_close(got, expected * case.vae.config.scaling_factor)


@torch.no_grad()
def test_shift_factor(
    make_unet: Any, make_vae: Any, schedule: dict[str, Any], prompt: Tensor, sketches: Any
) -> None:
    vae = make_vae(shift_factor=0.3)
    expected = (deepcopy(vae).encode(sketches(1)).latent_dist.mode() - 0.3) * 0.18215
    branch = Diffusion(DiffusionConfig(), vae, make_unet(), schedule, prompt)
    torch.testing.assert_close(branch.encode(sketches(1), seed=0), expected)


@torch.no_grad()
def test_tiny_autoencoder(
    make_unet: Any,
    make_vae: Any,
    schedule: dict[str, Any],
    prompt: Tensor,
    run_unet: Any,
    sketches: Any,
) -> None:
    case = Setting(make_unet(), make_vae(tiny=True), schedule, prompt, run_unet)
    image = sketches(2)
    latents = case.vae.encode(image).latents
    assert torch.equal(case.branch.encode(image, seed=0), latents)
    expected = case.taps(case.noised(latents, _randn(4, 8, 8, seed=0)))
    _assert_close(case.branch(image), expected, 1e-5)
    assert not any("decoder" in name for name, _ in case.branch.named_parameters())


def test_decoder_is_gone(setting: Any) -> None:
    names = [name for name, _ in setting().branch.vae.named_parameters()]
    assert names
    assert all(name.startswith(("encoder.", "quant_conv.")) for name in names)


# --- noise -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("timestep", [0, 195, 999])
def test_noise_equals_the_schedulers(
    scheduler: str, prediction: str, timestep: int, schedule: dict[str, Any]
) -> None:
    theirs = getattr(diffusers, scheduler)(**schedule, prediction_type=prediction)
    latents, noise = _randn(2, 4, 5, 6, seed=1), _randn(2, 4, 5, 6, seed=2)
    expected = theirs.add_noise(latents, noise, torch.tensor([timestep]))
    signal, level = noise_scales({**theirs.config, "_class_name": scheduler}, timestep)
    torch.testing.assert_close(signal * latents + level * noise, expected, atol=1e-6, rtol=1e-6)


def test_noise_equals_eulers_scaled_input(schedule: dict[str, Any]) -> None:
    """SDXL's Euler scheduler adds sigmas, then scales the model's input: the same in sum."""
    theirs = diffusers.EulerDiscreteScheduler(**schedule)
    theirs.set_timesteps(1000)
    step = theirs.timesteps[1000 - 1 - 195]
    assert step == 195
    latents, noise = _randn(1, 4, 5, 6, seed=1), _randn(1, 4, 5, 6, seed=2)
    expected = theirs.scale_model_input(theirs.add_noise(latents, noise, step[None]), step)
    signal, level = noise_scales({**theirs.config}, 195)
    torch.testing.assert_close(signal * latents + level * noise, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.001 * (i + 1) for i in range(200)], "num_train_timesteps": 200},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_other_schedules(changes: dict[str, Any], schedule: dict[str, Any]) -> None:
    values = {**schedule, **changes}
    theirs = diffusers.DDIMScheduler(**values)
    latents, noise = _randn(1, 4, 5, 6, seed=1), _randn(1, 4, 5, 6, seed=2)
    expected = theirs.add_noise(latents, noise, torch.tensor([195]))
    signal, level = noise_scales({**values, "_class_name": "DDIMScheduler"}, 195)
    torch.testing.assert_close(signal * latents + level * noise, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("timestep", [1000, -1])
def test_timestep_beyond_the_schedule(timestep: int, schedule: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"0\.\.999.*got {timestep}"):
        noise_scales(schedule, timestep)


def test_flow_matching_is_refused() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"FlowMatchEulerDiscreteScheduler.*not supported"):
        noise_scales({**theirs.config, "_class_name": type(theirs).__name__}, 10)


def test_draws_are_the_generators_own() -> None:
    latents = torch.empty(3, 4, 5, 6)
    noise = draw_noise(latents, 3, seed=9)
    generator = torch.Generator().manual_seed(9)
    expected = torch.stack([torch.randn(4, 5, 6, generator=generator) for _ in range(3)])
    assert torch.equal(noise, expected)
    assert torch.equal(draw_noise(latents, 1, seed=9)[0], expected[0])
    assert noise.dtype == torch.float32


def test_noise_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw_noise(torch.empty(1, 4, 5, 6), 2, seed=9)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_operator_is_sound() -> None:
    """torch's own checks of a custom operator: schema, fake tensors, dispatch."""
    operator = torch.ops.sketchfusion.seeded_noise.default
    torch.library.opcheck(operator, (torch.empty(2, 4, 5, 6), 3, 9))


# --- forward -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
@torch.no_grad()
def test_forward_equals_diffusers(size: tuple[int, int], setting: Any, sketches: Any) -> None:
    case = setting()
    image = sketches(2, *size)
    noise = _randn(4, size[0] // 8, size[1] // 8, seed=0)
    expected = case.taps(case.noised(case.latents(image), noise))
    # Not bit for bit: the order of the two products in add_noise is diffusers' own.
    _assert_close(case.branch(image), expected, 1e-5)


@torch.no_grad()
def test_prediction_type_does_not_matter(
    make_unet: Any, make_vae: Any, schedule: dict[str, Any], prompt: Tensor, sketches: Any
) -> None:
    results = []
    for prediction in ("epsilon", "v_prediction"):
        scheduler = {**schedule, "prediction_type": prediction, "_class_name": "DDIMScheduler"}
        branch = Diffusion(DiffusionConfig(), make_vae(), make_unet(), scheduler, prompt)
        results.append(branch.eval()(sketches(1)))
    for name in TAPS:
        assert torch.equal(results[0][name], results[1][name])


@torch.no_grad()
def test_seeds(setting: Any, sketches: Any) -> None:
    case, image = setting(seed=3), sketches(1)
    expected = case.taps(case.noised(case.latents(image), _randn(4, 8, 8, seed=3)))
    _assert_close(case.branch(image), expected, 1e-5)
    first, again, other = (case.branch(image, seed=seed)["up2"] for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, expected["up2"])


@torch.no_grad()
def test_generator_replaces_the_seed_and_advances(setting: Any, sketches: Any) -> None:
    case, image = setting(), sketches(1)
    generator, reference = torch.Generator().manual_seed(12), torch.Generator().manual_seed(12)
    for _ in range(2):
        noise = torch.randn(4, 8, 8, generator=reference)
        expected = case.taps(case.noised(case.latents(image), noise))
        _assert_close(case.branch(image, seed=99, generator=generator), expected, 1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 8])
@torch.no_grad()
def test_ensemble_is_the_mean_of_single_runs(chunk: int, setting: Any, sketches: Any) -> None:
    case = setting(ensemble=3, ensemble_chunk=chunk, seed=7)
    image = sketches(2)
    generator = torch.Generator().manual_seed(7)
    runs = [
        case.taps(case.noised(case.latents(image), torch.randn(4, 8, 8, generator=generator)))
        for _ in range(3)
    ]
    expected = {name: torch.stack([run[name] for run in runs]).mean(0) for name in TAPS}
    _assert_close(case.branch(image), expected, 2e-5)
    # The draws differ enough for the mean to be a test.
    assert (runs[0]["up2"] - runs[1]["up2"]).abs().max() > 0.05


@torch.no_grad()
def test_ensemble_of_one_is_the_plain_path(setting: Any, sketches: Any) -> None:
    plain, single = setting(), setting(ensemble=1, ensemble_chunk=4)
    for name, output in plain.branch(sketches(2)).items():
        assert torch.equal(single.branch(sketches(2))[name], output)


@torch.no_grad()
def test_noise_free_feeds_clean_latents(setting: Any, sketches: Any) -> None:
    case = setting(noise_free=True, timestep=261)
    image = sketches(2)
    expected = case.taps(case.latents(image))
    got = case.branch(image, seed=1)
    _assert_close(got, expected, 5e-5)
    assert torch.equal(case.branch(image, seed=2)["up2"], got["up2"])


@pytest.mark.parametrize("options", [{}, {"ensemble": 2}, {"posterior": "sample"}])
@torch.no_grad()
def test_batch_equals_singles(options: dict[str, Any], setting: Any, sketches: Any) -> None:
    """Features of an image depend neither on its place in the batch nor on its neighbours."""
    branch = setting(**options).branch
    images = sketches(4)
    singles = [branch(image[None]) for image in images]
    whole = branch(images)
    shuffled = branch(images[[2, 0]])
    for name in TAPS:
        expected = torch.cat([single[name] for single in singles])
        # Convolutions of other batch sizes may sum in another order.
        torch.testing.assert_close(whole[name], expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(shuffled[name], expected[[2, 0]], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_inject_sees_draws_innermost(setting: Any, sketches: Any) -> None:
    case = setting(ensemble=3, ensemble_chunk=2)
    image, batches = sketches(2), []

    def inject(name: str, hidden: Tensor) -> Tensor:
        if name == "down0":
            batches.append(hidden.shape[0])
        # Marks what belongs to the second image.
        share = hidden.shape[0] // 2
        marks = torch.tensor([0.0] * share + [50.0] * share)
        return hidden + marks[:, None, None, None]

    changed, plain = case.branch(image, inject), case.branch(image)
    assert batches == [2 * 2, 2 * 1]
    torch.testing.assert_close(changed["up2"][0], plain["up2"][0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(changed["up2"][1], plain["up2"][1], atol=1e-1)


def test_gradient_reaches_the_image(setting: Any, sketches: Any) -> None:
    """Noise is a constant, not an end of the graph."""
    for options in ({}, {"ensemble": 2}, {"posterior": "sample"}):
        branch = setting(**options).branch
        image = sketches(1).requires_grad_()
        branch(image)["up2"].square().mean().backward()
        assert image.grad is not None
        assert image.grad.abs().sum() > 0


@torch.no_grad()
def test_configured_taps(setting: Any, make_unet: Any, make_vae: Any, sketches: Any) -> None:
    case = setting()
    scheduler = {key: case.scheduler.config[key] for key in ("beta_start", "beta_end")}
    scheduler["beta_schedule"] = "scaled_linear"
    branch = Diffusion(
        case.config, make_vae(), make_unet(), scheduler, case.prompt, ("mid", "down2")
    ).eval()
    noisy = case.noised(case.latents(sketches(1)), _randn(4, 8, 8, seed=0))
    expected = case.run_unet(case.unet, noisy, 195, case.prompt)
    got = branch(sketches(1))
    assert set(got) == {"down2", "mid"}
    for name, output in got.items():
        torch.testing.assert_close(output, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [5, 8, 9])
def test_inpainting_depth_and_editing_unets_are_refused(
    channels: int, make_unet: Any, make_vae: Any, schedule: dict[str, Any], prompt: Tensor
) -> None:
    unet = make_unet("sd15", in_channels=channels)
    with pytest.raises(ValueError, match=f"takes {channels} channels.*gives 4.*Inpainting"):
        Diffusion(DiffusionConfig(), make_vae(), unet, schedule, prompt)


# --- loading -----------------------------------------------------------------------------------


def _config(folder: Path, **options: Any) -> DiffusionConfig:
    return DiffusionConfig(source=str(folder), **options)


def _edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _null_embedding(folder: Path, variant: str | None = None) -> Tensor:
    """The empty prompt's embedding as diffusers' own pipeline computes it."""
    from transformers import CLIPTextModel, CLIPTokenizer

    pipeline = diffusers.StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder, subfolder="vae", variant=variant),
        text_encoder=CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", variant=variant
        ).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder, subfolder="unet", variant=variant),
        scheduler=diffusers.PNDMScheduler.from_pretrained(folder, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with torch.no_grad():
        embedding, _ = pipeline.encode_prompt("", torch.device("cpu"), 1, False)
    return embedding


@torch.no_grad()
def test_local_folder_equals_diffusers(pipeline_folder: Path, run_unet: Any, sketches: Any) -> None:
    branch = load_diffusion(_config(pipeline_folder))
    assert not branch.training
    vae = AutoencoderKL.from_pretrained(pipeline_folder, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(pipeline_folder, subfolder="unet")
    scheduler = diffusers.PNDMScheduler.from_pretrained(pipeline_folder, subfolder="scheduler")
    image = sketches(1)
    latents = vae.encode(image).latent_dist.mode() * vae.config.scaling_factor
    noisy = scheduler.add_noise(latents, _randn(1, 4, 8, 8, seed=0), torch.tensor([195]))
    expected = run_unet(unet, noisy, 195, _null_embedding(pipeline_folder))
    _assert_close(branch(image), {name: expected[name] for name in TAPS}, 1e-5)


def test_foundations_are_held_in_bfloat16(pipeline_folder: Path) -> None:
    branch = load_diffusion(_config(pipeline_folder), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in branch.state_dict().values()} == {torch.bfloat16}


def test_text_encoder_does_not_stay_in_memory(pipeline_copy: Path) -> None:
    from transformers import CLIPTextModel

    gc.collect()
    before = sum(type(thing) is CLIPTextModel for thing in gc.get_objects())
    branch = load_diffusion(_config(pipeline_copy))
    gc.collect()
    assert sum(type(thing) is CLIPTextModel for thing in gc.get_objects()) == before
    assert not any("text" in name for name, _ in branch.named_modules())


def test_tiny_autoencoder_folder(pipeline_copy: Path, make_vae: Any) -> None:
    shutil.rmtree(pipeline_copy / "vae")
    make_vae(tiny=True).save_pretrained(pipeline_copy / "vae")
    assert isinstance(load_diffusion(_config(pipeline_copy)).vae, AutoencoderTiny)


def test_revision_is_passed_on(pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPTextModel, CLIPTokenizer

    asked: dict[str, tuple[str, str | None]] = {}

    def spy(owner: type) -> None:
        original = owner.from_pretrained.__func__

        def from_pretrained(cls: type, source: str, **options: Any) -> Any:
            asked[cls.__name__] = (source, options.pop("revision"))
            return original(cls, pipeline_folder, **options)

        monkeypatch.setattr(owner, "from_pretrained", classmethod(from_pretrained))

    def download(repo: str, filename: str, subfolder: str, revision: str | None) -> str:
        asked[f"{subfolder}/{filename}"] = (repo, revision)
        return str(pipeline_folder / subfolder / filename)

    for owner in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer):
        spy(owner)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    load_diffusion(DiffusionConfig(source="someone/diffusion", revision="0123abc"))
    assert set(asked.values()) == {("someone/diffusion", "0123abc")}
    assert len(asked) == 7


@torch.no_grad()
def test_half_precision_variant_equals_diffusers(pipeline_copy: Path, sketches: Any) -> None:
    """A repository that holds nothing else, as diffusers' own pipeline writes it."""
    for part, weights in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        path = pipeline_copy / part / f"{weights}.safetensors"
        halves = {name: values.half() for name, values in load_file(path).items()}
        save_file(halves, path.with_name(f"{weights}.fp16.safetensors"), {"format": "pt"})
        path.unlink()
    with pytest.raises(OSError, match=r"UNet .*\.fp16\.safetensors is a variant: set diffusion__v"):
        load_diffusion(_config(pipeline_copy))
    branch = load_diffusion(_config(pipeline_copy, variant="fp16"))
    assert {tensor.dtype for tensor in branch.state_dict().values()} == {torch.float32}
    image = sketches(1)
    own = AutoencoderKL.from_pretrained(pipeline_copy, subfolder="vae", variant="fp16")
    latents = own.encode(image).latent_dist.mode() * own.config.scaling_factor
    _assert_close({"latents": branch.encode(image)}, {"latents": latents}, 1e-5)
    expected = _null_embedding(pipeline_copy, variant="fp16")
    torch.testing.assert_close(branch.denoiser.null_embedding, expected)
    unet = UNet2DConditionModel.from_pretrained(pipeline_copy, subfolder="unet", variant="fp16")
    weights = unet.state_dict()
    kept = branch.denoiser.unet.state_dict()
    assert all(torch.equal(values, weights[name]) for name, values in kept.items())


def test_a_variant_of_some_parts(pipeline_copy: Path) -> None:
    """diffusers' own pipeline takes what there is of it, and the rest whole."""
    expected = load_diffusion(_config(pipeline_copy)).denoiser.null_embedding
    for part in ("unet", "vae"):
        path = pipeline_copy / part / "diffusion_pytorch_model.safetensors"
        path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    branch = load_diffusion(_config(pipeline_copy, variant="fp16"))
    assert torch.equal(branch.denoiser.null_embedding, expected)
    shutil.rmtree(pipeline_copy / "text_encoder")
    cache_path(_config(pipeline_copy, variant="fp16")).unlink()
    with pytest.raises(OSError, match="could not load the text encoder") as caught:
        load_diffusion(_config(pipeline_copy, variant="fp16"))
    assert "is a variant: set" not in str(caught.value)


@pytest.fixture
def cached(pipeline_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pipeline as Hugging Face's cache keeps ``someone/diffusion``; the hub is out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--someone--diffusion"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots").mkdir()
    return Path(shutil.move(pipeline_copy, folder / "snapshots" / ("a" * 40)))


def test_a_cached_repository_with_shards(cached: Path, pipeline_folder: Path) -> None:
    """diffusers by itself asks the hub for the shards' names."""
    shutil.rmtree(cached / "unet")
    unet = UNet2DConditionModel.from_pretrained(pipeline_folder, subfolder="unet")
    unet.save_pretrained(cached / "unet", max_shard_size="100KB")
    assert len(list((cached / "unet").glob("*-of-*.safetensors"))) > 1
    found = load_diffusion(DiffusionConfig(source="someone/diffusion")).state_dict()
    expected = load_diffusion(_config(pipeline_folder)).state_dict()
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def test_another_commit_brings_its_own_null_prompt(cached: Path) -> None:
    config = DiffusionConfig(source="someone/diffusion")
    before = load_diffusion(config).denoiser.null_embedding
    later = shutil.copytree(cached, cached.with_name("b" * 40))
    (path,) = (later / "text_encoder").glob("*.safetensors")
    save_file({name: 2 * values for name, values in load_file(path).items()}, path)
    (cached.parents[1] / "refs" / "main").write_text("b" * 40)
    found = load_diffusion(config).denoiser.null_embedding
    assert torch.equal(found, load_diffusion(_config(later)).denoiser.null_embedding)
    assert not torch.allclose(found, before)
    # A commit of whose files the text encoder was never fetched.
    last = shutil.copytree(later, later.with_name("c" * 40))
    shutil.rmtree(last / "text_encoder")
    (cached.parents[1] / "refs" / "main").write_text("c" * 40)
    with pytest.warns(UserWarning, match="is that of an earlier commit of someone/diffusion"):
        assert torch.equal(load_diffusion(config).denoiser.null_embedding, found)


def test_other_repositories_are_told(cached: Path) -> None:
    shutil.move(cached / "unet", cached / "transformer")
    told = (
        r"UNet from 'someone/diffusion'.*unet/, vae/, scheduler/; no other pipeline, LoRA or single"
    )
    with pytest.raises(OSError, match=told):
        load_diffusion(DiffusionConfig(source="someone/diffusion"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_need_an_opt_in(part: str, pipeline_copy: Path) -> None:
    """Repositories without safetensors hold pickles, which run code when they are read."""
    weights = next((pipeline_copy / part).glob("*.safetensors"))
    pickled = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
    torch.save(load_file(weights), weights.with_name(f"{pickled}.bin"))
    expected = load_file(weights)
    weights.unlink()
    with pytest.raises(OSError, match=r"could not load the .*allow_pickle=True"):
        load_diffusion(_config(pipeline_copy))
    branch = load_diffusion(_config(pipeline_copy), allow_pickle=True)
    if part == "unet":
        got = branch.denoiser.unet.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())


def test_retired_ids_name_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(*_: Any, **__: Any) -> None:
        raise AssertionError("no download may be tried")

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", network)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", network)
    assert "stabilityai/stable-diffusion-2-1-base" in RETIRED_REPOSITORIES
    for source, mirror in RETIRED_REPOSITORIES.items():
        with pytest.raises(OSError, match=f"removed.*'{mirror}'"):
            load_diffusion(DiffusionConfig(source=source))


def test_local_copy_of_a_retired_id(
    pipeline_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = next(iter(RETIRED_REPOSITORIES))
    shutil.move(pipeline_copy, tmp_path / source)
    monkeypatch.chdir(tmp_path)
    assert load_diffusion(DiffusionConfig(source=source)).denoiser.taps == TAPS


@pytest.mark.parametrize("source", ["{}/nope", "{}/file", "./nope", "../nope", "~/nope"])
@pytest.mark.parametrize(
    "load",
    [
        lambda source: load_diffusion(DiffusionConfig(source=source)),
        lambda source: load_semantic(SemanticConfig(source=source)),
        lambda source: load_semantic(SemanticConfig(source=source, kind="timm")),
    ],
    ids=["diffusion", "clip", "timm"],
)
def test_paths_without_a_folder_are_no_ids(
    load: Callable[[str], Any], source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    source = source.format(tmp_path)
    found = "a file" if source.endswith("file") else "nothing"
    with pytest.raises(OSError, match=rf"expected a folder .* at '{source}', found {found}\."):
        load(source)


def test_home_is_spelt_out(
    pipeline_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(pipeline_copy.parent))
    with pytest.raises(OSError, match=f"give '{pipeline_copy}'"):
        load_diffusion(DiffusionConfig(source=f"~/{pipeline_copy.name}"))


def test_unknown_id_without_network() -> None:
    with pytest.raises(OSError, match=r"could not load the UNet from 'nobody/nothing'") as error:
        load_diffusion(DiffusionConfig(source="nobody/nothing"))
    assert "local folder" in str(error.value)


def test_a_device_without_room_is_no_missing_file(
    pipeline_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(UNet2DConditionModel, "from_pretrained", fail)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory\.$"):
        load_diffusion(_config(pipeline_copy))


def test_revision_is_named_in_the_error() -> None:
    with pytest.raises(OSError, match=r"nobody/nothing \(revision v9\)"):
        load_diffusion(DiffusionConfig(source="nobody/nothing", revision="v9"))


@pytest.mark.parametrize(
    ("part", "named"), [("unet", "UNet"), ("vae", "VAE"), ("scheduler", "scheduler")]
)
def test_missing_part(part: str, named: str, pipeline_copy: Path) -> None:
    shutil.rmtree(pipeline_copy / part)
    with pytest.raises(OSError, match=f"could not load the {named}"):
        load_diffusion(_config(pipeline_copy))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_truncated_weights(part: str, pipeline_copy: Path) -> None:
    weights = next((pipeline_copy / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(OSError, match="could not load the"):
        load_diffusion(_config(pipeline_copy))


@pytest.mark.parametrize(
    ("part", "lost"),
    [("unet", "mid_block."), ("vae", "encoder.conv_in."), ("text_encoder", "final_layer_norm.")],
)
def test_incomplete_weights_are_not_filled_up(part: str, lost: str, pipeline_copy: Path) -> None:
    """The libraries give what is missing random values, and only log it."""
    weights = next((pipeline_copy / part).glob("*.safetensors"))
    state = load_file(weights)
    kept = {name: tensor for name, tensor in state.items() if lost not in name}
    assert len(kept) < len(state)
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(OSError, match=f"the weights lack .*{lost}"):
        load_diffusion(_config(pipeline_copy))


def test_autoencoder_without_decoder_suffices(pipeline_copy: Path) -> None:
    weights = next((pipeline_copy / "vae").glob("*.safetensors"))
    state = load_file(weights)
    encoder = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(("decoder.", "post_quant_conv."))
    }
    save_file(encoder, weights, {"format": "pt"})
    vae = load_diffusion(_config(pipeline_copy)).vae
    assert all(torch.equal(tensor, state[name]) for name, tensor in vae.state_dict().items())


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_of_another_architecture(part: str, pipeline_copy: Path) -> None:
    key = "cross_attention_dim" if part == "unet" else "intermediate_size"
    _edit_json(pipeline_copy / part / "config.json", **{key: 48})
    with pytest.raises(OSError, match="could not load the"):
        load_diffusion(_config(pipeline_copy))


@pytest.mark.parametrize(
    "path", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]
)
@pytest.mark.parametrize("text", ["{", "[]"])
def test_broken_config(path: str, text: str, pipeline_copy: Path) -> None:
    (pipeline_copy / path).write_text(text)
    with pytest.raises(OSError, match="could not load the"):
        load_diffusion(_config(pipeline_copy))


def test_unsupported_autoencoder(pipeline_copy: Path) -> None:
    _edit_json(pipeline_copy / "vae" / "config.json", _class_name="VQModel")
    with pytest.raises(OSError, match=r"'VQModel' is not supported.*AutoencoderKL"):
        load_diffusion(_config(pipeline_copy))


def test_unet_file_replaces_weights(pipeline_folder: Path, tmp_path: Path, make_unet: Any) -> None:
    """CleanDIFT ships a UNet's state dict as one file."""
    other = make_unet(seed=20).state_dict()
    path = tmp_path / "cleandift.safetensors"
    save_file(other, path)
    # Nothing of the source's own UNet is asked for but its configuration.
    folder = Path(shutil.copytree(pipeline_folder, tmp_path / "source"))
    for weights in (folder / "unet").glob("*.safetensors"):
        weights.unlink()
    branch = load_diffusion(_config(folder, unet_file=str(path)))
    for name, tensor in branch.denoiser.unet.state_dict().items():
        assert torch.equal(tensor, other[name]), name


def test_unet_file_in_bfloat16(pipeline_folder: Path, tmp_path: Path, make_unet: Any) -> None:
    other = make_unet(seed=20).state_dict()
    path = tmp_path / "cleandift.safetensors"
    save_file(other, path)
    config = _config(pipeline_folder, unet_file=str(path))
    branch = load_diffusion(config, dtype=torch.bfloat16)
    for name, tensor in branch.denoiser.unet.state_dict().items():
        assert torch.equal(tensor, other[name].bfloat16()), name


def test_unet_file_of_another_unet(pipeline_folder: Path, tmp_path: Path, make_unet: Any) -> None:
    path = tmp_path / "other.safetensors"
    save_file(make_unet("bk_sdm").state_dict(), path)
    with pytest.raises(OSError, match=r"other\.safetensors' does not hold weights of this UNet"):
        load_diffusion(_config(pipeline_folder, unet_file=str(path)))
    path.write_bytes(b"not safetensors")
    with pytest.raises(OSError, match="does not hold weights of this UNet"):
        load_diffusion(_config(pipeline_folder, unet_file=str(path)))


@pytest.mark.parametrize(
    ("location", "named"),
    [
        ("weights.bin", r"expected a \.safetensors file, got 'weights\.bin'"),
        ("nowhere.safetensors", r"no file at 'nowhere\.safetensors'"),
        ("/nowhere/at/all.safetensors", "no file at"),
        ("nobody/nothing/file.safetensors", "could not load the weights file"),
    ],
)
def test_unet_file_that_cannot_be_had(location: str, named: str, pipeline_folder: Path) -> None:
    with pytest.raises(OSError, match=named):
        load_diffusion(_config(pipeline_folder, unet_file=location))


def test_unet_file_on_the_hub(
    pipeline_folder: Path, tmp_path: Path, make_unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = tmp_path / "weights.safetensors", []
    other = make_unet(seed=20).state_dict()
    save_file(other, path)

    def download(repo: str, filename: str) -> str:
        asked.append((repo, filename))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    location = "CompVis/cleandift/folder/weights.safetensors"
    branch = load_diffusion(_config(pipeline_folder, unet_file=location))
    assert asked == [("CompVis/cleandift", "folder/weights.safetensors")]
    name, tensor = next(iter(branch.denoiser.unet.state_dict().items()))
    assert torch.equal(tensor, other[name])


# --- random weights ----------------------------------------------------------------------------


def test_random_weights_need_configs_alone(pipeline_copy: Path) -> None:
    for path in pipeline_copy.rglob("*.safetensors"):
        path.unlink()
    branch = load_diffusion(_config(pipeline_copy), weights="random")
    assert branch.denoiser.taps == TAPS
    assert branch.denoiser.null_embedding.shape[-1] == 32


def test_random_weights_of_an_unknown_id() -> None:
    with pytest.raises(ValueError, match=r"'nobody/nothing'.*sketchfusion/tiny-diffusion"):
        load_diffusion(DiffusionConfig(source="nobody/nothing"), weights="random")


FINGERPRINT = """
import sys, torch
from sketchfusion_plugins import EncoderConfig, SketchFusionEncoder
from sketchfusion_plugins.config import DiffusionConfig, SemanticConfig, AggregationConfig
torch.manual_seed(int(sys.argv[3]))
encoder = SketchFusionEncoder(EncoderConfig(
    diffusion=DiffusionConfig(source=sys.argv[1]), semantic=SemanticConfig(source=sys.argv[2]),
    aggregation=None, weights="random", random_seed=int(sys.argv[4])))
state = {name: tensor for name, tensor in encoder.state_dict().items() if "injector" not in name}
state["null"] = encoder.diffusion.denoiser.null_embedding
print("SUM", sum(t.double().abs().sum().item() * (i + 1) for i, t in enumerate(state.values())))
"""


def test_random_weights_are_the_same_in_every_process(
    pipeline_folder: Path, clip_folder: Path, config: Any
) -> None:
    from sketchfusion_plugins.encoder import SketchFusionEncoder

    def here(random_seed: int) -> tuple[float, dict[str, Tensor]]:
        values = config.replace(weights="random", aggregation=None, random_seed=random_seed)
        encoder = SketchFusionEncoder(values)
        state = {name: t for name, t in encoder.state_dict().items() if "injector" not in name}
        state["null"] = encoder.diffusion.denoiser.null_embedding
        sums = (t.double().abs().sum().item() * (i + 1) for i, t in enumerate(state.values()))
        return sum(sums), state

    arguments = [str(pipeline_folder), str(clip_folder), "123", "0"]
    output = subprocess.run(
        [sys.executable, "-c", FINGERPRINT, *arguments], capture_output=True, text=True, check=True
    ).stdout
    there = float(output.split("SUM")[1])
    torch.manual_seed(77)
    first, state = here(0)
    torch.manual_seed(78)
    second, again = here(0)
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    assert first == second == pytest.approx(there, rel=1e-12)
    assert here(1)[0] != first
