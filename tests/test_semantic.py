"""The semantic branch against transformers' and timm's own forward passes."""

from __future__ import annotations

import json
import logging
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.config import SemanticConfig
from sketchfusion_plugins.hub import RETIRED_REPOSITORIES
from sketchfusion_plugins.semantic import (
    CLIP_MEAN,
    CLIP_STD,
    ClipVision,
    SemanticBranch,
    TimmVision,
    resize_for_tokens,
)
from sketchfusion_plugins.semantic_loading import load_semantic, semantic_changes

TIMM_MODELS = (
    "test_vit",
    "test_vit3",  # a register token and no class token
    "vit_tiny_patch16_224",
    "vit_tiny_patch16_dinov3_qkvb",  # class and register tokens, rotary positions
    "vit_small_patch14_reg4_dinov2",  # class and register tokens, learned positions
)


CLIP_BASE = "vit_base_patch16_clip"


def _pixels(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def _clip(folder: Path, **options: Any) -> SemanticConfig:
    return SemanticConfig(source=str(folder), **options)


# --- CLIP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (80, 56), (8, 8)])
@pytest.mark.parametrize("final_norm", [False, True])
@torch.no_grad()
def test_clip_tokens_equal_transformers(
    size: tuple[int, int], final_norm: bool, make_clip: Any
) -> None:
    model = make_clip()
    pixels = _pixels(*size)
    output = model(pixels, interpolate_pos_encoding=size != (64, 64)).last_hidden_state[:, 1:]
    if final_norm:
        output = model.post_layernorm(output)
    rows, columns = size[0] // 8, size[1] // 8
    expected = output.reshape(2, rows, columns, 48).permute(0, 3, 1, 2)
    got = ClipVision(deepcopy(model), final_norm)(pixels)
    assert torch.equal(got, expected)


@torch.no_grad()
def test_clip_tokens_follow_the_image(make_clip: Any) -> None:
    """Row and column of the grid are those of the image, not swapped."""
    branch = ClipVision(make_clip())
    dark = torch.zeros(1, 3, 32, 96)
    spot = dark.clone()
    spot[..., 8:16, 80:88] = 3.0
    change = (branch(spot) - branch(dark)).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 12) == (1, 10)


def test_clip_has_no_dead_parameter(make_clip: Any) -> None:
    for final_norm in (False, True):
        branch = ClipVision(make_clip(), final_norm)
        branch(_pixels(64, 64)).square().mean().backward()
        dead = [name for name, parameter in branch.named_parameters() if parameter.grad is None]
        assert dead == []
        assert any("final_norm" in name for name, _ in branch.named_parameters()) == final_norm


def test_clip_attributes(make_clip: Any) -> None:
    branch = ClipVision(make_clip(), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert isinstance(branch, SemanticBranch)
    assert (branch.channels, branch.patch_size, branch.image_size) == (48, 8, 64)
    assert tuple(branch.mean) == (0.1, 0.2, 0.3)
    assert tuple(branch.std) == (0.4, 0.5, 0.6)


def test_clip_constants_are_openais() -> None:
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    assert list(CLIP_MEAN) == list(OPENAI_CLIP_MEAN)
    assert list(CLIP_STD) == list(OPENAI_CLIP_STD)


@torch.no_grad()
def test_clip_folder(clip_folder: Path) -> None:
    branch = load_semantic(_clip(clip_folder))
    expected = CLIPVisionModel.from_pretrained(clip_folder).eval()
    pixels = _pixels(64, 64)
    tokens = expected(pixels).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    assert torch.equal(branch(pixels), tokens)
    processor = json.loads((clip_folder / "preprocessor_config.json").read_text())
    assert list(branch.mean) == processor["image_mean"]
    assert list(branch.std) == processor["image_std"]


@torch.no_grad()
def test_clip_folder_without_preprocessor(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "preprocessor_config.json").unlink()
    branch = load_semantic(_clip(folder))
    assert tuple(branch.mean) == CLIP_MEAN
    assert tuple(branch.std) == CLIP_STD


@torch.no_grad()
def test_whole_clip_as_on_the_hub(
    tmp_path: Path,
    make_clip: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenAI's repositories hold text and image towers under one configuration."""
    vision = make_clip()
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 49408,
        "projection_dim": 16,
    }
    values = CLIPConfig(text_config=text, vision_config=vision.config.to_dict(), projection_dim=16)
    model = CLIPModel(values)
    model.vision_model.load_state_dict(vision.state_dict())
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert "vision_model.embeddings.class_embedding" in names
    pixels = _pixels(64, 64)
    expected = vision(pixels).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    # transformers passes nothing on to the root logger, where caplog listens.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert torch.equal(load_semantic(_clip(tmp_path))(pixels), expected)
    # Nothing is told of the text tower, which nobody wants.
    assert "text_model" not in caplog.text
    random = load_semantic(_clip(tmp_path), weights="random")
    assert (random.channels, random.patch_size) == (48, 8)


def test_clip_in_bfloat16(clip_folder: Path) -> None:
    branch = load_semantic(_clip(clip_folder), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in branch.parameters()} == {torch.bfloat16}
    assert branch(_pixels(64, 64)).dtype == torch.bfloat16


def test_clip_revision_is_passed_on(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = CLIPVisionModel.from_pretrained.__func__

    def from_pretrained(cls: type, source: str, **options: Any) -> Any:
        asked.append((source, options.pop("revision")))
        return original(cls, clip_folder, **options)

    def download(repo: str, filename: str, revision: str | None) -> str:
        asked.append((repo, revision))
        if filename == "processor_config.json":
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("404", response=response)
        return str(clip_folder / filename)

    monkeypatch.setattr(CLIPVisionModel, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    load_semantic(SemanticConfig(source="someone/clip", revision="0123abc"))
    assert asked == [("someone/clip", "0123abc")] * 3


def test_clip_pickle_needs_an_opt_in(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"could not load the CLIP image encoder.*allow_pickle=True"):
        load_semantic(_clip(folder))
    branch = load_semantic(_clip(folder), allow_pickle=True)
    got = branch.model.state_dict()
    assert torch.equal(got["pre_layrnorm.weight"], state["pre_layrnorm.weight"])


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def _lose_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = {name: t for name, t in load_file(path).items() if "layers.1." not in name}
    save_file(state, path, {"format": "pt"})


def _other_shape(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "intermediate_size": 100}))


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("spoil", [_truncate, _lose_weights, _other_shape, _broken_config])
def test_broken_clip_folder(spoil: Any, clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    spoil(folder)
    with pytest.raises(OSError, match="could not load the CLIP image encoder"):
        load_semantic(_clip(folder))


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_folder_of_another_kind_of_model_is_told(
    weights: str, clip_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "siglip"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip_vision_model"}))
    with pytest.raises(ValueError, match=r"siglip holds a model of the type 'siglip_vision_model'"):
        load_semantic(_clip(folder), weights=weights)


def test_weights_of_a_variant_alone_are_told(clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    told = r"model\.fp16\.safetensors is a variant: set .*semantic__variant\."
    with pytest.raises(OSError, match=told):
        load_semantic(_clip(folder))
    expected = load_semantic(_clip(clip_folder)).state_dict()
    found = load_semantic(_clip(folder, variant="fp16")).state_dict()
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    # Beside whole weights it is none of the trouble.
    shutil.copy(folder / "model.fp16.safetensors", folder / "model.safetensors")
    _truncate(folder)
    with pytest.raises(OSError, match="could not load") as error:
        load_semantic(_clip(folder))
    assert "is a variant" not in str(error.value)


def test_clip_that_cannot_be_had() -> None:
    with pytest.raises(OSError, match="could not load the CLIP image encoder from 'nobody/clip'"):
        load_semantic(SemanticConfig(source="nobody/clip"))
    with pytest.raises(OSError, match="removed"):
        load_semantic(SemanticConfig(source=next(iter(RETIRED_REPOSITORIES))))
    with pytest.raises(ValueError, match=r"'nobody/clip'.*openai/clip-vit-large-patch14-336"):
        load_semantic(SemanticConfig(source="nobody/clip"), weights="random")


def test_a_missing_folder_is_told_before_the_diffusion_branch_is_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("no diffusion branch may be loaded")

    monkeypatch.setattr("sketchfusion_plugins.assembly.load_diffusion", load)
    with pytest.raises(OSError, match="expected a folder with a model at '/nope', found nothing"):
        SketchFusionEncoder(preset("paper").replace(semantic__source="/nope"))


def test_a_folder_tells_whether_timm_reads_it(clip_folder: Path, tmp_path: Path) -> None:
    assert isinstance(load_semantic(SemanticConfig(str(clip_folder), kind="timm")), ClipVision)

    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_conv16_128", num_classes=0).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    image = _pixels(64, 96)
    expected = deepcopy(model)
    expected.patch_embed.strict_img_size, expected.dynamic_img_size = False, True
    expected.patch_embed.flatten, expected.patch_embed.output_fmt = False, "NHWC"
    for kind in ("clip", "timm"):
        branch = load_semantic(SemanticConfig(str(tmp_path), kind=kind, final_norm=True))
        assert isinstance(branch, TimmVision)
        assert (branch.patch_size, branch.image_size, branch.channels) == (16, 128, 192)
        with torch.no_grad():
            tokens = expected.forward_features(image)
            grid = tokens.transpose(1, 2).unflatten(2, (4, 6))
            torch.testing.assert_close(branch(image), grid)


def test_changes_of_the_source(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert semantic_changes(None) == {}
    # What a folder holds is read, and its preset's kind stays.
    assert semantic_changes(str(clip_folder)) == {"semantic__source": str(clip_folder)}
    monkeypatch.chdir(clip_folder.parent)
    assert semantic_changes(clip_folder.name) == {"semantic__source": clip_folder.name}
    for source, kind in (("someone/clip", "clip"), (CLIP_BASE, "timm")):
        assert semantic_changes(source) == {"semantic__source": source, "semantic__kind": kind}


# --- timm --------------------------------------------------------------------------------------


def _timm_pair(name: str, final_norm: bool) -> tuple[Any, TimmVision]:
    """A timm model and our branch around the same weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    with torch.no_grad():
        # Layer scale starts at 1e-5, which would hide the blocks.
        for key, parameter in model.named_parameters():
            if key.endswith(("gamma", "gamma_1", "gamma_2")):
                parameter.fill_(0.5)
    return model, TimmVision(deepcopy(model), final_norm).eval()


@pytest.mark.parametrize("name", TIMM_MODELS)
@torch.no_grad()
def test_timm_tokens_equal_timm(name: str) -> None:
    patch = 14 if "patch14" in name else 16
    for size in ((4 * patch, 4 * patch), (3 * patch, 5 * patch)):
        pixels = _pixels(*size)
        grid = (size[0] // patch, size[1] // patch)
        model, branch = _timm_pair(name, final_norm=True)
        tokens = model.forward_features(pixels)[:, model.num_prefix_tokens :]
        assert torch.equal(branch(pixels), tokens.transpose(1, 2).unflatten(2, grid))

        model, branch = _timm_pair(name, final_norm=False)
        last: list[Tensor] = []
        model.blocks[-1].register_forward_hook(lambda _, __, output, to=last: to.append(output))
        model.forward_features(pixels)
        tokens = last[0][:, model.num_prefix_tokens :]
        assert torch.equal(branch(pixels), tokens.transpose(1, 2).unflatten(2, grid))


@torch.no_grad()
def test_a_norm_that_timm_has_after_pooling_is_the_last_one_of_tokens() -> None:
    options = {"num_classes": 0, "dynamic_img_size": True, "global_pool": "avg"}
    model = timm.create_model("test_vit", **options).eval()
    assert isinstance(model.norm, torch.nn.Identity)
    torch.nn.init.normal_(model.fc_norm.weight)
    pixels = _pixels(64, 48)
    tokens = model.forward_features(pixels)[:, model.num_prefix_tokens :]
    expected = model.fc_norm(tokens)
    assert not torch.allclose(tokens, expected)
    for final_norm, wanted in ((True, expected), (False, tokens)):
        got = TimmVision(deepcopy(model), final_norm).eval()(pixels)
        assert torch.equal(got, wanted.transpose(1, 2).unflatten(2, (4, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_timm_in_a_replica_of_data_parallelism(dtype: torch.dtype, replicate: Any) -> None:
    config = SemanticConfig(source="test_vit", kind="timm")
    branch = load_semantic(config, weights="random", dtype=dtype)
    replica = replicate(branch)
    assert not list(replica.parameters())
    pixels = _pixels(64, 64)
    assert torch.equal(replica(pixels), branch(pixels))
    encoder = SketchFusionEncoder(preset("tiny").replace(weights="random")).eval()
    image = pixels.clamp(-1, 1)
    assert torch.equal(replicate(encoder)(image), encoder(image)), "the diffusion branch too"
    encoder.to(dtype)
    assert replicate(encoder).dtype == encoder.dtype == dtype
    assert torch.equal(replicate(encoder)(image), encoder(image))


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timm_attributes(name: str) -> None:
    config = SemanticConfig(source=name, kind="timm")
    with torch.device("meta"):
        branch = load_semantic(config, weights="random")
    own = timm.get_pretrained_cfg(name)
    assert isinstance(branch, SemanticBranch)
    assert branch.patch_size == (14 if "patch14" in name else 16)
    assert branch.image_size == own.input_size[-1]
    assert tuple(branch.mean) == tuple(own.mean)
    assert tuple(branch.std) == tuple(own.std)


@pytest.mark.parametrize("name", TIMM_MODELS[:4])
@pytest.mark.parametrize("final_norm", [False, True])
def test_timm_has_no_dead_parameter(name: str, final_norm: bool) -> None:
    branch = load_semantic(
        SemanticConfig(source=name, kind="timm", final_norm=final_norm), weights="random"
    )
    branch(_pixels(64, 64)).square().mean().backward()
    dead = [key for key, parameter in branch.named_parameters() if parameter.grad is None]
    assert dead == []


def test_branches_are_in_eval_mode(clip_folder: Path) -> None:
    for config in (SemanticConfig(source="test_vit", kind="timm"), _clip(clip_folder)):
        branch = load_semantic(config, weights="random")
        assert not any(module.training for module in branch.modules())


def test_unknown_timm_name_suggests_some() -> None:
    with pytest.raises(ValueError, match=r"no model 'vit_tiny_patch16'.*vit_tiny_patch16_224"):
        load_semantic(SemanticConfig(source="vit_tiny_patch16", kind="timm"))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "beit_base_patch16_224"])
def test_timm_model_of_a_fixed_size_or_no_tokens(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*cannot be a semantic branch.*dinov2"):
        load_semantic(SemanticConfig(source=name, kind="timm"), weights="random")


@pytest.mark.parametrize(
    ("name", "weights", "variant"),
    [
        (f"{CLIP_BASE}_224.openai", "pretrained", "vit_base_patch16_clip_quickgelu_224.openai"),
        (f"{CLIP_BASE}_224.openai", "random", None),
        (f"{CLIP_BASE}_quickgelu_224.openai", "pretrained", None),
        (f"{CLIP_BASE}_224.laion2b", "pretrained", None),
    ],
)
def test_weights_of_another_activation_are_named(
    name: str,
    weights: str,
    variant: str | None,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    original = timm.create_model
    fetchless = lambda name, pretrained, **options: original(name, **options)  # noqa: E731
    monkeypatch.setattr(timm, "create_model", fetchless)
    with torch.device("meta"):
        load_semantic(SemanticConfig(source=name, kind="timm"), weights=weights)
    found = [str(warning.message) for warning in recwarn if "QuickGELU" in str(warning.message)]
    if variant is None:
        assert found == []
    else:
        assert variant in timm.list_pretrained()
        assert len(found) == 1 and f"Use '{variant}'." in found[0]


def test_timm_pickle_needs_an_opt_in(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=False)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix != ".json"] == [".bin"]
    config = SemanticConfig(source=str(tmp_path), kind="timm")
    refusal = r"no \.safetensors file.*allow_pickle=True"
    with pytest.raises(OSError, match=refusal):
        load_semantic(config)
    load_semantic(config, weights="random")
    branch = load_semantic(config, allow_pickle=True)
    assert torch.equal(branch.model.pos_embed, model.pos_embed)

    config = SemanticConfig(source="vit_huge_patch14_gap_224.in1k_ijepa", kind="timm")
    with (
        torch.device("meta"),
        pytest.raises(OSError, match=r"pickled alone, at https.*allow_pickle=True"),
    ):
        load_semantic(config)


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "model.pth"])
@pytest.mark.parametrize("safe", ["other.safetensors", "open_clip_model.safetensors"])
def test_timm_reads_safetensors_beside_a_pickled_file(
    safe: str, pickled: str, tmp_path: Path
) -> None:
    """timm's own choice would be the pickled one."""
    model = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    (tmp_path / "model.safetensors").rename(tmp_path / safe)
    others = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save(others, tmp_path / pickled)
    if safe != "other.safetensors":
        save_file(others, tmp_path / "another.safetensors")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "lost")
    config = SemanticConfig(source=str(tmp_path), kind="timm")
    assert torch.equal(load_semantic(config).model.pos_embed, model.pos_embed)
    opted_in = load_semantic(config, allow_pickle=True).model.pos_embed
    assert torch.equal(opted_in, model.pos_embed + 1)


def test_timm_weights_that_cannot_be_had() -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    with pytest.raises(OSError, match=f"could not load the image transformer from '{name}'"):
        load_semantic(SemanticConfig(source=name, kind="timm"))


# --- resizing ----------------------------------------------------------------------------------


class Branch:
    """A branch of 6 x 6 patches of 10 px; resizing asks no more of one."""

    channels = 1
    patch_size = 10
    image_size = 60
    mean = (0.5, 0.4, 0.3)
    std = (0.1, 0.2, 0.4)

    def __call__(self, image: Tensor) -> Tensor:
        return image[:, :1, ::10, ::10]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # Rows and columns: 6 * sqrt(aspect), rounded, at least 1.
        ((60, 60), (60, 60)),
        ((33, 33), (60, 60)),
        ((512, 512), (60, 60)),
        ((100, 200), (40, 80)),
        ((200, 100), (80, 40)),
        ((90, 60), (70, 50)),
        ((64, 6400), (10, 600)),
    ],
)
def test_grid_keeps_the_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_for_tokens(torch.zeros(1, 3, *size), Branch()).shape == (1, 3, *expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # What is no larger than 60 x 60 pixels is enlarged as ever.
        ((60, 60), (60, 60)),
        ((33, 33), (60, 60)),
        ((20, 80), (30, 120)),
        # What is larger keeps its size, but for rounding to patches of 10.
        ((512, 512), (510, 510)),
        ((100, 200), (100, 200)),
        ((87, 64), (90, 60)),
    ],
)
def test_large_images_keep_their_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    resized = resize_for_tokens(torch.zeros(1, 3, *size), Branch(), shrink=False)
    assert resized.shape == (1, 3, *expected)


def test_own_size_is_normalised_alone() -> None:
    image = _pixels(60, 60).clamp(-1, 1)
    expected = torch.stack(
        [
            ((image[:, channel] + 1) / 2 - Branch.mean[channel]) / Branch.std[channel]
            for channel in range(3)
        ],
        dim=1,
    )
    torch.testing.assert_close(resize_for_tokens(image, Branch()), expected)


@pytest.mark.parametrize("size", [(120, 120), (30, 45), (90, 60), (100, 37)])
def test_field_of_view_stays(size: tuple[int, int]) -> None:
    """A ramp over the whole image is a ramp over the whole resized image: nothing is cropped."""
    height, width = size
    rows = ((torch.arange(height) + 0.5) / height * 2 - 1).view(1, 1, -1, 1)
    columns = ((torch.arange(width) + 0.5) / width * 2 - 1).view(1, 1, 1, -1)
    image = torch.cat([x.expand(1, 1, *size) for x in (rows, columns, rows)], dim=1)
    mean, std = torch.tensor(Branch.mean), torch.tensor(Branch.std)
    resized = resize_for_tokens(image, Branch())
    pixels = (resized * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)) * 2 - 1
    height, width = pixels.shape[-2:]
    rows = (torch.arange(height) + 0.5) / height * 2 - 1
    columns = (torch.arange(width) + 0.5) / width * 2 - 1
    # Bicubic weights reproduce a ramp, except where they reach over the border.
    inner = slice(8, -8)
    torch.testing.assert_close(pixels[0, 0, inner, width // 2], rows[inner], atol=2e-3, rtol=0)
    torch.testing.assert_close(pixels[0, 1, height // 2, inner], columns[inner], atol=2e-3, rtol=0)


def test_shrinking_is_smoothed() -> None:
    """One-pixel stripes become grey, not a Moire pattern."""
    image = torch.ones(1, 3, 240, 240)
    image[..., ::2] = -1
    resized = resize_for_tokens(image, Branch())
    grey = (0.5 - torch.tensor(Branch.mean)) / torch.tensor(Branch.std)
    inner = resized[0, :, 5:-5, 5:-5]
    torch.testing.assert_close(inner, grey.view(3, 1, 1).expand_as(inner), atol=0.05, rtol=0)
