"""Models by name, and their fingerprints."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from timm.layers import GELU, QuickGELU
from torch import nn

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
from sketchfusion_plugins.foundation_settings import are_alike
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS
from sketchfusion_plugins.inference.models import (
    BUNDLED,
    config_of,
    default_size,
    find_config,
    fresh_encoder,
    is_checkpoint,
    model_fingerprint,
    model_settings,
    open_model,
)
from sketchfusion_plugins.presets import PRESETS
from sketchfusion_plugins.tasks.load import build_task, load_task
from sketchfusion_plugins.tasks.retrieval import Retrieval

TINY = preset("tiny").replace(weights="random")
TINY_SETTINGS = "1ecef98d8a3679cf"  # in indexes that users have


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
    plain, sized = (open_model(str(folder)) for folder in (saved / "retrieval", tmp_path))
    assert model_fingerprint(plain) == model_fingerprint(sized), "an index goes by its own size"


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


def test_fingerprint_is_the_same_in_every_process(saved: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(saved / "retrieval", tmp_path / "moved"))
    names = ["tiny", "hog", "timm:test_vit", str(moved)]
    code = (
        "from sketchfusion_plugins.inference.models import *\n"
        f"for name in {names!r}: print(model_fingerprint(open_model(name, weights='random')))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    names[-1] = str(saved / "retrieval")
    torch.manual_seed(99)
    assert output == [model_fingerprint(open_model(name, weights="random")) for name in names]
    assert len(set(output)) == len(names)


def test_fingerprint_forgets_precision_and_sees_everything_else() -> None:
    def fingerprint(seed: int = 0, **changes: object) -> str:
        return model_fingerprint(FusedFeatures(fresh_encoder(TINY.replace(**changes), seed)))

    same = fingerprint()
    assert fingerprint(foundation_dtype="bfloat16") == same
    others = [
        fingerprint(seed=1),
        fingerprint(random_seed=1),
        fingerprint(diffusion__timestep=50),
        fingerprint(diffusion__seed=1),
        fingerprint(aggregation__stride=16),
    ]
    assert len({same, *others}) == 6


def test_fingerprint_is_as_before_there_was_a_choice_to_shrink(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrinking, keeping = (
        FusedFeatures(fresh_encoder(TINY.replace(semantic__shrink=shrink)))
        for shrink in (True, False)
    )
    now = model_fingerprint(shrinking)
    assert model_fingerprint(keeping) != now
    hashed = []
    recorder = SimpleNamespace(dumps=lambda values, **_: hashed.append(values) or "")
    monkeypatch.setattr("sketchfusion_plugins.inference.models.json", recorder)
    model_fingerprint(shrinking)
    assert "shrink" not in hashed[0]["semantic"] and "final_norm" in hashed[0]["semantic"]


@pytest.mark.parametrize("name", ["tiny", "clip:tiny", "timm:vit_tiny_patch16_224"])
def test_settings_tell_gelu_from_quick_gelu_where_fingerprints_do_not(name: str) -> None:
    # As of timm's vit_*_clip_* and vit_*_clip_quickgelu_*, which have the same weights.
    model = open_model(name, weights="random")
    weights, before = model_fingerprint(model), model_settings(model)
    assert model_settings(model.train()) == before
    for part in list(model.modules()):
        if isinstance(getattr(part, "act", None), nn.GELU | GELU):
            part.act = QuickGELU()
    assert model_fingerprint(model) == weights
    assert not are_alike(model_settings(model), before)
    # What versions wrote that did not know of activations.
    earlier = before.partition(".")[0]
    assert are_alike(earlier, before) and are_alike(model_settings(model), earlier)


def test_settings_tell_normalisations_of_timm_apart() -> None:
    model = open_model("timm:test_vit", weights="random")
    before = model_settings(model)
    model.normalise.mean = [0.1, 0.2, 0.3]
    assert not are_alike(model_settings(model), before)
    # What versions wrote that did not know of it.
    assert are_alike(f".{before.partition('.')[2]}", model_settings(model))


def test_fingerprint_of_maps_whose_channels_were_last_is_another_than_it_was() -> None:
    model = open_model("timm:test_resnet", weights="random")
    before = model_fingerprint(model)
    model.channels_last = True
    assert model_fingerprint(model) != before


def test_settings_of_the_bundled_model_are_as_they_were() -> None:
    assert model_settings(open_model("tiny")).partition(".")[0] == TINY_SETTINGS
    assert model_settings(open_model("hog")) == ""


def test_fingerprint_sees_one_changed_weight() -> None:
    task = build_task("retrieval", fresh_encoder(TINY), dim=8)
    before = model_fingerprint(task)
    assert model_fingerprint(task.train()) == before
    with torch.no_grad():
        next(task.head.parameters()).view(-1)[0] += 1e-3
    assert model_fingerprint(task) != before


def test_names_of_timm_and_presets_agree() -> None:
    assert find_config("sketchfusion_base") == find_config("sketchfusion_base.sd21")
    assert find_config("sketchfusion_base.cleandift") == PRESETS["cleandift"]
