"""The timm face: what a user of timm, and of segmentation_models.pytorch, relies on."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from timm.layers import FrozenBatchNormAct2d
from timm.models._features import FeatureGetterNet, FeatureListNet
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2, ModelEmaV3, freeze, unfreeze

import sketchfusion_plugins
from sketchfusion_plugins import CheckpointError, SketchFusionEncoder
from sketchfusion_plugins.adapter_file import WEIGHTS_FILE
from sketchfusion_plugins.checkpoint import adapter_state, load_adapters, save_adapters
from sketchfusion_plugins.config import STABLE_DIFFUSION_21
from sketchfusion_plugins.presets import STABLE_DIFFUSION_15, preset
from sketchfusion_plugins.tasks.load import build_task, load_task

TINY = "sketchfusion_tiny"


@pytest.fixture(scope="module")
def tiny() -> torch.nn.Module:
    return timm.create_model(TINY, num_classes=5).eval()


def test_models_are_registered_once_by_importing_the_package() -> None:
    code = (
        "import warnings; warnings.simplefilter('error', UserWarning)\n"
        "import timm; assert not timm.list_models('sketchfusion*')\n"
        "import sketchfusion_plugins\n"
        "print(','.join(timm.list_models('sketchfusion*')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "sketchfusion_base,sketchfusion_small,sketchfusion_tiny", (
        result.stderr
    )


@pytest.mark.parametrize(
    ("name", "source", "noise_free"),
    [
        ("sketchfusion_base", STABLE_DIFFUSION_21, False),
        ("sketchfusion_base.sd21", STABLE_DIFFUSION_21, False),
        ("sketchfusion_base.sd15", STABLE_DIFFUSION_15, False),
        ("sketchfusion_base.cleandift", STABLE_DIFFUSION_21, True),
    ],
)
def test_tags_choose_foundations(name: str, source: str, noise_free: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert model.encoder.config.diffusion.source == source
    assert model.encoder.config.diffusion.noise_free is noise_free


def test_unknown_tag_is_refused() -> None:
    with pytest.raises(RuntimeError, match="nonsense"):
        timm.create_model(f"{TINY}.nonsense")


@pytest.mark.parametrize("compiled", [False, True])
def test_adapters_load_into_half_precision(
    compiled: bool, tiny: torch.nn.Module, tmp_path: Path
) -> None:
    save_adapters(torch.compile(tiny, backend="eager") if compiled else tiny, tmp_path)  # type: ignore[arg-type]
    model = timm.create_model(
        TINY,
        pretrained=True,
        weights="random",
        num_classes=5,
        dtype=torch.float16,
        pretrained_cfg_overlay={"file": str(tmp_path / WEIGHTS_FILE)},
    )
    expected, got = adapter_state(tiny), adapter_state(model)
    assert set(got) == set(expected)
    assert all(torch.equal(tensor, expected[name].half()) for name, tensor in got.items())


def test_features_have_the_declared_channels_and_strides() -> None:
    backbone = timm.create_model(TINY, features_only=True).eval()
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    for height, width in ((128, 128), (96, 64), (101, 67)):
        with torch.no_grad():
            maps = backbone(torch.zeros(1, 3, height, width))
        for level, channels, stride in zip(
            maps, backbone.feature_info.channels(), backbone.feature_info.reduction(), strict=True
        ):
            assert level.shape == (1, channels, -(-height // stride), -(-width // stride))


def test_features_are_the_encoder_levels(tiny: torch.nn.Module) -> None:
    image = torch.rand(2, 3, 64, 96) * 2 - 1
    backbone = timm.create_model(TINY, features_only=True, out_indices=(1, 2, 3)).eval()
    with torch.no_grad():
        levels = tiny.encoder.forward_levels(image).maps
        for got, expected in zip(backbone(image), levels, strict=True):
            assert torch.equal(got, expected)


def test_stride_4_level_is_the_finest_level_enlarged(tiny: torch.nn.Module) -> None:
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        fine, coarse = tiny.forward_intermediates(image, indices=[0, 1], intermediates_only=True)
    expected = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(fine, expected)


def test_pruned_backbone_holds_nothing_unused() -> None:
    whole = timm.create_model(TINY, features_only=True)
    coarse = timm.create_model(TINY, features_only=True, out_indices=(3,))
    names = dict(coarse.named_parameters())
    assert not any(
        "up_blocks.1" in name or "aggregator" in name or "head" in name for name in names
    )
    assert not any("projections.up1" in name for name in names)
    count = sum(p.numel() for p in coarse.parameters())
    assert count < 0.9 * sum(p.numel() for p in whole.parameters())
    with pytest.raises(ValueError, match=r"level 1 was pruned; up0 remain"):
        coarse.model.forward_intermediates(torch.zeros(1, 3, 64, 64), indices=[1])


def test_classifier_interface() -> None:
    model = timm.create_model(TINY, num_classes=7, drop_rate=0.1).eval()
    image = torch.zeros(2, 3, 64, 64)
    with torch.no_grad():
        assert model(image).shape == (2, 7)
        assert model.get_classifier() is model.head.fc
        features = model.forward_features(image)
        assert features.shape == (2, model.num_features, 8, 8)
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean((2, 3)))
        model.reset_classifier(3, "max")
        torch.testing.assert_close(
            model.forward_head(features, pre_logits=True), features.amax((2, 3))
        )
        assert model(image).shape == (2, 3)
        model.reset_classifier(0)
        torch.testing.assert_close(model(image), features.amax((2, 3)))
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(image), features)


def test_training_reaches_adapters_and_head_alone() -> None:
    torch.manual_seed(0)
    model = timm.create_model(TINY, num_classes=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
    images, labels = torch.rand(4, 3, 64, 64) * 2 - 1, torch.arange(4)
    model.train()
    first = None
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    for name, tensor in model.state_dict().items():
        frozen = name.startswith(("encoder.diffusion.", "encoder.semantic."))
        assert torch.equal(tensor, before[name]) == frozen, name


def test_gradient_checkpointing_is_switched_by_timm() -> None:
    torch.manual_seed(0)
    model = timm.create_model(TINY, num_classes=4).train()
    image, results = torch.rand(2, 3, 64, 64) * 2 - 1, []
    block = model.encoder.diffusion.denoiser.unet.up_blocks[1].resnets[0]
    calls: list[int] = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    for enable in (False, True):
        calls.clear()
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image).square().mean().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append(({name: grad.clone() for name, grad in grads.items()}, len(calls)))
    (plain, once), (others, twice) = results
    assert (once, twice) == (1, 2)
    assert plain.keys() == others.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(others[name], grad, atol=1e-6, rtol=1e-4, msg=name)


def test_the_size_before_the_classifier_is_that_of_what_is_pooled() -> None:
    image = torch.zeros(1, 3, 64, 64)
    model = timm.create_model(TINY, num_classes=4, global_pool="catavgmax").eval()
    for pool, factor in ((None, 2), ("max", 1), ("catavgmax", 2)):
        model.reset_classifier(3, pool)
        pooled = model.forward_head(model.forward_features(image), pre_logits=True)
        assert pooled.shape[1] == model.head_hidden_size == factor * model.num_features
    model.prune_intermediate_layers(2, prune_norm=True)
    assert model.head_hidden_size == model.num_features == model.feature_info[-1]["num_chs"]


def test_layer_decay_follows_the_order_of_the_blocks() -> None:
    model = timm.create_model(TINY, num_classes=4, freeze_foundations=False)
    groups = create_optimizer_v2(model, opt="adamw", lr=1.0, layer_decay=0.5).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}

    def at(name: str) -> float:
        return scale[id(model.get_parameter(name))]

    unet = "encoder.diffusion.denoiser.unet"
    order = [
        f"{unet}.conv_in.weight",
        f"{unet}.down_blocks.0.resnets.0.conv1.weight",
        f"{unet}.down_blocks.3.resnets.0.conv1.weight",
        f"{unet}.mid_block.resnets.0.conv1.weight",
        f"{unet}.up_blocks.0.resnets.0.conv1.weight",
        f"{unet}.up_blocks.2.resnets.0.conv1.weight",
        "encoder.aggregator.bottlenecks.0.mix.weight",
        "head.fc.weight",
    ]
    scales = [at(name) for name in order]
    assert scales == sorted(scales)
    assert len(set(scales)) >= len(scales) - 1
    block = f"{unet}.up_blocks.1.resnets.0.conv1.weight"
    assert at("encoder.injector.projections.up1.weight") == at(block)


def test_branch_logits_are_not_decayed() -> None:
    model = timm.create_model(TINY, num_classes=4)
    groups = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1).param_groups
    logits = model.encoder.aggregator.branch_logits
    decay = [g["weight_decay"] for g in groups if any(p is logits for p in g["params"])]
    assert decay == [0.0]


def test_transform_gives_the_normalised_range(tiny: torch.nn.Module) -> None:
    config = resolve_model_data_config(tiny)
    transform = create_transform(**config)
    white = transform(Image.new("RGB", (200, 100), "white"))
    black = transform(Image.new("RGB", (200, 100), "black"))
    assert white.shape == (3, 128, 128)
    # Nothing is cropped and no bars are added, whatever the aspect ratio.
    assert white.eq(1).all()
    assert black.eq(-1).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_input_channels(channels: int) -> None:
    model = timm.create_model(TINY, num_classes=2, in_chans=channels).eval()
    assert model(torch.zeros(1, channels, 64, 64)).shape == (1, 2)


def test_other_input_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels must be one of 1, 3, 4; got 5"):
        timm.create_model(TINY, in_chans=5)


def test_segmentation_models_pytorch_encoder() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet(f"tu-{TINY}", encoder_weights=None, in_channels=3, classes=4)
    output = model(torch.rand(2, 3, 128, 64) * 2 - 1)
    assert output.shape == (2, 4, 128, 64)
    output.mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any("injector" in name for name in trained)
    assert not any(".semantic." in name or ".denoiser." in name for name in trained)


def test_a_whole_state_dict_brings_all_that_is_computed_with() -> None:
    trained = timm.create_model("sketchfusion_tiny", pretrained=True, num_classes=3).eval()
    fresh = timm.create_model("sketchfusion_tiny", num_classes=3).eval()
    fresh.load_state_dict(trained.state_dict())
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(fresh(image), trained(image))


@pytest.mark.parametrize("built", ["random", "pretrained"])
def test_foundations_that_a_state_dict_replaced_are_saved(
    built: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    trained = timm.create_model(TINY, pretrained=True, num_classes=3).eval()
    torch.save(trained.state_dict(), tmp_path / "whole.pth")
    loaded = timm.create_model(
        TINY,
        pretrained=built == "pretrained",
        num_classes=3,
        checkpoint_path=tmp_path / "whole.pth",
    )
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    # What was loaded, and what is trained further on it.
    for folder in (tmp_path / "first", tmp_path / "second"):
        loaded.save_pretrained(folder)
        names = load_file(folder / WEIGHTS_FILE)
        assert any(".diffusion." in name for name in names) == (built == "random")
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            assert torch.equal(loaded(image), trained(image))
    told = [str(warning.message) for warning in recwarn]
    assert sum("built with random foundations" in text for text in told) == (built == "random")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrapped_names_are_told_by_torch(prefix: str, tiny: Any) -> None:
    state = {prefix + name: values for name, values in tiny.state_dict().items()}
    with pytest.raises(RuntimeError, match=rf"Unexpected key.*{prefix}encoder"):
        tiny.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*epoch"):
        tiny.load_state_dict({"state_dict": tiny.state_dict(), "epoch": 3})
    parts, tiny.encoder = tiny.encoder, torch.compile(tiny.encoder, backend="eager")
    try:
        tiny.load_state_dict(tiny.state_dict())
    finally:
        tiny.encoder = parts


def test_adapters_are_no_whole_state_dict(tiny: Any, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"without foundations.*local-dir:FOLDER"):
        timm.create_model("sketchfusion_tiny", checkpoint_path=tmp_path / WEIGHTS_FILE)


@pytest.mark.parametrize(
    ("taps", "strides"), [(("up0", "up1"), [8, 16, 32]), (("up1", "up2"), [4, 8, 16])]
)
def test_levels_of_other_taps(taps: tuple[str, ...], strides: list[int]) -> None:
    options: dict[str, Any] = {"pretrained": False, "changes": {"taps": taps}}
    model = timm.create_model("sketchfusion_tiny", features_only=True, **options)
    assert model.feature_info.reduction() == strides
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 64, 64))
    assert [64 // level.shape[-1] for level in maps] == strides
    assert [level.shape[1] for level in maps] == model.feature_info.channels()


def test_segmentation_models_pytorch_has_the_trained_weights() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet("tu-sketchfusion_tiny", encoder_weights=True, classes=4).eval()
    trained = timm.create_model("sketchfusion_tiny", pretrained=True, features_only=True).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        for got, expected in zip(model.encoder(image)[-4:], trained(image), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("decoder", ["Unet", "FPN", "UPerNet"])
def test_decoders_without_dilation(decoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = getattr(smp, decoder)(f"tu-{TINY}", encoder_weights=None, classes=2).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.parametrize("decoder", ["DeepLabV3", "DeepLabV3Plus", "PAN"])
def test_dilation_is_refused(decoder: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(NotImplementedError, match="output_stride must be 32, got"):
        getattr(smp, decoder)(f"tu-{TINY}", encoder_weights=None, classes=2)
    assert timm.create_model(TINY, output_stride=32).num_classes == 1000


def test_save_and_load_through_timm(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = timm.create_model(TINY, num_classes=5, changes={"injection__init": "official"}).eval()
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapters.safetensors")
    assert not any(".diffusion." in key or ".semantic." in key for key in keys)
    assert "head.fc.weight" in keys
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["foundations"]["diffusion"] == model.encoder.config.diffusion.source

    image = torch.rand(1, 3, 64, 64) * 2 - 1
    again = timm.create_model(TINY, num_classes=5).eval()
    again.load_pretrained(tmp_path)
    assert torch.equal(again(image), model(image))

    other_head = timm.create_model(TINY, num_classes=9).eval()
    head = other_head.head.fc.weight.clone()
    other_head.load_pretrained(tmp_path)
    assert torch.equal(other_head.forward_features(image), model.forward_features(image))
    assert torch.equal(other_head.head.fc.weight, head)

    encoder = SketchFusionEncoder.from_pretrained(tmp_path).eval()
    assert torch.equal(encoder(image), model.forward_features(image))

    wrong = timm.create_model(TINY, num_classes=5, changes={"random_seed": 3})
    with pytest.raises(CheckpointError, match="other foundations"):
        wrong.load_pretrained(tmp_path)


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_a_saved_folder_is_a_model_of_timm(tmp_path: Path, weights: str) -> None:
    options = {"pretrained": weights == "pretrained", "num_classes": 5, "in_chans": 1}
    changes = {"diffusion__timestep": 200, "injection__init": "official"}
    model = timm.create_model(TINY, **options, global_pool="max", changes=changes).eval()
    torch.nn.init.normal_(model.head.fc.weight)
    model.save_pretrained(tmp_path)
    image = torch.rand(1, 1, 64, 64) * 2 - 1

    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(image), model(image))
    told = resolve_model_data_config(again)
    assert (told["input_size"], *told["mean"]) == ((1, 128, 128), 0.5, 0.5, 0.5)

    other_head = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=9).eval()
    assert other_head(image).shape == (1, 9)
    assert torch.equal(other_head.forward_features(image), model.forward_features(image))
    fresh = timm.create_model(f"local-dir:{tmp_path}").eval()
    assert fresh.encoder.config.diffusion.timestep == 200
    assert not torch.equal(fresh.head.fc.weight, model.head.fc.weight)


def test_pretrained_cfg_may_name_adapters(
    tmp_path: Path, pipeline_folder: Path, clip_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {
        "pretrained": True,
        "diffusion": str(pipeline_folder),
        "semantic": str(clip_folder),
        "num_classes": 5,
        "changes": {"aggregation__out_channels": 64, "aggregation__norm_groups": 8},
    }
    with caplog.at_level(logging.WARNING):
        fresh = {"pretrained_cfg_overlay": {"file": None}}
        model = timm.create_model(TINY, **options, **fresh).eval()
    assert f"loaded foundations {pipeline_folder} and {clip_folder}" in caplog.text
    assert "injection, aggregation and head are fresh" in caplog.text
    torch.nn.init.normal_(model.encoder.aggregator.branch_logits)
    model.save_pretrained(tmp_path)
    overlay = {"file": str(tmp_path / "adapters.safetensors")}
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    again = timm.create_model(TINY, **options, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(again(image), model(image))
    del options["num_classes"]
    backbone = timm.create_model(
        TINY, **options, pretrained_cfg_overlay=overlay, features_only=True
    ).eval()
    levels = model.encoder.forward_levels(image).maps
    assert torch.equal(backbone(image)[1], levels[0])


def test_adapters_of_a_task_go_into_a_timm_model(tmp_path: Path) -> None:
    encoder = SketchFusionEncoder.from_pretrained("sketchfusion/tiny", diffusion__timestep=200)
    torch.nn.init.normal_(encoder.aggregator.branch_logits)  # type: ignore[union-attr,arg-type]
    build_task("correspondence", encoder).save_pretrained(tmp_path)
    overlay = {"file": str(tmp_path)}
    model = timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(model.forward_features(image), encoder.eval()(image))


@pytest.mark.parametrize("kind", ["encoder", "task", "compiled"])
def test_a_folder_of_an_encoder_is_a_model_of_timm(kind: str, tmp_path: Path) -> None:
    encoder = SketchFusionEncoder.from_pretrained(
        "sketchfusion/tiny", diffusion__timestep=200, in_channels=1
    ).eval()
    torch.nn.init.normal_(encoder.aggregator.branch_logits)  # type: ignore[union-attr,arg-type]
    side = 128
    if kind == "encoder":
        encoder.save_pretrained(tmp_path)
    elif kind == "task":
        task = build_task("retrieval", encoder)
        task.image_size = side = 72
        task.save_pretrained(tmp_path)
    else:
        save_adapters(torch.compile(encoder, backend="eager"), tmp_path)  # type: ignore[arg-type]
    image = torch.rand(1, 1, 64, 48) * 2 - 1
    name = f"local-dir:{tmp_path}"
    with torch.no_grad():
        expected = SketchFusionEncoder.from_pretrained(tmp_path).eval()(image)
        model = timm.create_model(name, pretrained=True).eval()
        assert torch.equal(model.forward_features(image), expected)
        torch.testing.assert_close(model(image), expected.mean((2, 3)))
        backbone = timm.create_model(name, pretrained=True, features_only=True).eval()
        assert torch.equal(backbone(image)[1], encoder.forward_levels(image).maps[0])
        classifier = timm.create_model(name, pretrained=True, num_classes=7).eval()
        assert classifier(image).shape == (1, 7)
        assert torch.equal(classifier.forward_features(image), expected)
    told = resolve_model_data_config(model)
    assert (told["input_size"], *told["mean"]) == ((1, side, side), 0.5, 0.5, 0.5)
    assert (told["crop_pct"], told["crop_mode"]) == (1.0, "squash")
    # What timm makes of it goes on as its own.
    classifier.save_pretrained(tmp_path / "again")
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(image), classifier(image))


@pytest.mark.parametrize(
    ("preset_name", "architecture", "side"),
    [
        ("paper", "sketchfusion_base", 336),
        ("small", "sketchfusion_small", 256),
        ("tiny", "sketchfusion_tiny", 128),
    ],
)
def test_folders_say_which_model_of_timm_they_are(
    preset_name: str, architecture: str, side: int, build: Any, tmp_path: Path
) -> None:
    encoder = build()
    source = preset(preset_name).diffusion.source
    encoder.config = encoder.config.replace(diffusion__source=source)
    encoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == architecture
    own = timm.get_pretrained_cfg(architecture).to_dict()
    told = config["pretrained_cfg"]
    assert told["input_size"] == [3, side, side] == list(own["input_size"])
    assert all(list(own[k]) == v for k, v in told.items() if isinstance(v, list))
    assert all(own[k] == v for k, v in told.items() if not isinstance(v, list))


@pytest.mark.parametrize(
    ("name", "semantic", "kind"),
    [
        (TINY, "openai/clip-vit-base-patch16", "clip"),
        ("sketchfusion_base", "vit_base_patch14_dinov2.lvd142m", "timm"),
    ],
)
def test_a_semantic_branch_of_the_other_kind(name: str, semantic: str, kind: str) -> None:
    with torch.device("meta"):
        built = timm.create_model(name, semantic=semantic).encoder
        assert (built.config.semantic.source, built.config.semantic.kind) == (semantic, kind)
        # As the preset has it.
        assert built.config.semantic.final_norm == (name == TINY)
        assert built.semantic.channels == 768
        with pytest.raises(ValueError, match="kind must be one of"):
            timm.create_model(name, semantic=semantic, changes={"semantic__kind": "jpeg"})


def test_cleandift_from_local_files(
    pipeline_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    options = {"pretrained": True, "diffusion": str(pipeline_folder), "semantic": str(clip_folder)}
    name = "sketchfusion_base.cleandift"
    with pytest.raises(OSError, match=r"diffusion__unet_file.*cleandift_sd21_unet\.safetensors"):
        timm.create_model(name, **options)
    path = tmp_path / "cleandift_sd21_unet.safetensors"
    shutil.copyfile(pipeline_folder / "unet/diffusion_pytorch_model.safetensors", path)
    model = timm.create_model(name, **options, changes={"diffusion__unet_file": str(path)})
    assert model.encoder.config.diffusion.unet_file == str(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"features_only": True}, True),
        ({"config": preset("tiny").replace(diffusion__timestep=50)}, True),
        ({"pretrained": True}, False),
        ({"weights": "pretrained"}, False),
        ({"freeze_foundations": False}, False),
    ],
)
def test_random_frozen_foundations_are_told(
    options: dict[str, Any], expected: bool, caplog: pytest.LogCaptureFixture
) -> None:
    timm.create_model(TINY, **options)
    told = [text for text in caplog.messages if "foundations are random and frozen" in text]
    assert len(told) == expected


def test_foundations_without_values_are_not_called_random(
    caplog: pytest.LogCaptureFixture,
) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    with torch.device("meta"):
        timm.create_model(TINY)
    # It looks at a model on that device first.
    smp.Unet(f"tu-{TINY}", encoder_weights=True, classes=2)
    assert "random and frozen" not in caplog.text


@pytest.mark.parametrize("asked", ["hook", "list", "dict", "FX", FeatureListNet])
def test_other_ways_to_features_are_refused(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm_adapters.variants.build_model_with_cfg", None)
    with pytest.raises(ValueError, match=r"feature_cls must be 'getter'.*Leave feature_cls out"):
        timm.create_model(TINY, pretrained=True, features_only=True, feature_cls=asked)


@pytest.mark.parametrize("asked", ["getter", "Getter", FeatureGetterNet])
def test_the_one_way_to_features_may_be_named(asked: Any) -> None:
    backbone = timm.create_model(TINY, features_only=True, feature_cls=asked, out_indices=(1, 3))
    assert backbone.feature_info.reduction() == [8, 32]


def test_where_foundations_are_kept(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    timm.create_model(TINY, cache_dir=tmp_path)
    assert "HF_HOME" not in caplog.text
    timm.create_model(TINY, pretrained=True, cache_dir=tmp_path)
    assert f"cache_dir={tmp_path}" in caplog.text
    assert f"go to {huggingface_hub.constants.HF_HUB_CACHE}" in caplog.text


def test_pyramid_is_not_a_timm_model() -> None:
    with pytest.raises(ValueError, match="aggregation to one map"):
        timm.create_model(TINY, changes={"aggregation__stride": (8, 16)})


def test_version_is_the_distribution_version() -> None:
    from importlib.metadata import version

    assert version("sketchfusion-plugins") == sketchfusion_plugins.__version__


@pytest.mark.parametrize("adapted", [False, True])
def test_an_export_of_timm_is_a_model(adapted: bool, tmp_path: Path) -> None:
    changes = {"diffusion__timestep": 200}
    model = timm.create_model(TINY, pretrained=True, num_classes=5, in_chans=1, changes=changes)
    torch.nn.init.normal_(model.head.fc.weight)
    if adapted:
        # Then the configuration is the adapters', not one that the caller gave.
        model.save_pretrained(tmp_path / "adapters")
        model = timm.create_model(f"local-dir:{tmp_path / 'adapters'}", pretrained=True)
    folder = tmp_path / "exported"
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    image = torch.rand(1, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        expected = model.eval()(image)
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(again(image), expected)
        backbone = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True)
        levels = model.encoder.forward_levels(image).maps
        assert torch.equal(backbone.eval()(image)[1], levels[0])
        other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=2).eval()
        assert torch.equal(other.forward_features(image), model.forward_features(image))
        fresh = timm.create_model(f"local-dir:{folder}")
        assert fresh.encoder.config.diffusion.timestep == 200
        assert not torch.equal(fresh.head.fc.weight, model.head.fc.weight)
        # What was loaded from an export goes on as adapters.
        again.save_pretrained(tmp_path / "again")
        last = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
        assert torch.equal(last(image), expected)


def test_a_hub_repository_that_timm_pushed_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model(TINY, pretrained=True, num_classes=5).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)

    def fetch(repo_id: str, filename: str, **options: Any) -> str:
        assert repo_id == "someone/mine"
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    again = timm.create_model("hf-hub:someone/mine", pretrained=True).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(again(image), model(image))
    assert "loaded the whole state dict of someone/mine over them." in caplog.text


def test_a_hub_repository_of_an_encoder_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = SketchFusionEncoder.from_pretrained("sketchfusion/tiny", diffusion__timestep=200)
    encoder.eval().save_pretrained(tmp_path)

    def fetch(repo_id: str, filename: str, **options: Any) -> str:
        assert repo_id == "someone/mine"
        return str(tmp_path / filename)

    for place in ("timm.models._hub", "huggingface_hub"):
        monkeypatch.setattr(f"{place}.hf_hub_download", fetch)
    model = timm.create_model("hf-hub:someone/mine", pretrained=True).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model.forward_features(image), encoder(image))


@pytest.mark.parametrize("adapted", [False, True])
def test_a_folder_without_weights_is_told_at_once(
    adapted: bool, tmp_path: Path, tiny: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a relative path of two parts it looks like a Hugging Face id.
    monkeypatch.chdir(tmp_path)
    if adapted:
        tiny.save_pretrained("made")
        Path("made", WEIGHTS_FILE).unlink()
        held = r"which holds config\.json"
    else:
        timm.models.save_for_hf(tiny, "made")
        held = r"which holds config\.json, pytorch_model\.bin.*safe_serialization=True.*checkpoint"
        model = timm.create_model("local-dir:made", checkpoint_path="made/pytorch_model.bin")
        assert torch.equal(model.head.fc.weight, tiny.head.fc.weight)
    with pytest.raises(OSError, match=rf"expected adapters\.safetensors.* in .*made, {held}"):
        timm.create_model("local-dir:made", pretrained=True)


@pytest.mark.parametrize("name", ["whole.pth", "whole.safetensors"])
def test_a_state_dict_as_file_is_told_where_it_goes(
    name: str, tmp_path: Path, tiny: torch.nn.Module
) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(tiny.state_dict(), path)
    else:
        save_file(tiny.state_dict(), path)
    options = {"pretrained": True, "num_classes": 5}
    with pytest.raises(CheckpointError, match="whole state dict, give it as checkpoint_path="):
        timm.create_model(TINY, **options, pretrained_cfg_overlay={"file": str(path)})
    model = timm.create_model(TINY, **options, checkpoint_path=path)
    assert torch.equal(model.head.fc.weight, tiny.head.fc.weight)


def test_training_on_one_image_is_told() -> None:
    model = timm.create_model(TINY, num_classes=3)
    image = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"at least two images, got 1\. Drop the last batch"):
        model(image)
    assert model.eval()(image).shape == (1, 3)
    # Over several processes, one image on each is enough.
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.head)
    assert isinstance(synchronised.norm, torch.nn.SyncBatchNorm)
    assert timm.create_model(TINY, num_classes=0)(image).shape == (1, 192)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "loaded adapters sketchfusion/tiny; a head is fresh."),
        ({"num_classes": 0}, "loaded adapters sketchfusion/tiny."),
        ({"features_only": True}, "loaded adapters sketchfusion/tiny."),
        ({"changes": {"injection__sites": ("up0",)}}, "and head are fresh, because "),
        (
            {"pretrained_cfg_overlay": {"file": None}},
            "injection, aggregation and head are fresh.",
        ),
        (
            {"pretrained_cfg_overlay": {"file": None}, "num_classes": 0},
            "injection and aggregation are fresh.",
        ),
        (
            {"pretrained_cfg_overlay": {"file": None}, "features_only": True},
            "injection is fresh.",
        ),
    ],
)
def test_what_is_fresh_is_told(
    options: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    timm.create_model(TINY, pretrained=True, **options)
    assert told in caplog.text


def test_a_head_that_a_folder_has_is_not_called_fresh(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timm.create_model(TINY, num_classes=5).save_pretrained(tmp_path)
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert f"loaded adapters {tmp_path}." in caplog.text
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=6)
    assert f"loaded adapters {tmp_path}; a head is fresh." in caplog.text
    # timm's own export too.
    model = timm.create_model(TINY, num_classes=5)
    timm.models.save_for_hf(model, tmp_path / "export", safe_serialization=True)
    for classes, told in ((5, "over them."), (6, "over them; a head is fresh.")):
        caplog.clear()
        timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True, num_classes=classes)
        assert f"loaded the whole state dict of {tmp_path / 'export'} {told}" in caplog.text


@pytest.mark.parametrize("wrapping", [ModelEmaV2, ModelEmaV3])
def test_averages_of_timm_are_seen_through(wrapping: Any, tmp_path: Path) -> None:
    task = build_task("retrieval", SketchFusionEncoder.from_pretrained("sketchfusion/tiny"))
    save_adapters(wrapping(task), tmp_path)
    loaded = load_task(tmp_path)
    assert type(loaded) is type(task)
    expected = adapter_state(task)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in adapter_state(loaded).items())
    model = timm.create_model(TINY, num_classes=5)
    save_adapters(wrapping(model), tmp_path / "classifier")
    again = timm.create_model(f"local-dir:{tmp_path / 'classifier'}", pretrained=True)
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)


@pytest.mark.parametrize("thawed", [False, True])
def test_batch_norms_that_timm_freezes_are_the_same_foundations(
    thawed: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = timm.create_model(TINY, pretrained=True, num_classes=5).eval()
    freeze(model, ["encoder"])
    assert any(isinstance(module, FrozenBatchNormAct2d) for module in model.modules())
    if thawed:
        # timm builds batch norms anew, which are in training mode then.
        unfreeze(model, ["encoder"])
        model.eval()
    model.save_pretrained(tmp_path)
    assert not recwarn.list
    assert (tmp_path / WEIGHTS_FILE).stat().st_size < 2e6, "adapters alone"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image))
    assert load_adapters(model, tmp_path) == []


def test_adapters_of_a_backbone_say_where_they_go(tmp_path: Path) -> None:
    torch.manual_seed(2)
    changes = {"injection__init": "official"}
    backbone = timm.create_model(TINY, features_only=True, changes=changes).eval()
    save_adapters(backbone, tmp_path)
    assert "architecture" not in json.loads((tmp_path / "config.json").read_text())
    overlay = {"file": str(tmp_path / WEIGHTS_FILE)}
    with pytest.raises(ValueError, match=r"as features_only=True .*load_adapters\(model"):
        timm.create_model(TINY, pretrained=True, features_only=True, pretrained_cfg_overlay=overlay)
    again = timm.create_model(TINY, features_only=True, changes=changes).eval()
    assert load_adapters(again, tmp_path) == []
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        for got, expected in zip(again(image), backbone(image), strict=True):
            assert torch.equal(got, expected)


def test_a_given_state_dict_is_told(
    tiny: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overlay = {"state_dict": tiny.state_dict(), "num_classes": 5}
    model = timm.create_model(TINY, pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.fc.weight, tiny.head.fc.weight)
    assert "loaded the given state dict over them." in caplog.text
    assert "sketchfusion/tiny;" not in caplog.text
    model.save_pretrained(tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again(image), model.eval()(image))


def test_features_by_fx_and_exported_programs(tiny: torch.nn.Module) -> None:
    from timm.models._features_fx import create_feature_extractor

    image = torch.rand(2, 3, 64, 64) * 2 - 1
    batch = {0: torch.export.Dim("batch", max=63)}
    program = torch.export.export(tiny, (image,), dynamic_shapes=(batch,)).module()
    with torch.no_grad():
        for images in (image, torch.cat([image, image.flip(3)])):
            assert torch.equal(program(images), tiny(images))
        extractor = create_feature_extractor(tiny, {"head.norm": "normalised"}).eval()
        pooled = tiny.forward_head(tiny.forward_features(image), pre_logits=True)
        assert torch.equal(extractor(image)["normalised"], tiny.head.norm(pooled))
    with pytest.raises(TypeError, match="got Proxy"):
        torch.fx.symbolic_trace(tiny)
