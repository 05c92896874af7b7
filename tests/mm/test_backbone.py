"""The mmengine backbone: what it returns, keeps, saves and refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmseg")

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner.checkpoint import load_checkpoint, save_checkpoint
from mmseg.registry import MODELS
from torch import nn

from sketchfusion_plugins import CheckpointError, SketchFusionEncoder
from sketchfusion_plugins.checkpoint import save_adapters
from sketchfusion_plugins.mm import SketchFusion
from sketchfusion_plugins.mm.backbone import find_config
from sketchfusion_plugins.presets import preset

SITES = 7


def frozen_state(module: nn.Module) -> dict[str, Any]:
    """Foundations' parameters, found without the state dict that leaves them out."""
    return {
        name: parameter.detach().clone()
        for name, parameter in module.named_parameters()
        if ".diffusion." in name or ".semantic." in name
    }


@pytest.fixture
def backbone(config: Any) -> SketchFusion:
    return SketchFusion(config=config.to_dict())


def test_every_framework_finds_it() -> None:
    assert ROOT_MODELS.get("SketchFusion") is SketchFusion
    assert MODELS.get("SketchFusion") is SketchFusion
    assert MODELS.get("AdaptivePyramidNeck") is not None


@pytest.mark.parametrize("size", [(64, 64), (70, 97)])
def test_levels_are_the_encoders(config: Any, sketches: Any, size: tuple[int, int]) -> None:
    built = MODELS.build({"type": "SketchFusion", "config": config.to_dict()})
    levels = built(sketches(2, *size))
    expected = SketchFusionEncoder(config).forward_levels(sketches(2, *size)).maps
    assert isinstance(levels, tuple)
    assert len(levels) == 3
    for level, other, channels, stride in zip(
        levels, expected, built.out_channels, built.out_strides, strict=True
    ):
        torch.testing.assert_close(level, other, atol=0, rtol=0)
        assert level.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("sketchfusion_base", "paper"),
        ("sketchfusion_base.cleandift", "cleandift"),
        ("sketchfusion_base.sd15", "sd15"),
        ("sketchfusion_small", "small"),
        ("sketchfusion_tiny.open_pictures", "tiny"),
        ("official", "official"),
    ],
)
def test_variants(variant: str, expected: str) -> None:
    assert find_config(variant) == preset(expected)


def test_explicit_changes(clip_folder: Path, pipeline_folder: Path) -> None:
    built = SketchFusion(
        "sketchfusion_tiny",
        diffusion=str(pipeline_folder),
        semantic=str(clip_folder),
        in_channels=1,
        foundation_dtype="bfloat16",
        changes={"diffusion__timestep": 50, "taps": ["up1", "up2"]},
    )
    levels = built(torch.zeros(1, 1, 64, 64))
    assert [level.dtype for level in levels] == [torch.float32] * 2
    assert built.encoder.config.diffusion.timestep == 50
    assert next(built.encoder.diffusion.denoiser.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("variant", "semantic", "kind"),
    [
        ("sketchfusion_tiny", "openai/clip-vit-base-patch16", "clip"),
        ("sketchfusion_base", "vit_base_patch14_dinov2.lvd142m", "timm"),
    ],
)
def test_a_semantic_branch_of_the_other_kind(variant: str, semantic: str, kind: str) -> None:
    with torch.device("meta"):
        built = SketchFusion(variant, semantic=semantic, weights="random").encoder
        assert (built.config.semantic.source, built.config.semantic.kind) == (semantic, kind)
        assert built.semantic.channels == 768
        with pytest.raises(ValueError, match="kind must be one of"):
            SketchFusion(variant, semantic=semantic, changes={"semantic__kind": "jpeg"})


def test_foundations_survive_init_weights_and_initialisers(segmentor_config: Any) -> None:
    model = MODELS.build(
        segmentor_config(init_cfg={"type": "Constant", "val": 7.0, "layer": ["Conv2d", "Linear"]})
    )
    before = frozen_state(model)
    model.init_weights()
    after = frozen_state(model)
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (model.decode_head.conv_seg.weight != 0).any()
    assert (model.backbone.encoder.injector.projections["up1"].weight == 7).all()


def test_init_weights_keeps_the_chosen_start(config: Any) -> None:
    built = SketchFusion(config=config.replace(injection__init="official").to_dict())
    before = copy.deepcopy(built.encoder.injector.state_dict())
    built.init_weights()
    after = built.encoder.injector.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_parts_stay_in_eval_mode(segmentor_config: Any) -> None:
    model = MODELS.build(segmentor_config()).train()
    assert model.decode_head.training
    assert model.backbone.encoder.injector.training
    foundations = model.backbone.encoder.foundations()
    assert not any(module.training for part in foundations for module in part.modules())


def test_checkpoint_holds_what_trains(segmentor_config: Any, tmp_path: Path) -> None:
    model = MODELS.build(segmentor_config())
    for parameter in model.backbone.encoder.injector.parameters():
        nn.init.normal_(parameter)
    save_checkpoint({"state_dict": model.state_dict()}, str(tmp_path / "model.pth"))
    saved = torch.load(tmp_path / "model.pth", weights_only=True)["state_dict"]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(saved) == trained | {"backbone.foundation_fingerprint"}
    assert sum(".injector." in name for name in saved) == 2 * SITES

    other = MODELS.build(segmentor_config())
    load_checkpoint(other, str(tmp_path / "model.pth"), strict=True)
    assert all(torch.equal(saved[name], tensor) for name, tensor in other.state_dict().items())
    assert not other.load_state_dict(saved, strict=True).missing_keys


def test_missing_adapters_are_named(
    segmentor_config: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = MODELS.build(segmentor_config())
    state = dict(model.state_dict())
    lost = "backbone.encoder.injector.projections.up1.weight"
    del state[lost]
    assert model.load_state_dict(state, strict=False).missing_keys == [lost]
    with pytest.raises(RuntimeError, match=lost):
        model.load_state_dict(state, strict=True)
    save_checkpoint({"state_dict": state}, str(tmp_path / "model.pth"))
    load_checkpoint(model, str(tmp_path / "model.pth"), strict=False)
    printed = "".join(capfd.readouterr())
    assert f"missing keys in source state_dict: {lost}" in printed
    assert ".diffusion." not in printed


def test_checkpoint_of_other_foundations_is_refused(backbone: SketchFusion) -> None:
    other = SketchFusion("sketchfusion_tiny", weights="random")
    with pytest.raises(CheckpointError, match=r"trained on other foundations .*random weights"):
        other.load_state_dict(backbone.state_dict())
    with pytest.raises(CheckpointError, match="trained on other foundations"):
        load_checkpoint_state(other, backbone.state_dict())


def load_checkpoint_state(module: nn.Module, state: Any, strict: bool = False) -> None:
    from mmengine.runner.checkpoint import load_state_dict

    load_state_dict(module, state, strict=strict)


def test_precision_of_the_trunk_does_not_matter_to_a_checkpoint(config: Any) -> None:
    full = SketchFusion(config=config.to_dict())
    half = SketchFusion(config=config.to_dict(), foundation_dtype="bfloat16")
    half.load_state_dict(full.state_dict(), strict=True)


def test_unfrozen_foundations_are_saved(config: Any) -> None:
    built = SketchFusion(config=config.to_dict(), freeze_foundations=False)
    computed = {"encoder.diffusion.denoiser.null_embedding"}
    assert set(built.state_dict()) == set(dict(built.named_parameters())) | computed


@pytest.mark.parametrize(("variant", "megabytes"), [("tiny", 10), ("base", 100)])
def test_size_of_a_checkpoint(variant: str, megabytes: int) -> None:
    with torch.device("meta"):
        built = SketchFusion(f"sketchfusion_{variant}", weights="random")
        neck = MODELS.build(
            {
                "type": "AdaptivePyramidNeck",
                "in_channels": built.out_channels,
                "out_channels": 256,
                "frequency_bands": 4,
            }
        )
    state = {**built.state_dict(), **neck.state_dict()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert size < megabytes * 1e6


def test_copies_share_foundations_and_nothing_else(segmentor_config: Any) -> None:
    model = MODELS.build(segmentor_config())
    copied = copy.deepcopy(model)
    originals, copies = dict(model.named_parameters()), dict(copied.named_parameters())
    assert set(originals) == set(copies)
    for name, parameter in originals.items():
        frozen = ".diffusion." in name or ".semantic." in name
        assert (parameter.data_ptr() == copies[name].data_ptr()) == frozen, name
    assert set(copied.state_dict()) == set(model.state_dict())
    buffers, others = dict(model.named_buffers()), dict(copied.named_buffers())
    null_prompt = next(name for name in buffers if name.endswith("null_embedding"))
    assert buffers[null_prompt].data_ptr() == others[null_prompt].data_ptr()


def test_a_copy_that_is_cast_leaves_the_original_alone(segmentor_config: Any) -> None:
    model = MODELS.build(segmentor_config())
    before = {name: t.clone() for name, t in model.backbone.encoder.state_dict().items()}
    copied = copy.deepcopy(model).half()
    assert {p.dtype for p in copied.parameters()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    after = model.backbone.encoder.state_dict()
    assert all(torch.equal(after[name], values) for name, values in before.items())


def test_what_trains_in_frozen_foundations_is_not_lost_in_silence(backbone: SketchFusion) -> None:
    layer = backbone.encoder.diffusion.denoiser.unet.conv_in
    layer.register_parameter("lora_A", torch.nn.Parameter(torch.zeros(4)))
    with pytest.raises(CheckpointError, match=r"1 parameters .*lora_A, and .*freeze_found"):
        backbone.state_dict()


def test_moving_average_sees_adapters(segmentor_config: Any) -> None:
    from mmengine.model import ExponentialMovingAverage

    model = MODELS.build(segmentor_config())
    average = ExponentialMovingAverage(model, momentum=0.25, update_buffers=True)
    assert set(average.avg_parameters) == set(model.state_dict())
    average.update_parameters(model)
    before = frozen_state(model)
    with torch.no_grad():
        model.backbone.encoder.injector.projections["up0"].bias += 1.0
    average.update_parameters(model)
    averaged = average.module.backbone.encoder.injector.projections["up0"].bias
    torch.testing.assert_close(averaged, torch.full_like(averaged, 0.25))
    assert all(torch.equal(before[name], value) for name, value in frozen_state(model).items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activation_checkpointing_changes_no_gradient(
    config: Any, sketches: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.utils.checkpoint

    calls = []
    original = torch.utils.checkpoint.checkpoint

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", count)
    gradients = []
    for with_cp in (False, True):
        built = SketchFusion(config=config.to_dict(), with_cp=with_cp, foundation_dtype=dtype)
        built.train()
        sum(level.square().mean() for level in built(sketches(1))).backward()
        gradients.append([p.grad for p in built.parameters() if p.requires_grad])
        assert bool(calls) == with_cp
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_adapters_of_a_timm_model(
    config: Any, sketches: Any, tmp_path: Path, randomize: Any
) -> None:
    encoder = randomize(SketchFusionEncoder(config))
    encoder.save_pretrained(tmp_path / "adapters")
    built = SketchFusion(adapters=str(tmp_path / "adapters"))
    built.init_weights()
    expected = encoder.forward_levels(sketches(1)).maps
    for level, other in zip(built(sketches(1)), expected, strict=True):
        torch.testing.assert_close(level, other, atol=0, rtol=0)
    assert not any("aggregator" in name for name in built.state_dict())


def test_trained_foundations_stay_with_what_is_trained_on_them(
    config: Any, sketches: Any, tmp_path: Path, randomize: Any
) -> None:
    encoder = randomize(SketchFusionEncoder(config.replace(freeze_foundations=False)))
    with torch.no_grad():
        for parameter in encoder.diffusion.parameters():
            parameter += 0.1
    encoder.save_pretrained(tmp_path / "trained")
    built = SketchFusion(adapters=str(tmp_path / "trained"), freeze_foundations=True)
    # Its own state dict, which mmengine saves, is without them.
    assert not any(".diffusion." in name for name in built.state_dict())
    save_adapters(built, tmp_path / "again")
    again = SketchFusion(adapters=str(tmp_path / "again"))
    assert again.encoder.config.freeze_foundations
    for level, other in zip(again(sketches(1)), built(sketches(1)), strict=True):
        torch.testing.assert_close(level, other, atol=0, rtol=0)


def test_foundations_that_are_to_train_begin_as_adapters_know_them(config: Any) -> None:
    frozen = SketchFusion(config=config.to_dict())
    state = frozen.state_dict()
    same = SketchFusion(config=config.to_dict(), freeze_foundations=False)
    same.encoder.diffusion.load_state_dict(frozen.encoder.diffusion.state_dict())
    same.encoder.semantic.load_state_dict(frozen.encoder.semantic.state_dict())
    found = same.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith(("encoder.diffusion", "encoder.semantic")) for name in found[0])
    with torch.no_grad():
        same.encoder.diffusion.vae.encoder.conv_in.weight += 1
    with pytest.raises(CheckpointError, match="trained on other foundations"):
        same.load_state_dict(state, strict=False)
    # What brings its foundations along needs none before.
    with torch.device("meta"):
        random = config.replace(weights="random").to_dict()
        empty = SketchFusion(config=random, freeze_foundations=False)
    found = empty.load_state_dict(frozen.full_state_dict(), strict=False, assign=True)
    assert not any(found)


def test_checkpoint_of_trained_foundations_loads_where_they_are_frozen(
    config: Any, sketches: Any, tmp_path: Path, randomize: Any
) -> None:
    tuned = SketchFusion(config=config.to_dict(), freeze_foundations=False)
    randomize(tuned.encoder)
    with torch.no_grad():
        for parameter in tuned.encoder.diffusion.parameters():
            parameter *= 1.1
    full = tuned.state_dict()
    untouched = SketchFusion(config=config.to_dict())
    for load in (nn.Module.load_state_dict, load_checkpoint_state):
        built = SketchFusion(config=config.to_dict())
        load(built, full, strict=True)
        for level, other in zip(built(sketches(1)), tuned(sketches(1)), strict=True):
            torch.testing.assert_close(level, other)
        # What is trained on these foundations fits them alone.
        small = built.state_dict()
        assert not any(".diffusion." in name for name in small)
        with pytest.raises(CheckpointError, match="trained on other foundations"):
            untouched.load_state_dict(small)
    tuned.encoder.save_pretrained(tmp_path / "tuned")
    built.encoder.save_pretrained(tmp_path / "frozen")
    for folder in ("tuned", "frozen"):
        again = SketchFusion(adapters=str(tmp_path / folder), freeze_foundations=True)
        load_checkpoint_state(again, small, strict=True)
        for level, other in zip(again(sketches(1)), tuned(sketches(1)), strict=True):
            torch.testing.assert_close(level, other)
    lost = next(name for name in full if name.endswith("conv_in.weight"))
    partial = {name: value for name, value in full.items() if name != lost}
    missing = untouched.load_state_dict(partial, strict=False).missing_keys
    assert set(missing) == {lost, "foundation_fingerprint"}


def test_pretrained_init_cfg(segmentor_config: Any, config: Any, tmp_path: Path) -> None:
    model = MODELS.build(segmentor_config())
    nn.init.constant_(model.backbone.encoder.injector.projections["up0"].bias, 3.0)
    save_checkpoint({"state_dict": model.state_dict()}, str(tmp_path / "model.pth"))
    built = SketchFusion(
        config=config.to_dict(),
        init_cfg={
            "type": "Pretrained",
            "checkpoint": str(tmp_path / "model.pth"),
            "prefix": "backbone.",
        },
    )
    built.init_weights()
    assert (built.encoder.injector.projections["up0"].bias == 3).all()
    listed = SketchFusion(config=config.to_dict(), init_cfg=[built.init_cfg])
    listed.init_weights()
    assert (listed.encoder.injector.projections["up0"].bias == 3).all()


def test_refusals(config: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown variant 'resnet50'; choose .*sketchfusion_tiny"):
        SketchFusion("resnet50")
    with pytest.raises(ValueError, match=r"unknown variant 'sketchfusion_tiny\.sd21'"):
        SketchFusion("sketchfusion_tiny.sd21")
    with pytest.raises(ValueError, match="init_cfg must be None or of type 'Pretrained'"):
        SketchFusion(config=config.to_dict(), init_cfg={"type": "Kaiming", "layer": "Conv2d"})
    with pytest.raises(ValueError, match="init_cfg must be None or of type 'Pretrained'"):
        SketchFusion(config=config.to_dict(), init_cfg=[{"type": "Kaiming", "layer": "Conv2d"}])
    with pytest.raises(ValueError, match="unknown EncoderConfig field"):
        SketchFusion(config=config.to_dict(), changes={"depth": 50})
    built = SketchFusion(config=config.to_dict())
    with pytest.raises(ValueError, match=r"looks like 0\.\.255"):
        built(torch.full((1, 3, 64, 64), 255.0))
