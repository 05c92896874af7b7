"""Models by name."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.adapter_file import WEIGHTS_FILE, CheckpointError
from sketchfusion_plugins.features import (
    ClipFeatures,
    ConcatenatedFeatures,
    DiffusionFeatures,
    Features,
    FusedFeatures,
    HogFeatures,
    PixelFeatures,
    TimmFeatures,
)
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS
from sketchfusion_plugins.inference.models import (
    BUNDLED,
    config_of,
    default_size,
    find_config,
    fresh_encoder,
    is_checkpoint,
    open_model,
)
from sketchfusion_plugins.presets import PRESETS
from sketchfusion_plugins.tasks.load import load_task
from sketchfusion_plugins.tasks.retrieval import Retrieval

TINY = preset("tiny").replace(weights="random")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny", FusedFeatures),
        ("sketchfusion_tiny", FusedFeatures),
        ("sketchfusion_tiny.open_pictures", FusedFeatures),
        ("clip:tiny", ClipFeatures),
        ("sd:tiny", DiffusionFeatures),
        ("sd+clip:sketchfusion_tiny", ConcatenatedFeatures),
        ("hog", HogFeatures),
        ("pixels", PixelFeatures),
        ("timm:test_vit", TimmFeatures),
        ("timm:test_resnet", TimmFeatures),
    ],
)
def test_every_kind_of_name(name: str, kind: type[Features]) -> None:
    model = open_model(name, weights="random")
    assert type(model) is kind and not model.training
    with torch.inference_mode():
        described = model.describe(torch.rand(2, 3, 64, 64) * 2 - 1)
        again = open_model(name, weights="random").describe(torch.zeros(1, 3, 64, 64))
        torch.testing.assert_close(model.describe(torch.zeros(1, 3, 64, 64)), again)
    torch.testing.assert_close(described.norm(dim=1), torch.ones(2))


def test_parts_stand_on_the_paper_unless_told() -> None:
    assert config_of("clip") == config_of("sd+clip") == PRESETS["paper"]
    assert config_of("sd:cleandift", "random") == PRESETS["cleandift"].replace(weights="random")


@pytest.mark.parametrize(("name", "warns"), [("tiny", True), ("sd:tiny", False)])
def test_untrained_adapters_are_told(name: str, warns: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_model(name, weights="random", seed=3)
    told = [str(w.message) for w in caught if "untrained, drawn from seed 3" in str(w.message)]
    assert len(told) == warns
    assert all("'tiny'" in message and "sketchfusion/tiny" in message for message in told)


def test_checkpoints(saved: Path) -> None:
    task = open_model(str(saved / "retrieval"))
    assert isinstance(task, Retrieval) and task.settings["dim"] == 8
    assert isinstance(open_model(str(saved / "retrieval"), "retrieval"), Retrieval)
    # An encoder's checkpoint is of no task, and fits any.
    assert isinstance(open_model(str(saved / "encoder"), "retrieval"), FusedFeatures)
    with pytest.raises(ValueError, match=r"trained for retrieval, expected .* recognition"):
        open_model(str(saved / "retrieval"), "recognition")
    with pytest.warns(UserWarning, match=r"is a checkpoint, .* random weights are for presets"):
        open_model(str(saved / "encoder"), weights="random")


@pytest.mark.parametrize("name", ["nonsense", "clip:nonsense", "sketchfusion_tiny.sd21", ""])
def test_unknown_names_list_the_choices(name: str) -> None:
    with pytest.raises(ValueError, match=r"paper, official.*sketchfusion_base.*clip:tiny.*hog"):
        open_model(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tinyy", "tiny"),
        ("hogg", "hog"),
        ("clip:tinyy", "clip:tiny"),
        ("tiny-retrieval", "sketchfusion/tiny-retrieval"),
    ],
)
def test_misspelt_names_are_told_what_was_meant(name: str, meant: str) -> None:
    message = f"Did you mean {meant}( or [^?]*)?[?].*{', '.join(BUNDLED)}"
    with pytest.raises(ValueError, match=message):
        open_model(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("sketchfusion/tyni", "sketchfusion/tiny"),
        ("sketchfusion/tiny-retrival", "sketchfusion/tiny-retrieval"),
        ("sketchfusion/tiny/", "sketchfusion/tiny"),
    ],
)
@pytest.mark.parametrize("find", [open_model, config_of, default_size])
def test_misspelt_ids_of_the_package_do_not_reach_the_hub(
    find: Callable[[str], object], name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def network(*_: object, **__: object) -> None:
        raise AssertionError("no download may be tried")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", network)
    with pytest.raises(ValueError, match=rf"Did you mean {meant}\? .*hf download {name}"):
        find(name)


def test_ids_like_the_package_s_may_be_folders_or_cached(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved / "encoder", "sketchfusion/tinier")
    assert is_checkpoint("sketchfusion/tinier")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="Did you mean sketchfusion/tiny"):
        is_checkpoint("sketchfusion/tiny2")
    references = tmp_path / "models--sketchfusion--tiny2/refs"
    references.mkdir(parents=True)
    (references / "main").write_text("1a2b")
    assert is_checkpoint("sketchfusion/tiny2")
    assert is_checkpoint("sketchfusion/another") and is_checkpoint("nobody/tiny")


def test_packaged_models_are_those_with_adapters() -> None:
    held = [name for name, folder in BUNDLED_WEIGHTS.items() if (folder / WEIGHTS_FILE).is_file()]
    assert list(BUNDLED) == held


def test_unknown_timm_name() -> None:
    with pytest.raises(ValueError, match=r"no model 'vit_nothing'\. See timm\.list_models\(\)\."):
        open_model("timm:vit_nothing")
    with pytest.raises(ValueError, match=r"no model 'test_vi'\. Similar: test_vit"):
        open_model("timm:test_vi")


def test_folder_without_adapters(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"expected adapters\.safetensors in"):
        open_model(str(tmp_path))
    (tmp_path / "adapters.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="damaged"):
        open_model(str(tmp_path))


def test_precision(saved: Path) -> None:
    for name in ("tiny", "clip:tiny", str(saved / "encoder"), str(saved / "retrieval")):
        model = open_model(name, weights="random", dtype="bfloat16")
        encoder = next(m for m in model.modules() if isinstance(m, SketchFusionEncoder))
        assert encoder.config.foundation_dtype == "bfloat16"
        assert next(encoder.diffusion.parameters()).dtype == torch.bfloat16
        assert encoder.dtype == torch.float32
    with pytest.raises(ValueError, match="hog computes in float32 alone"):
        open_model("hog", dtype="bfloat16")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("paper", 336),
        ("official", 336),
        ("sd:sd15", 336),
        ("sketchfusion_small", 256),
        ("sd+clip:tiny", 128),
        ("hog", 128),
        ("timm:vit_base_patch14_dinov2", 518),
        ("timm:vit_base_patch16_224", 224),
    ],
)
def test_default_sizes(name: str, size: int) -> None:
    assert default_size(name) == size


def test_size_of_a_checkpoint_is_its_foundations(saved: Path) -> None:
    assert default_size(str(saved / "retrieval")) == 128
    assert default_size(str(saved / "encoder")) == 128


def test_size_of_a_trained_task_is_what_it_was_trained_on(saved: Path, tmp_path: Path) -> None:
    task = load_task(saved / "retrieval")
    task.image_size = 72
    task.save_pretrained(tmp_path)
    assert default_size(str(tmp_path)) == 72
    assert default_size(str(tmp_path / "adapters.safetensors")) == 72


def test_fresh_adapters_come_from_the_seed_alone() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = fresh_encoder(TINY, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    second = fresh_encoder(TINY, seed=3).state_dict()
    other = fresh_encoder(TINY, seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_names_of_timm_and_presets_agree() -> None:
    assert find_config("sketchfusion_base") == find_config("sketchfusion_base.sd21")
    assert find_config("sketchfusion_base.cleandift") == PRESETS["cleandift"]
