"""Adapters on disk: exact, small, and loud about everything that does not fit."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import pytest
import safetensors.torch
import torch
from diffusers.models.attention_processor import Attention
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from sketchfusion_plugins import CheckpointError, SketchFusionEncoder, preset
from sketchfusion_plugins.adapter_file import CONFIG_FILE, WEIGHTS_FILE, locate, read_config
from sketchfusion_plugins.checkpoint import (
    adapter_state,
    fingerprint,
    load_adapters,
    save_adapters,
    writes_foundations,
)
from sketchfusion_plugins.config import EncoderConfig


class Classifier(nn.Module):
    """A model around an encoder, with a head."""

    def __init__(self, encoder: SketchFusionEncoder, classes: int = 3) -> None:
        super().__init__()
        self.backbone = encoder
        self.head = nn.Linear(64, classes)
        self.register_buffer("temperature", torch.ones(1))


@pytest.fixture
def saved(build: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    build(seed=1).save_pretrained(folder)
    return folder


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _assert_same(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _describe(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        description: dict[str, Any] = json.loads(file.metadata()["sketchfusion"])
    return description


def _redescribe(folder: Path, **changes: Any) -> None:
    path = folder / WEIGHTS_FILE
    description = {**_describe(path), **changes}
    state = load_file(path)
    save_file(state, path, {"sketchfusion": json.dumps(description)})


# --- what is written ---------------------------------------------------------------------------


def test_only_adapters_are_written(build: Any, tmp_path: Path) -> None:
    encoder = build()
    encoder.save_pretrained(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert _names(folder) == [WEIGHTS_FILE, CONFIG_FILE]
    state = load_file(folder / WEIGHTS_FILE)
    trainable = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert set(state) == trainable
    assert all(name.startswith(("injector.", "aggregator.")) for name in state)
    whole = encoder.state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())


def test_adapters_of_the_paper_are_small() -> None:
    """The released code saves nothing; a whole state dict would be 4.8 GB."""
    with torch.device("meta"):
        encoder = SketchFusionEncoder(preset("paper").replace(weights="random"))
    size = sum(tensor.numel() * tensor.element_size() for tensor in adapter_state(encoder).values())
    assert 4 * (6_888_000 + 5_850_880) <= size < 60e6
    whole = sum(tensor.numel() * tensor.element_size() for tensor in encoder.state_dict().values())
    assert whole > 4e9


def test_a_model_without_values_is_not_saved(tmp_path: Path) -> None:
    with torch.device("meta"):
        encoder = SketchFusionEncoder(preset("tiny").replace(weights="random"))
    with pytest.raises(ValueError, match=r"on the meta device and have no values yet\. Fill them"):
        encoder.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_both_files_describe_the_same(saved: Path, build: Any) -> None:
    description = json.loads((saved / CONFIG_FILE).read_text())
    for name in ("architecture", "num_classes", "model_args", "pretrained_cfg"):
        del description[name]  # timm's
    assert description == _describe(saved / WEIGHTS_FILE)
    encoder = build()
    assert EncoderConfig.from_dict(description["config"]) == encoder.config == read_config(saved)
    foundations = description["foundations"]
    assert foundations["diffusion"] == encoder.config.diffusion.source
    assert foundations["semantic"] == encoder.config.semantic.source
    assert foundations["fingerprint"] == fingerprint(encoder)


def test_unfrozen_foundations_are_written_too(build: Any, tmp_path: Path) -> None:
    encoder = build(freeze_foundations=False)
    with torch.no_grad():
        for parameter in encoder.diffusion.parameters():
            parameter += 0.1
    encoder.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / WEIGHTS_FILE)) == set(encoder.state_dict())
    _assert_same(SketchFusionEncoder.from_pretrained(tmp_path), _snapshot(encoder))


def test_weights_given_to_an_empty_model_are_written_too(build: Any, tmp_path: Path) -> None:
    """As large models are loaded: built on the meta device, then filled."""
    config = build().config.replace(weights="random")
    filled = SketchFusionEncoder(config).eval()
    with torch.no_grad():
        for parameter in filled.diffusion.parameters():
            parameter += 0.1
    with torch.device("meta"):
        encoder = SketchFusionEncoder(config).eval()
    encoder.load_state_dict(filled.state_dict(), assign=True)
    assert writes_foundations(encoder)
    encoder.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / WEIGHTS_FILE)) == set(encoder.state_dict())
    _assert_same(SketchFusionEncoder.from_pretrained(tmp_path), _snapshot(filled))
    # The seed's own weights need no file.
    assert not writes_foundations(SketchFusionEncoder(config))


def test_adapters_may_start_the_training_of_the_foundations(build: Any, tmp_path: Path) -> None:
    frozen = build()
    torch.nn.init.normal_(frozen.aggregator.branch_logits)
    frozen.save_pretrained(tmp_path)
    thawed = SketchFusionEncoder.from_pretrained(tmp_path, freeze_foundations=False)
    assert torch.equal(thawed.aggregator.branch_logits, frozen.aggregator.branch_logits)
    assert all(parameter.requires_grad for parameter in thawed.diffusion.parameters())


def test_other_files_of_the_folder_stay(build: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    build().save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert _names(tmp_path) == [WEIGHTS_FILE, CONFIG_FILE, "notes.txt"]


# --- round trips -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"aggregation__stride": (8, 32), "injection__sites": ("mid", "up0")},
        {"aggregation": None, "taps": ("up1", "mid")},
        {"semantic__kind": "timm", "semantic__source": "test_vit", "weights": "random"},
    ],
)
@torch.no_grad()
def test_round_trip(changes: dict[str, Any], build: Any, tmp_path: Path, sketches: Any) -> None:
    encoder = build(seed=1, **changes)
    encoder.save_pretrained(tmp_path)
    again = SketchFusionEncoder.from_pretrained(tmp_path).eval()
    assert again.config == encoder.config
    _assert_same(again, _snapshot(encoder))
    image = sketches(1)
    got, expected = again.forward_levels(image), encoder.forward_levels(image)
    for level, values in zip(got.maps, expected.maps, strict=True):
        # Sums round as memory is aligned, which differs between loaded and copied foundations.
        torch.testing.assert_close(level, values, atol=1e-4, rtol=1e-4)


def test_after_set_taps(build: Any, tmp_path: Path) -> None:
    encoder = build()
    encoder.set_taps(("up0", "mid"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.save_pretrained(tmp_path)
    # What was cut away is no foundation that was replaced.
    assert not any("diffusion." in name for name in load_file(tmp_path / WEIGHTS_FILE))
    again = SketchFusionEncoder.from_pretrained(tmp_path)
    assert again.config == encoder.config
    assert set(again.state_dict()) == set(encoder.state_dict())


def test_lora_goes_with_what_is_cut_away(build: Any, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.base_layer = inside

    encoder = build()
    late = encoder.diffusion.denoiser.unet.up_blocks[-1].resnets[0]
    late.conv1 = Wrapped(late.conv1)
    encoder.set_taps(("up0",))
    encoder.save_pretrained(tmp_path)
    assert not any("diffusion." in name for name in load_file(tmp_path / WEIGHTS_FILE))


def test_replaced_foundations_are_written_after_set_taps_too(build: Any, tmp_path: Path) -> None:
    encoder = build()
    with torch.no_grad():
        encoder.diffusion.vae.encoder.conv_in.weight += 1
    encoder.set_taps(("up0",))
    with pytest.warns(UserWarning, match="others were loaded"):
        encoder.save_pretrained(tmp_path)
    assert any("diffusion." in name for name in load_file(tmp_path / WEIGHTS_FILE))


def test_checkpoints_load_ready_for_inference(build: Any, tmp_path: Path, sketches: Any) -> None:
    build(aggregation__dropout=0.5).save_pretrained(tmp_path)
    encoder, image = SketchFusionEncoder.from_pretrained(tmp_path), sketches(1)
    assert not any(module.training for module in encoder.modules())
    assert torch.equal(encoder(image), encoder(image))


@pytest.mark.parametrize("as_file", [False, True])
def test_load_into_an_existing_module(as_file: bool, saved: Path, build: Any) -> None:
    encoder = build(seed=2)
    before = encoder.state_dict()
    expected = _snapshot(build(seed=1))
    assert not torch.equal(
        before["injector.projections.up0.weight"], expected["injector.projections.up0.weight"]
    )
    source = saved / WEIGHTS_FILE if as_file else saved
    assert load_adapters(encoder, source) == []
    _assert_same(encoder, expected)
    assert load_adapters(encoder, str(source)) == []


def test_readable_file_does_not_count(saved: Path, build: Any) -> None:
    """A crash between the two writes leaves an old one beside a new safetensors file."""
    (saved / CONFIG_FILE).write_text("{}")
    assert read_config(saved) == build().config
    load_adapters(build(), saved)


def test_changes_on_loading(saved: Path, build: Any) -> None:
    again = SketchFusionEncoder.from_pretrained(
        saved, foundation_dtype="bfloat16", diffusion__ensemble=4
    )
    assert again.config.diffusion.ensemble == 4
    assert next(again.diffusion.parameters()).dtype == torch.bfloat16
    expected = adapter_state(build(seed=1))
    assert all(torch.equal(t, expected[name]) for name, t in adapter_state(again).items())


def test_moved_foundations(saved: Path, build: Any, pipeline_folder: Path, tmp_path: Path) -> None:
    """Foundations are known by their values, wherever they lie."""
    copy = shutil.copytree(pipeline_folder, tmp_path / "elsewhere")
    again = SketchFusionEncoder.from_pretrained(saved, diffusion__source=str(copy))
    expected = adapter_state(build(seed=1))
    assert all(torch.equal(t, expected[name]) for name, t in adapter_state(again).items())


def test_module_around_an_encoder(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = Classifier(build(seed=1)), Classifier(build(seed=2))
    save_adapters(model, tmp_path)
    names = set(load_file(tmp_path / WEIGHTS_FILE))
    assert {"head.weight", "head.bias", "temperature"} < names
    assert not any("diffusion" in name or "semantic" in name for name in names)
    assert load_adapters(other, tmp_path) == []
    _assert_same(other, _snapshot(model))


def test_encoder_out_of_a_larger_module(build: Any, tmp_path: Path) -> None:
    model = Classifier(build(seed=1))
    save_adapters(model, tmp_path)
    encoder = SketchFusionEncoder.from_pretrained(tmp_path)
    _assert_same(encoder, _snapshot(model.backbone))


def test_other_number_of_classes(build: Any, tmp_path: Path) -> None:
    model, other = Classifier(build(seed=1)), Classifier(build(seed=2), classes=7)
    save_adapters(model, tmp_path)
    before = _snapshot(other)
    with pytest.raises(CheckpointError, match=r"head\.bias is \[3\], expected \[7\]"):
        load_adapters(other, tmp_path)
    _assert_same(other, before)
    left = load_adapters(other, tmp_path, strict=False)
    assert left == ["head.bias", "head.weight"]
    assert torch.equal(other.head.weight, before["head.weight"])
    _assert_same(other.backbone, _snapshot(model.backbone))


def test_encoder_into_a_larger_module(saved: Path, build: Any) -> None:
    model = Classifier(build(seed=2))
    left = load_adapters(model, saved, strict=False)
    assert left == ["head.bias", "head.weight", "temperature"]
    _assert_same(model.backbone, _snapshot(build(seed=1)))


# --- compiled and wrapped ----------------------------------------------------------------------


def _compile(module: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.compile(module, backend="eager")
    return compiled


def _compile_inside(module: Any) -> nn.Module:
    module.head = _compile(module.head)
    module.backbone.aggregator = _compile(module.backbone.aggregator)
    module.backbone.diffusion.denoiser.unet = _compile(module.backbone.diffusion.denoiser.unet)
    module.backbone = _compile(module.backbone)
    return cast(nn.Module, module)


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": _compile,
    "compiled inside": _compile_inside,
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "compiled DistributedDataParallel": lambda module: _compile(DistributedDataParallel(module)),
    "DistributedDataParallel of a compiled": lambda module: DistributedDataParallel(
        _compile(module)
    ),
    "averaged": AveragedModel,
}


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    method = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=method, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_leave_no_trace(wrapping: str, build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, fresh = Classifier(build(seed=1)), Classifier(build(seed=2))
    expected = _snapshot(plain)
    save_adapters(plain, tmp_path / "plain")
    wrapped = WRAPPINGS[wrapping](deepcopy(plain))
    save_adapters(wrapped, tmp_path / "wrapped")
    assert _describe(tmp_path / "wrapped" / WEIGHTS_FILE) == _describe(
        tmp_path / "plain" / WEIGHTS_FILE
    )
    assert set(adapter_state(wrapped)) == set(adapter_state(plain))
    assert load_adapters(fresh, tmp_path / "wrapped") == []
    _assert_same(fresh, expected)
    _assert_same(
        SketchFusionEncoder.from_pretrained(tmp_path / "wrapped"), _snapshot(plain.backbone)
    )
    # And the other way round.
    for strict in (True, False):
        other = WRAPPINGS[wrapping](Classifier(build(seed=2)))
        assert load_adapters(other, tmp_path / "plain", strict=strict) == []
        got = adapter_state(other)
        assert all(torch.equal(tensor, got[n]) for n, tensor in adapter_state(plain).items())


@pytest.mark.usefixtures("one_process")
def test_what_is_spread_over_processes_is_refused(build: Any, tmp_path: Path) -> None:
    model = Classifier(build())
    fully_shard(model.backbone.aggregator, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(CheckpointError, match=r"spread over processes .*full_state_dict=True"):
        save_adapters(model, tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize("outer", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("strict", [True, False])
def test_files_that_name_their_wrappers_load(
    outer: str, strict: bool, build: Any, tmp_path: Path
) -> None:
    """As versions before wrote them."""
    model, other = Classifier(build(seed=1)), Classifier(build(seed=2))
    save_adapters(model, tmp_path)
    path = tmp_path / WEIGHTS_FILE
    description = {**_describe(path), "prefix": f"{outer}backbone."}
    state = {f"{outer}{name}": tensor for name, tensor in load_file(path).items()}
    save_file(state, path, {"sketchfusion": json.dumps(description)})
    assert load_adapters(other, path, strict=strict) == []
    _assert_same(other, _snapshot(model))
    _assert_same(SketchFusionEncoder.from_pretrained(path), _snapshot(model.backbone))


def test_a_part_of_ones_own_that_is_called_module(build: Any, tmp_path: Path) -> None:
    class Mine(nn.Module):
        def __init__(self, encoder: SketchFusionEncoder) -> None:
            super().__init__()
            self.module = encoder

    model, other = Mine(build(seed=1)), Mine(build(seed=2))
    save_adapters(model, tmp_path)
    assert load_adapters(other, tmp_path) == []
    _assert_same(other, _snapshot(model))
    _assert_same(SketchFusionEncoder.from_pretrained(tmp_path), _snapshot(model.module))


# --- foundations -------------------------------------------------------------------------------


def test_fingerprint_does_not_depend_on_precision(build: Any) -> None:
    expected = fingerprint(build())
    assert fingerprint(build(foundation_dtype="bfloat16")) == expected
    assert fingerprint(build(seed=9)) == expected
    assert fingerprint(build().to(torch.bfloat16)) == expected
    assert fingerprint(build().double()) == expected


CASTS = {
    "half": lambda encoder: encoder.half(),
    "half and back": lambda encoder: encoder.half().float(),
    "bfloat16, then half": lambda encoder: encoder.bfloat16().half(),
    "UNet alone": lambda encoder: (encoder, encoder.diffusion.denoiser.half())[0],
    "copied": lambda encoder: deepcopy(encoder.half()),
}


@pytest.fixture
def subtle(config: EncoderConfig, pipeline_copy: Path, make_unet: Any) -> EncoderConfig:
    """Foundations with weights that bfloat16 and float16 round apart, and that float16 loses."""
    unet = make_unet()
    with torch.no_grad():
        weight = unet.conv_in.weight
        weight.copy_(torch.linspace(1e-9, 1e-5, weight.numel()).view_as(weight))
        # Rounds up in one step to bfloat16, and to even in two over float16.
        unet.conv_in.bias.fill_(1 + 2**-8 + 2**-13)
    unet.save_pretrained(pipeline_copy / "unet")
    return config.replace(diffusion__source=str(pipeline_copy))


@pytest.mark.parametrize("cast", CASTS)
def test_checkpoints_of_every_precision_load(
    cast: str, subtle: EncoderConfig, tmp_path: Path
) -> None:
    encoder = SketchFusionEncoder(subtle)
    expected = fingerprint(encoder)
    before = encoder.diffusion.denoiser.unet.conv_in.weight.bfloat16()
    encoder = CASTS[cast](encoder)
    # The case is one: what is held now is rounded otherwise.
    assert not torch.equal(encoder.diffusion.denoiser.unet.conv_in.weight.bfloat16(), before)
    assert fingerprint(encoder) == expected
    encoder.save_pretrained(tmp_path / "half")
    again = SketchFusionEncoder.from_pretrained(tmp_path / "half")
    assert all(
        torch.equal(tensor, adapter_state(encoder)[name].float())
        for name, tensor in adapter_state(again).items()
    )
    # And one that was saved in full precision goes onto a model in half.
    again.save_pretrained(tmp_path / "full")
    assert load_adapters(encoder, tmp_path / "full") == []


def test_other_weights_in_half_precision_are_told_apart(subtle: EncoderConfig) -> None:
    encoder = SketchFusionEncoder(subtle)
    expected = fingerprint(encoder)
    encoder.half()
    with torch.no_grad():
        encoder.diffusion.denoiser.unet.conv_in.bias += 0.5
    assert fingerprint(encoder) != expected


def test_unfrozen_foundations_are_what_they_are(subtle: EncoderConfig, tmp_path: Path) -> None:
    encoder = SketchFusionEncoder(subtle.replace(freeze_foundations=False))
    expected = fingerprint(encoder)
    assert fingerprint(SketchFusionEncoder(subtle)) == expected
    encoder.half().save_pretrained(tmp_path)
    assert fingerprint(encoder) != expected
    again = SketchFusionEncoder.from_pretrained(tmp_path)
    _assert_same(again.half(), _snapshot(encoder))


def _trained_foundations(build: Any, folder: Path) -> SketchFusionEncoder:
    encoder: SketchFusionEncoder = build(freeze_foundations=False, seed=1)
    with torch.no_grad():
        for parameter in encoder.diffusion.parameters():
            parameter += 0.1
    encoder.save_pretrained(folder)
    return encoder


def test_trained_foundations_go_on_with_what_is_trained_on_them(build: Any, tmp_path: Path) -> None:
    trained = _trained_foundations(build, tmp_path / "trained")
    model = Classifier(
        SketchFusionEncoder.from_pretrained(tmp_path / "trained", freeze_foundations=True)
    )
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        assert not any(p.requires_grad for p in model.backbone.diffusion.parameters())
        save_adapters(model, folder)
        again = Classifier(SketchFusionEncoder.from_pretrained(folder))
        assert load_adapters(again, folder) == []
        assert again.backbone.config.freeze_foundations
        _assert_same(again, _snapshot(model))
        for name, tensor in trained.diffusion.state_dict().items():
            assert torch.equal(again.backbone.diffusion.state_dict()[name], tensor)
        model = again


def test_what_is_added_to_frozen_foundations_is_written(build: Any, tmp_path: Path) -> None:
    def build_with_lora(value: float) -> SketchFusionEncoder:
        encoder: SketchFusionEncoder = build()
        layer = encoder.diffusion.denoiser.unet.conv_in
        layer.register_parameter("lora_A", torch.nn.Parameter(torch.full((4,), value)))
        return encoder

    with pytest.warns(UserWarning, match=r"put into it, so .* LoRA, has to be added again"):
        build_with_lora(0.5).save_pretrained(tmp_path)
    again = build_with_lora(0.0)
    assert load_adapters(again, tmp_path) == []
    assert again.diffusion.denoiser.unet.conv_in.lora_A.tolist() == [0.5] * 4
    with pytest.raises(CheckpointError, match=r"unexpected .*lora_A.*One has LoRA and the other"):
        SketchFusionEncoder.from_pretrained(tmp_path)


def test_what_was_added_and_taken_away_again_is_not_written(build: Any, tmp_path: Path) -> None:
    encoder: SketchFusionEncoder = build()
    layer = encoder.diffusion.denoiser.unet.conv_in
    layer.register_parameter("lora_A", torch.nn.Parameter(torch.ones(4)))
    for _ in range(2):
        with pytest.warns(UserWarning, match="put into it"):
            encoder.save_pretrained(tmp_path / "with")
    del layer.lora_A
    encoder.save_pretrained(tmp_path / "without")
    names = load_file(tmp_path / "without" / WEIGHTS_FILE)
    assert names and not any(name.startswith(("diffusion.", "semantic.")) for name in names)


def test_what_is_taken_from_frozen_foundations_is_noticed(build: Any, tmp_path: Path) -> None:
    def build_without_bias() -> SketchFusionEncoder:
        encoder: SketchFusionEncoder = build()
        encoder.diffusion.denoiser.unet.conv_in.bias = None
        return encoder

    with pytest.warns(UserWarning, match=r"put into it, so .* holds them too"):
        build_without_bias().save_pretrained(tmp_path)
    again = build_without_bias()
    assert load_adapters(again, tmp_path) == []
    with pytest.raises(CheckpointError, match=r"missing .*conv_in\.bias"):
        SketchFusionEncoder.from_pretrained(tmp_path)


def test_trained_foundations_in_half_precision(build: Any, tmp_path: Path) -> None:
    _trained_foundations(build, tmp_path)
    frozen = SketchFusionEncoder.from_pretrained(tmp_path, freeze_foundations=True)
    expected = fingerprint(frozen)
    assert fingerprint(frozen.half()) == expected
    assert expected != fingerprint(build())


def test_adapters_onto_trained_foundations_leave_them_written(build: Any, tmp_path: Path) -> None:
    trained = _trained_foundations(build, tmp_path / "trained")
    frozen = SketchFusionEncoder.from_pretrained(tmp_path / "trained", freeze_foundations=True)
    # As earlier versions saved it: without the foundations, which are the model's own.
    description = _describe_saved(frozen, tmp_path / "alone")
    assert description["foundations"]["fingerprint"] == fingerprint(trained)
    assert load_adapters(frozen, tmp_path / "alone") == []
    with pytest.raises(CheckpointError, match="other foundations"):
        load_adapters(build(), tmp_path / "alone")


def _describe_saved(encoder: SketchFusionEncoder, folder: Path) -> dict[str, Any]:
    encoder.save_pretrained(folder)
    path = folder / WEIGHTS_FILE
    description = _describe(path)
    save_file(adapter_state(encoder), path, {"sketchfusion": json.dumps(description)})
    return description


@pytest.mark.parametrize("part", ["diffusion.denoiser.unet.conv_in", "diffusion.vae.quant_conv"])
def test_fingerprint_tells_weights_apart(part: str, build: Any) -> None:
    encoder = build()
    before = fingerprint(encoder)
    with torch.no_grad():
        encoder.get_submodule(part).bias += 0.5
    assert fingerprint(encoder) != before


def test_fingerprint_does_not_depend_on_the_default_device(build: Any) -> None:
    encoder = build()
    expected = fingerprint(encoder)
    with torch.device("meta"):
        assert fingerprint(encoder) == expected


def test_fingerprint_covers_the_semantic_branch(build: Any) -> None:
    encoder = build()
    before = fingerprint(encoder)
    with torch.no_grad():
        encoder.semantic.model.embeddings.class_embedding += 0.5
    assert fingerprint(encoder) != before


def _other_mean(encoder: SketchFusionEncoder) -> None:
    encoder.semantic.mean = (0.5, 0.5, 0.5)


def _other_latents(encoder: SketchFusionEncoder) -> None:
    encoder.diffusion.scaling_factor *= 1.4


def _other_prompt(encoder: SketchFusionEncoder) -> None:
    embedding = encoder.diffusion.denoiser.null_embedding
    embedding.copy_(embedding.flip(-1))


def _other_activation(encoder: SketchFusionEncoder) -> None:
    for layer in encoder.semantic.model.encoder.layers:
        layer.mlp.activation_fn = nn.GELU()


def _other_semantic_heads(encoder: SketchFusionEncoder) -> None:
    for layer in encoder.semantic.model.encoder.layers:
        attention = layer.self_attn
        attention.num_heads, attention.head_dim = 2 * attention.num_heads, attention.head_dim // 2


def _other_unet_heads(encoder: SketchFusionEncoder) -> None:
    for module in encoder.diffusion.denoiser.modules():
        if isinstance(module, Attention):
            module.heads *= 2


SETTINGS = {
    "mean": _other_mean,
    "semantic_heads": _other_semantic_heads,
    "unet_heads": _other_unet_heads,
    "latents": _other_latents,
    "null_prompt": _other_prompt,
    "activation": _other_activation,
}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", list(SETTINGS))
@torch.no_grad()
def test_same_weights_that_compute_otherwise_are_refused(
    name: str, frozen: bool, build: Any, sketches: Any, tmp_path: Path
) -> None:
    build(seed=1, freeze_foundations=frozen).save_pretrained(tmp_path)
    other = build(seed=2)
    load_adapters(other, tmp_path)
    before = other(sketches(1))
    SETTINGS[name](other)
    assert not torch.allclose(other(sketches(1)), before), "what is compared changes features"
    if name == "null_prompt" and not frozen:
        # A file that holds foundations holds the embedding too.
        load_adapters(other, tmp_path)
        torch.testing.assert_close(other(sketches(1)), before)
        return
    with pytest.raises(CheckpointError, match=f"compute otherwise.*Expected {name} .*, got "):
        load_adapters(other, tmp_path)


def test_statistics_of_latents_are_missed_on_either_side(build: Any, tmp_path: Path) -> None:
    plain, other = build(), build()
    other.diffusion.latents_mean, other.diffusion.latents_std = (0.5,) * 4, (2.0,) * 4
    for one, two in ((plain, other), (other, plain)):
        one.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"compute otherwise.*Expected latents_mean"):
            load_adapters(two, tmp_path)


def test_settings_forget_precision_and_may_be_missing(saved: Path, build: Any) -> None:
    # Another machine's text encoder, or one in bfloat16, gives almost the same embedding.
    almost = build(seed=2)
    embedding = almost.diffusion.denoiser.null_embedding
    embedding.mul_(1 + 0.02 * torch.randn(embedding.shape))
    for encoder in (
        almost,
        build(foundation_dtype="bfloat16"),
        build().half(),
        build().double(),
        build(diffusion__timestep=50),
    ):
        assert load_adapters(encoder, saved) == []
    foundations = _describe(saved / WEIGHTS_FILE)["foundations"]
    del foundations["settings"]
    _redescribe(saved, foundations=foundations)
    other = build(seed=2)
    _other_mean(other)
    assert load_adapters(other, saved) == [], "an earlier version did not write them"


def _with_activation(folder: Path, source: Path, name: str) -> dict[str, Any]:
    """Changes to an encoder's configuration that make a copy of a CLIP compute otherwise."""
    clip = Path(shutil.copytree(source, folder))
    architecture = json.loads((clip / "config.json").read_text())
    vision = architecture.get("vision_config", architecture)
    (clip / "config.json").write_text(json.dumps({**vision, "hidden_act": name}))
    return {"semantic__source": str(clip), "semantic__kind": "clip"}


def test_gelu_is_no_quick_gelu(build: Any, clip_folder: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("quick_gelu", "gelu", "gelu_new")}
    encoders = {
        name: build(**_with_activation(folder, clip_folder, name))
        for name, folder in folders.items()
    }
    assert len({fingerprint(encoder) for encoder in encoders.values()}) == 1
    saved = tmp_path / "saved"
    encoders["quick_gelu"].save_pretrained(saved)
    for name, shown in (("gelu", "gelu"), ("gelu_new", "gelu_tanh")):
        _refused(saved, encoders[name], f"Expected activation quick_gelu, got {shown}.*hidden_act")
    assert load_adapters(encoders["quick_gelu"].half(), saved) == []
    # Checkpoints of versions that did not write it down are any's.
    foundations = _describe(saved / WEIGHTS_FILE)["foundations"]
    del foundations["settings"]["activation"]
    _redescribe(saved, foundations=foundations)
    assert load_adapters(encoders["gelu"], saved) == []


@pytest.mark.parametrize("settings", [3, [], {"mean": None}, {"mean": ["0.5"]}, {"std": 0.5}])
def test_unreadable_settings(settings: Any, saved: Path, build: Any) -> None:
    foundations = _describe(saved / WEIGHTS_FILE)["foundations"]
    _redescribe(saved, foundations={**foundations, "settings": settings})
    _refused(saved, build(), "unreadable description.*settings")


def test_other_foundations_are_refused(
    saved: Path, build: Any, pipeline_copy: Path, make_unet: Any
) -> None:
    make_unet(seed=44).save_pretrained(pipeline_copy / "unet")
    other = build(seed=2, diffusion__source=str(pipeline_copy))
    before = _snapshot(other)
    with pytest.raises(CheckpointError, match="trained on other foundations") as error:
        load_adapters(other, saved)
    message = str(error.value)
    assert str(pipeline_copy) in message
    assert str(build().config.diffusion.source) in message
    assert fingerprint(other) in message
    assert fingerprint(build()) in message
    _assert_same(other, before)
    with pytest.raises(CheckpointError, match="other foundations"):
        SketchFusionEncoder.from_pretrained(saved, diffusion__source=str(pipeline_copy))


def test_foundations_that_changed_in_their_place(
    build: Any, make_unet: Any, pipeline_copy: Path, tmp_path: Path
) -> None:
    build(diffusion__source=str(pipeline_copy)).save_pretrained(tmp_path / "saved")
    make_unet(seed=44).save_pretrained(pipeline_copy / "unet")
    with pytest.raises(CheckpointError, match="What these names stand for may have changed since"):
        SketchFusionEncoder.from_pretrained(tmp_path / "saved")


def test_advice_on_other_foundations(build: Any, tmp_path: Path) -> None:
    build(weights="random").save_pretrained(tmp_path / "random")
    build().save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"come from random_seed: expected 0\.$"):
        load_adapters(build(weights="random", random_seed=3), tmp_path / "random")
    with pytest.raises(CheckpointError, match=r"Build the model with the expected foundations\.$"):
        load_adapters(build(weights="random"), tmp_path / "plain")
    encoder = build()
    layer = encoder.diffusion.denoiser.unet.conv_in
    layer.register_parameter("lora_A", torch.nn.Parameter(torch.ones(4)))
    with pytest.raises(CheckpointError, match=r"LoRA was added to them: load this file before\.$"):
        load_adapters(encoder, tmp_path / "plain")


def test_random_foundations_are_no_pretrained_ones(saved: Path, build: Any) -> None:
    with pytest.raises(CheckpointError, match=r"Expected .* pretrained weights.*Got .* random"):
        load_adapters(build(weights="random"), saved)


# --- damage ------------------------------------------------------------------------------------


def _refused(source: Path, encoder: SketchFusionEncoder, named: str) -> None:
    before = _snapshot(encoder)
    for strict in (True, False):
        with pytest.raises(CheckpointError, match=named) as error:
            load_adapters(encoder, source, strict=strict)
        assert str(source) in str(error.value)
        _assert_same(encoder, before)


@pytest.mark.parametrize("share", [0.0, 1e-5, 1e-3, 0.5, 0.999])
def test_truncated_file(share: float, saved: Path, build: Any) -> None:
    path = saved / WEIGHTS_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    _refused(saved, build(), "damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        SketchFusionEncoder.from_pretrained(saved)


def test_appended_bytes(saved: Path, build: Any) -> None:
    with (saved / WEIGHTS_FILE).open("ab") as file:
        file.write(b"more")
    _refused(saved, build(), "damaged")


def test_flipped_bits_of_the_header(saved: Path, build: Any) -> None:
    """Each is refused with our error and no change, or harmless: a number of the description."""
    path = saved / WEIGHTS_FILE
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    encoder = build(seed=2)
    before = _snapshot(encoder)
    expected = load_file(path)
    positions = [*range(8), *range(8, length, max(1, length // 120))]
    refused = 0
    for index, position in enumerate(positions):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (index % 8)
        path.write_bytes(flipped)
        try:
            read_config(saved)
            load_adapters(encoder, saved, strict=index % 2 == 0)
        except CheckpointError:
            refused += 1
            _assert_same(encoder, before)
        else:
            state = adapter_state(encoder)
            assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
            encoder.load_state_dict(before)
    assert refused > len(positions) // 2


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"", "damaged"), (b"PK\x03\x04 a pickle of torch.save" * 9, "damaged")],
)
def test_no_safetensors_file(content: bytes, named: str, saved: Path, build: Any) -> None:
    (saved / WEIGHTS_FILE).write_bytes(content)
    _refused(saved, build(), named)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(metadata: dict[str, str] | None, saved: Path, build: Any) -> None:
    save_file({"lora.weight": torch.zeros(3)}, saved / WEIGHTS_FILE, metadata)
    _refused(saved, build(), "holds no SketchFusion adapters")
    with pytest.raises(CheckpointError, match="holds no SketchFusion adapters"):
        read_config(saved)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "something-else"}, "something-else.*expected.*sketchfusion-adapters"),
        ({"format_version": 2}, r"2\), expected .*1\).*Upgrade"),
        # Another version may describe itself otherwise; it is the version that must be named.
        ({"format_version": 2, "foundations": None}, "Upgrade"),
        ({"foundations": None}, "unreadable description"),
        ({"foundations": {}}, "unreadable description"),
        ({"foundations": {"fingerprint": "0"}}, "unreadable description"),
    ],
)
def test_other_descriptions(changes: dict[str, Any], named: str, saved: Path, build: Any) -> None:
    _redescribe(saved, **changes)
    _refused(saved, build(), named)


@pytest.mark.parametrize("key", ["format", "format_version", "config", "foundations", "prefix"])
def test_incomplete_description(key: str, saved: Path, build: Any) -> None:
    path = saved / WEIGHTS_FILE
    description = _describe(path)
    del description[key]
    save_file(load_file(path), path, {"sketchfusion": json.dumps(description)})
    _refused(saved, build(), f"unreadable description.*{key}")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_unreadable_description(text: str, saved: Path, build: Any) -> None:
    path = saved / WEIGHTS_FILE
    save_file(load_file(path), path, {"sketchfusion": text})
    _refused(saved, build(), "unreadable description")


@pytest.mark.parametrize(
    "values", [{"new_field": 1}, {"diffusion": {"timestep": -1}}, {"diffusion": 3}, [], 3, None]
)
def test_configuration_of_another_version(values: Any, saved: Path) -> None:
    _redescribe(saved, config=values)
    with pytest.raises(CheckpointError, match="configuration that this version does not read"):
        read_config(saved)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"aggregation__out_channels": 128}, r"\[64\], expected \[128\]"),
        ({"aggregation": None}, r"unexpected aggregator\..* and \d+ more"),
        ({"aggregation__stride": (8, 16)}, r"missing aggregator\.maps\.0.*unexpected aggregator"),
        ({"injection__sites": ("up0",)}, r"unexpected injector\.projections\.down0"),
        ({"injection__sites": ("mid",)}, r"missing injector\.projections\.mid"),
    ],
)
def test_other_architecture(changes: dict[str, Any], named: str, saved: Path, build: Any) -> None:
    _refused(saved, build(seed=2, **changes), f"does not fit this model.*{named}")


def test_missing_files(tmp_path: Path, build: Any) -> None:
    encoder = build()
    (tmp_path / "model.bin").write_text("")
    with pytest.raises(OSError, match=rf"expected {WEIGHTS_FILE} in .* holds model\.bin"):
        load_adapters(encoder, tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(OSError, match="holds nothing"):
        load_adapters(encoder, tmp_path)
    for source in (tmp_path / "nowhere", "nowhere", "./a/b/c"):
        with pytest.raises(
            OSError, match=f"no adapters at {re.escape(str(source))}.* sketchfusion/tiny, "
        ):
            SketchFusionEncoder.from_pretrained(source)
    with pytest.raises(
        OSError, match=r"could not load the adapters from 'nobody/nothing'.* sketchfusion/tiny, "
    ):
        SketchFusionEncoder.from_pretrained("nobody/nothing")


# --- writing -----------------------------------------------------------------------------------


def test_failed_write_leaves_the_old_checkpoint(
    saved: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(_: Any, filename: Path, **__: Any) -> None:
        Path(filename).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        build(seed=3).save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_crash_between_the_two_files(
    saved: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins import checkpoint

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_text", fail)
    encoder = build(seed=3, diffusion__timestep=50)
    with pytest.raises(KeyboardInterrupt):
        encoder.save_pretrained(saved)
    assert _names(saved) == [WEIGHTS_FILE, CONFIG_FILE]
    again = SketchFusionEncoder.from_pretrained(saved)
    assert again.config == encoder.config
    _assert_same(again, _snapshot(encoder))


def test_folder_that_cannot_be_written(saved: Path, build: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        build().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    saved.chmod(0o555)
    try:
        if os.access(saved, os.W_OK):
            pytest.skip("this user writes to read-only folders")
        with pytest.raises(OSError):
            build(seed=3).save_pretrained(saved)
    finally:
        saved.chmod(0o755)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


# --- hub ---------------------------------------------------------------------------------------


def test_from_the_hub(saved: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, filename: str, revision: str | None) -> str:
        asked.append((repo, filename, revision))
        return str(saved / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    again = SketchFusionEncoder.from_pretrained("me/sketches", revision="v1")
    _assert_same(again, _snapshot(build(seed=1)))
    assert set(asked) == {("me/sketches", WEIGHTS_FILE, "v1")}


def test_a_work_directory_points_to_its_adapters(tmp_path: Path) -> None:
    inner = tmp_path / "adapters"
    inner.mkdir()
    (inner / "adapters.safetensors").touch()
    with pytest.raises(OSError, match=re.escape(f"Did you mean {inner}?")):
        locate(tmp_path, None)
