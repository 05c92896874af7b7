"""The trained weights that are part of the package, by every way that leads to them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.adapter_file import WEIGHTS_FILE, MisfitError, read_config
from sketchfusion_plugins.checkpoint import adapter_state, fingerprint, load_adapters
from sketchfusion_plugins.hub import (
    BUNDLED_WEIGHTS,
    WEIGHTS_FOLDER,
    bundled_weights,
    read_architecture,
)
from sketchfusion_plugins.inference.identity import identify
from sketchfusion_plugins.inference.models import config_of, default_size, open_model
from sketchfusion_plugins.tasks.load import load_task
from sketchfusion_plugins.tasks.retrieval import Retrieval

EMBEDDING = "sketchfusion/tiny-retrieval"
TINY, ADAPTERS, TOWER = "sketchfusion_tiny", "sketchfusion/tiny", "vit_tiny_conv16_128"
FOLDER = WEIGHTS_FOLDER / "tiny"
ADAPTERS_FILE = FOLDER / "adapters" / WEIGHTS_FILE
WHEEL = 25_000_000


@pytest.fixture(scope="module")
def encoder() -> SketchFusionEncoder:
    """The packaged fusion; to be read only."""
    return SketchFusionEncoder.from_pretrained(ADAPTERS).eval()


def test_random_builds_have_the_settings_of_the_weights() -> None:
    """Else a full state dict, loaded into one, would compute something else."""
    architecture = read_architecture("sketchfusion/tiny-diffusion")
    vae = json.loads((FOLDER / "diffusion" / "vae" / "config.json").read_text())
    assert architecture["vae"]["scaling_factor"] == vae["scaling_factor"]


def _encoder_in(model: nn.Module) -> SketchFusionEncoder:
    return next(m for m in model.modules() if isinstance(m, SketchFusionEncoder))


def _assert_holds(module: nn.Module, file: Path, dtype: torch.dtype = torch.float32) -> None:
    """Every tensor of the module that the file has a value for has that value."""
    saved, held = load_file(file), module.state_dict()
    shared = set(saved) & set(held)
    assert shared and (set(held) <= set(saved) or set(saved) <= set(held))
    for name in shared:
        assert held[name].dtype in (dtype, torch.int64), name
        assert torch.equal(held[name], saved[name].to(held[name].dtype)), name


# --- The files -----------------------------------------------------------------------------------


def test_files_are_safe_small_and_part_of_a_build() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.name != "LICENSE"} <= {
        ".safetensors",
        ".json",
        ".md",
    }
    # A wheel deflates its files.
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) <= WHEEL
    for path in FOLDER.rglob("*.json"):
        # Nobody's own folders.
        assert "_name_or_path" not in path.read_text(), path
    for path in FOLDER.rglob("*.safetensors"):
        assert {t.dtype for t in load_file(path).values()} <= {torch.float16, torch.int64}, path
    # hatch leaves out what git ignores.
    # Asked of the source tree, since FOLDER is in site-packages where the wheel is installed.
    source = Path(__file__).parents[1] / "sketchfusion_plugins" / "weights" / FOLDER.name
    paths = [str(source / path.relative_to(FOLDER)) for path in files]
    assert all(Path(path).is_file() for path in paths)
    command = ["git", "check-ignore", *paths]
    ignored = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert (ignored.returncode, ignored.stdout) == (1, ""), ignored.stderr


@pytest.mark.parametrize(
    "load",
    [
        lambda: SketchFusionEncoder(preset("tiny")),
        lambda: SketchFusionEncoder.from_pretrained(ADAPTERS),
        lambda: read_config(ADAPTERS),
        lambda: timm.create_model(TINY, pretrained=True),
        lambda: timm.create_model(TOWER, pretrained=True),
    ],
    ids=["encoder", "adapters", "config", "timm", "tower"],
)
def test_installation_without_them_says_so(
    load: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for source in BUNDLED_WEIGHTS:
        monkeypatch.setitem(BUNDLED_WEIGHTS, source, tmp_path / "none")
    with pytest.raises(OSError, match=r"this installation lacks .*none.*weights='random'"):
        load()


def test_ids_and_folders_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in BUNDLED_WEIGHTS:
        monkeypatch.setitem(BUNDLED_WEIGHTS, source, tmp_path)
        assert bundled_weights(source) == tmp_path
    assert bundled_weights("somebody/tiny") is None
    (tmp_path / ADAPTERS).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert bundled_weights(ADAPTERS) is None


@torch.no_grad()
def test_batch_norms_that_lost_their_activation_are_refused() -> None:
    from timm.layers.norm_act import convert_sync_batchnorm

    encoder = SketchFusionEncoder.from_pretrained(ADAPTERS)
    image = torch.zeros(1, 3, 64, 64)
    expected = encoder(image)
    kept = convert_sync_batchnorm(encoder).eval()
    torch.testing.assert_close(kept.eval()(image), expected)
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(SketchFusionEncoder.from_pretrained(ADAPTERS))
    with pytest.raises(ValueError, match=r"drops the activation of .*Convert what trains alone"):
        plain.train()


# --- Foundations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encoder_holds_the_packaged_values_in_its_own_precision(dtype: str) -> None:
    config = preset("tiny").replace(foundation_dtype=dtype)
    built = SketchFusionEncoder(config)
    held = getattr(torch, dtype)
    branch = built.diffusion
    _assert_holds(branch.denoiser.unet, next((FOLDER / "diffusion/unet").glob("*.saf*")), held)
    _assert_holds(branch.vae, next((FOLDER / "diffusion/vae").glob("*.saf*")), held)
    _assert_holds(built.semantic.model, FOLDER / "semantic/model.safetensors", held)
    null = load_file(FOLDER / "diffusion/null_embedding.safetensors")["null_embedding"]
    assert torch.equal(branch.denoiser.null_embedding, null.to(held))
    # The configuration names them, wherever the package lies.
    assert built.config == config
    with torch.inference_mode():
        assert built(torch.zeros(1, 3, 70, 131)).isfinite().all()


def test_loading_is_quiet_and_needs_no_network(tmp_path: Path) -> None:
    code = (
        "import timm, sketchfusion_plugins as s\n"
        "s.SketchFusionEncoder.from_pretrained('sketchfusion/tiny')\n"
        "print(timm.list_models(['sketchfusion_*', 'vit_tiny_conv*'], pretrained=True))\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.strip() == f"['{TINY}.open_pictures', '{TOWER}.open_pictures']"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({}, 0),
        ({"num_classes": 0, "dynamic_img_size": True}, 0),
        ({"num_classes": 10}, 10),
        ({"num_classes": 10, "dynamic_img_size": True}, 10),
    ],
)
def test_tower_through_timm(options: dict[str, Any], classes: int) -> None:
    model = timm.create_model(TOWER, pretrained=True, **options).eval()
    _assert_holds(model, FOLDER / "semantic/model.safetensors")
    assert model.pretrained_cfg["tag"] == "open_pictures"
    size = (96, 160) if "dynamic_img_size" in options else (128, 128)
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, *size)).shape == (2, classes or 192)


def test_tower_for_other_images() -> None:
    plain = timm.create_model(TOWER, pretrained=True).eval()
    larger = timm.create_model(TOWER, pretrained=True, img_size=192).eval()
    expected = timm.layers.resample_abs_pos_embed(
        plain.pos_embed, new_size=[12, 12], num_prefix_tokens=0
    )
    # It is resampled in the file's precision.
    torch.testing.assert_close(larger.pos_embed, expected, atol=1e-3, rtol=1e-3)
    grey = timm.create_model(TOWER, pretrained=True, in_chans=1).eval()
    image = torch.rand(1, 1, 128, 128)
    with torch.inference_mode():
        # timm adds the first layer's channels up in the file's half precision.
        torch.testing.assert_close(
            grey(image), plain(image.expand(-1, 3, -1, -1)), atol=5e-3, rtol=0
        )


# --- Adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 7},
        {"num_classes": 0},
        {"in_chans": 1, "num_classes": 3},
        {"in_chans": 4},
        {"features_only": True},
        {"features_only": True, "in_chans": 1, "out_indices": (1, 2)},
    ],
    ids=str,
)
def test_timm_model_has_foundations_and_adapters(
    options: dict[str, Any], encoder: SketchFusionEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = timm.create_model(TINY, pretrained=True, **options).eval()
    (message,) = [record.getMessage() for record in caplog.records]
    headless = "features_only" in options or options.get("num_classes") == 0
    assert message == (
        f"{TINY}: loaded foundations sketchfusion/tiny-diffusion and {TOWER}; loaded adapters "
        f"{ADAPTERS}{'' if headless else '; a head is fresh'}."
    )
    got, expected = adapter_state(_encoder_in(model)), adapter_state(encoder)
    if "features_only" in options:
        assert got and not any("aggregator" in name for name in got)
    else:
        assert set(got) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())
    channels = options.get("in_chans", 3)
    grey = (torch.rand(1, 1, 64, 96) * 2 - 1).expand(-1, 3, -1, -1)
    image = torch.cat((grey, torch.ones(1, 1, 64, 96)), 1)[:, :channels]
    with torch.inference_mode():
        if "features_only" in options:
            levels = encoder.forward_levels(grey).maps
            index = list(options.get("out_indices", (0, 1, 2, 3))).index(1)
            torch.testing.assert_close(model(image)[index], levels[0])
        else:
            torch.testing.assert_close(model.forward_features(image), encoder(grey))
            classes = options.get("num_classes", 1000)
            assert model(image).shape == (1, classes or 192)


@pytest.mark.parametrize("options", [{}, {"features_only": True}], ids=str)
def test_adapters_that_the_caller_names_win(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = SketchFusionEncoder(preset("tiny"))
    for parameter in own.injector.parameters():
        nn.init.normal_(parameter)
    own.save_pretrained(tmp_path)
    overlay = {"file": str(tmp_path / WEIGHTS_FILE)}
    model = timm.create_model(TINY, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    got, expected = adapter_state(_encoder_in(model)), adapter_state(own)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())
    fresh = "" if "features_only" in options else "; a head is fresh"
    assert f"loaded adapters {tmp_path / WEIGHTS_FILE}{fresh}." in caplog.text


def test_adapters_of_the_hub_win(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = SketchFusionEncoder(preset("tiny"))
    own.save_pretrained(tmp_path)
    asked = []

    def download(repository: str, filename: str, **_: Any) -> str:
        asked.append(repository)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = timm.create_model(
        TINY, pretrained=True, pretrained_cfg_overlay={"hf_hub_id": "me/mine"}
    )
    assert asked == ["me/mine"]
    assert "loaded adapters me/mine; a head is fresh." in caplog.text
    expected = adapter_state(own)
    got = adapter_state(_encoder_in(model))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())


@pytest.mark.parametrize("place", ["hf-hub", "hf-hub overlay", "file", "local-dir"])
def test_adapters_come_with_the_configuration_they_were_trained_with(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"diffusion__timestep": 50, "injection__inject_skips": False}
    mine = timm.create_model(TINY, pretrained=True, num_classes=5, changes=changes).eval()
    mine.save_pretrained(tmp_path)
    asked = []

    def download(repository: str, filename: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repository, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    options: dict[str, Any] = {"num_classes": 5}
    name = TINY
    if place == "hf-hub":
        name, options = "hf-hub:me/mine@v2", {}
    elif place == "local-dir":
        name, options = f"local-dir:{tmp_path}", {}
    elif place == "file":
        options["pretrained_cfg_overlay"] = {"file": str(tmp_path / WEIGHTS_FILE)}
    else:
        options["pretrained_cfg_overlay"] = {"hf_hub_id": "me/mine@v2"}
    again = timm.create_model(name, pretrained=True, **options).eval()
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(again(image), mine(image))
    assert set(asked) == ({("me/mine", "v2")} if "hub" in place else set())
    # What the caller changes counts more.
    other = timm.create_model(name, pretrained=True, changes={"diffusion__timestep": 60}, **options)
    config = _encoder_in(other).config
    assert (config.diffusion.timestep, config.injection.inject_skips) == (60, False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("folder", "trained on other foundations"),
        ({"changes": {"taps": ("up1", "up2")}}, "does not fit this model"),
        ({"changes": {"aggregation__out_channels": 64}}, "does not fit this model"),
        ({"weights": "random"}, "trained on other foundations"),
        ({"pretrained_cfg_overlay": {"file": None}}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("features_only", [False, True])
def test_changed_model_starts_from_fresh_adapters(
    options: Any,
    reason: str | None,
    features_only: bool,
    pipeline_folder: Path,
    encoder: SketchFusionEncoder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if options == "folder":
        options = {"diffusion": str(pipeline_folder)}
    only = {"features_only": True, "out_indices": (1, 2)} if features_only else {}
    with caplog.at_level(logging.WARNING):
        model = timm.create_model(TINY, pretrained=True, **options, **only)
    (message,) = [record.getMessage() for record in caplog.records]
    fresh = "injection is fresh" if features_only else "injection, aggregation and head are fresh"
    assert fresh in message
    assert (reason or f"{fresh}.") in message
    # Injection starts at zero.
    assert all(not parameter.any() for parameter in _encoder_in(model).injector.parameters())


def test_damaged_adapters_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from sketchfusion_plugins import CheckpointError

    def damaged(*_: Any, **__: Any) -> None:
        raise CheckpointError("damaged")

    monkeypatch.setattr("timm_adapters.sketchfusion.load_adapters", damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        timm.create_model(TINY, pretrained=True)


def test_id_leads_to_the_packaged_adapters(encoder: SketchFusionEncoder) -> None:
    _assert_holds_adapters(encoder)
    assert read_config(ADAPTERS) == encoder.config
    assert encoder.config.weights == "pretrained"
    assert encoder.config.diffusion == preset("tiny").diffusion
    assert encoder.config.semantic == preset("tiny").semantic
    other = SketchFusionEncoder(preset("tiny"))
    assert load_adapters(other, ADAPTERS, strict=False) == []
    _assert_holds_adapters(other)


def _assert_holds_adapters(encoder: SketchFusionEncoder) -> None:
    state = adapter_state(encoder)
    saved = load_file(ADAPTERS_FILE)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    for name, tensor in state.items():
        (value,) = [saved[key] for key in saved if key.endswith(name)]
        assert torch.equal(tensor, value.float()), name


def test_names_of_the_command_line(encoder: SketchFusionEncoder) -> None:
    assert config_of(ADAPTERS) == encoder.config
    assert default_size(ADAPTERS) == 128
    assert identify(ADAPTERS).startswith(f"{ADAPTERS} (pretrained foundations, adapters ")
    opened = open_model(ADAPTERS)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        torch.testing.assert_close(opened(image), encoder(image))


# --- Embedding -----------------------------------------------------------------------------------


def test_embedding_is_the_packaged_adapters_and_a_head(encoder: SketchFusionEncoder) -> None:
    assert default_size(EMBEDDING) == 128
    task = open_model(EMBEDDING, "retrieval")
    assert isinstance(task, Retrieval)
    _assert_holds_adapters(task.encoder)
    assert fingerprint(task.encoder) == fingerprint(encoder)
    saved = load_file(FOLDER / "retrieval" / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    image = torch.rand(2, 3, 96, 128) * 2 - 1
    with torch.inference_mode():
        cells = F.adaptive_avg_pool2d(encoder(image), 4).flatten(2).mT
        norm = (saved[f"head.norm.{name}"].float() for name in ("weight", "bias"))
        cells = F.layer_norm(cells, cells.shape[-1:], *norm)
        projection = (saved[f"head.projection.{name}"].float() for name in ("weight", "bias"))
        expected = F.linear(cells.flatten(1), *projection)
        torch.testing.assert_close(task(image), F.normalize(expected))


def test_embedding_needs_no_package_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    task = load_task(EMBEDDING)
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(task(image).norm(dim=1), torch.ones(2))
    number = torch.arange(2)
    batch = {"sketch": image, "photo": image, "instance": number, "label": number}
    with pytest.raises(ImportError, match=r"pytorch-metric-learning .*\[tasks\]"):
        task.loss(batch)


# --- Foundations and adapters belong together ----------------------------------------------------


def test_foundations_are_told_apart(encoder: SketchFusionEncoder, tmp_path: Path) -> None:
    with pytest.raises(MisfitError, match=r"Expected .* pretrained weights.*Got .* random"):
        SketchFusionEncoder.from_pretrained(ADAPTERS, weights="random")
    SketchFusionEncoder(preset("tiny").replace(weights="random")).save_pretrained(tmp_path)
    with pytest.raises(MisfitError, match=r"Expected .* random weights.*Got .* pretrained"):
        SketchFusionEncoder.from_pretrained(tmp_path, weights="pretrained")
    # Precision and place do not matter.
    half = SketchFusionEncoder.from_pretrained(ADAPTERS, foundation_dtype="bfloat16")
    moved = SketchFusionEncoder.from_pretrained(
        ADAPTERS,
        diffusion__source=str(FOLDER / "diffusion"),
        semantic__source=str(FOLDER / "semantic"),
    )
    assert fingerprint(half) == fingerprint(moved) == fingerprint(encoder)


def test_whole_states_bring_the_packaged_foundations(
    encoder: SketchFusionEncoder,
) -> None:
    """Into a model of random ones, whose batch norms have counted no batch."""
    trained = timm.create_model(TINY, pretrained=True, num_classes=3)
    model = timm.create_model(TINY, num_classes=3)
    assert fingerprint(_encoder_in(model)) != fingerprint(encoder)
    model.load_state_dict(trained.state_dict())
    assert fingerprint(_encoder_in(model)) == fingerprint(encoder)


# --- What is built on them by default ------------------------------------------------------------


def test_configs_stand_on_the_packaged_foundations(encoder: SketchFusionEncoder) -> None:
    pytest.importorskip("mmseg")
    from mmengine.config import Config

    from sketchfusion_plugins.mm.backbone import SketchFusion
    from sketchfusion_plugins.mm.task_config import build_encoder, read_task_config

    expected = fingerprint(encoder)
    task = read_task_config("retrieval")
    assert fingerprint(build_encoder(task.encoder)) == expected
    task = read_task_config("retrieval", {"encoder.changes.weights": "random"})
    assert fingerprint(build_encoder(task.encoder)) != expected
    configs = Path(__file__).parents[1] / "mmseg_configs/_base_/models"
    for path in sorted(configs.glob("tiny_*.py")):
        backbone = dict(Config.fromfile(path).model.backbone)
        assert backbone.pop("type") == "SketchFusion"
        assert fingerprint(SketchFusion(**backbone).encoder) == expected
