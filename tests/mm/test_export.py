"""Merged checkpoints: mmseg's inference without any foundations gives the same logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mmseg")

import huggingface_hub
import torch
from huggingface_hub.errors import RemoteEntryNotFoundError
from mmengine.config import Config
from mmengine.runner.checkpoint import save_checkpoint
from torch import Tensor
from transformers import CLIPVisionModel

from sketchfusion_plugins import CheckpointError
from sketchfusion_plugins.mm import SketchFusion
from sketchfusion_plugins.mm.export import export_merged

CLASSES = ["paper", "head", "legs", "eye"]


class Trained:
    """A segmentor on copies of the small foundations, its config and its checkpoint."""

    def __init__(self, folder: Path, model_config: dict[str, Any]) -> None:
        from mmseg.apis import init_model

        self.config = folder / "trained.py"
        runtime = {
            "custom_imports": {"imports": ["sketchfusion_plugins.mm"]},
            "default_scope": "mmseg",
            "load_from": "somewhere.pth",
        }
        Config({**runtime, "model": model_config}).dump(self.config)
        model = init_model(str(self.config), device="cpu")
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "injector" in name or "decode_head" in name:
                    parameter.normal_(std=0.1)
        self.logits = logits(model)
        self.checkpoint = folder / "iter_2.pth"
        meta = {
            "dataset_meta": {"classes": CLASSES, "palette": [[0, 0, index] for index in range(4)]}
        }
        save_checkpoint({"meta": meta, "state_dict": model.state_dict()}, str(self.checkpoint))


def logits(model: Any) -> Tensor:
    image = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)
    with torch.no_grad():
        result: Tensor = model.encode_decode(image, [{"img_shape": (64, 96)}])
    return result


@pytest.fixture
def foundations(tmp_path: Path, pipeline_folder: Path, clip_folder: Path) -> dict[str, str]:
    """Copies that a test may delete."""
    shutil.copytree(pipeline_folder, tmp_path / "sd")
    shutil.copytree(clip_folder, tmp_path / "clip")
    return {"diffusion": str(tmp_path / "sd"), "semantic": str(tmp_path / "clip")}


@pytest.fixture
def trained(
    segmentor_config: Callable[..., dict[str, Any]], foundations: Any, tmp_path: Path
) -> Trained:
    backbone = {**foundations, "weights": "pretrained", "with_cp": True}
    return Trained(tmp_path, segmentor_config(backbone))


def test_logits_are_the_same_without_foundations(
    trained: Trained, foundations: dict[str, str], tmp_path: Path
) -> None:
    from mmseg.apis import init_model

    written = export_merged(trained.config, trained.checkpoint, tmp_path / "merged")
    for folder in foundations.values():
        shutil.rmtree(folder)
    # Elsewhere, as on another machine.
    shutil.move(tmp_path / "merged", tmp_path / "moved")
    config, weights = (tmp_path / "moved" / path.name for path in written)
    assert [path.name for path in written] == ["config.py", "model.pth"]
    model = init_model(str(config), str(weights), device="cpu")
    assert model.backbone.encoder.config.weights == "random"
    assert model.dataset_meta["classes"] == CLASSES
    torch.testing.assert_close(logits(model), trained.logits, atol=0, rtol=0)
    assert trained.logits.std() > 0.01
    # Plain values and tensors alone.
    saved = torch.load(weights, weights_only=True)
    assert set(saved) == {"meta", "state_dict"}
    assert Config.fromfile(config).load_from is None


@pytest.mark.parametrize(
    "change", [{"freeze_foundations": False}, {"foundation_dtype": "bfloat16"}]
)
def test_trained_and_half_precision_foundations(
    segmentor_config: Any, foundations: Any, change: dict[str, Any], tmp_path: Path
) -> None:
    from mmseg.apis import init_model

    trained = Trained(
        tmp_path, segmentor_config({**foundations, "weights": "pretrained", **change})
    )
    merged = export_merged(trained.config, trained.checkpoint, tmp_path / "merged")
    shutil.rmtree(foundations["diffusion"])
    model = init_model(*map(str, merged), device="cpu")
    torch.testing.assert_close(logits(model), trained.logits, atol=0, rtol=0)


def test_trained_foundations_under_a_config_that_freezes_them(
    segmentor_config: Any, foundations: Any, tmp_path: Path
) -> None:
    from mmseg.apis import init_model

    backbone = {**foundations, "weights": "pretrained"}
    trained = Trained(tmp_path, segmentor_config({**backbone, "freeze_foundations": False}))
    saved = torch.load(trained.checkpoint, weights_only=True)
    for name, value in saved["state_dict"].items():
        if ".diffusion." in name and value.is_floating_point():
            value += 0.1
    torch.save(saved, trained.checkpoint)
    expected = logits(init_model(str(trained.config), str(trained.checkpoint), device="cpu"))
    frozen = tmp_path / "frozen.py"
    Config.fromfile(trained.config).dump(frozen)
    text = frozen.read_text()
    assert text.count("freeze_foundations=False") == 1
    frozen.write_text(text.replace("freeze_foundations=False", "freeze_foundations=True"))
    merged = export_merged(frozen, trained.checkpoint, tmp_path / "merged")
    shutil.rmtree(foundations["diffusion"])
    model = init_model(*map(str, merged), device="cpu")
    assert model.backbone.encoder.config.freeze_foundations
    torch.testing.assert_close(logits(model), expected, atol=0, rtol=0)
    assert not torch.equal(expected, trained.logits)
    # Altered afterwards, they are refused as any other's.
    state = torch.load(merged[1], weights_only=True)["state_dict"]
    altered = next(name for name in state if name.endswith("conv_in.weight"))
    state[altered] += 1
    with pytest.raises(CheckpointError, match="It is damaged"):
        model.load_state_dict(state)


def _trained_tiny(segmentor_config: Any, weights: str, folder: Path) -> Trained:
    model = segmentor_config()
    model["backbone"] = {
        "type": "SketchFusion",
        "variant": "sketchfusion_tiny",
        "weights": weights,
    }
    model["neck"]["in_channels"] = [96, 144, 144]
    return Trained(folder, model)


def test_architectures_of_the_package_are_named(
    segmentor_config: Any, config: Any, tmp_path: Path
) -> None:
    trained = _trained_tiny(segmentor_config, "random", tmp_path)
    config_path, _ = export_merged(trained.config, trained.checkpoint, tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "config.py",
        "model.pth",
    ]
    source = Config.fromfile(config_path).model.backbone.config.diffusion.source
    assert source == "sketchfusion/tiny-diffusion"


def test_the_package_s_own_weights(segmentor_config: Any, tmp_path: Path) -> None:
    """Their CLIP has batch norms, which have counted batches."""
    from mmseg.apis import init_model

    trained = _trained_tiny(segmentor_config, "pretrained", tmp_path)
    written = export_merged(trained.config, trained.checkpoint, tmp_path / "merged")
    merged = init_model(*map(str, written), device="cpu")
    torch.testing.assert_close(logits(merged), trained.logits, atol=0, rtol=0)


def _exported_elsewhere(trained: Trained, *lost: str | Path) -> Any:
    """The merged model, opened in another folder, with the foundations gone."""
    from mmseg.apis import init_model

    folder = trained.config.parent
    written = export_merged(trained.config, trained.checkpoint, folder / "merged")
    for place in lost:
        shutil.rmtree(place)
    shutil.move(folder / "merged", folder / "moved")
    return init_model(*(str(folder / "moved" / path.name) for path in written), device="cpu")


def test_a_local_folder_of_timm_s_is_copied(
    segmentor_config: Any, config: Any, foundations: dict[str, str], tmp_path: Path
) -> None:
    import timm

    torch.manual_seed(2)
    semantic = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(semantic, tmp_path / "timm", safe_serialization=True)
    changed = config.replace(
        diffusion__source=foundations["diffusion"],
        semantic__source=str(tmp_path / "timm"),
        semantic__kind="timm",
    )
    trained = Trained(tmp_path, segmentor_config({"config": changed.to_dict()}))
    model = _exported_elsewhere(trained, foundations["diffusion"], tmp_path / "timm")
    torch.testing.assert_close(logits(model), trained.logits, atol=0, rtol=0)


def test_a_repository_s_normalisation_is_copied(
    segmentor_config: Any,
    foundations: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = Path(foundations["semantic"])
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (clip / "preprocessor_config.json").write_text(json.dumps(half))
    original = CLIPVisionModel.from_pretrained.__func__

    def from_pretrained(cls: type, source: str, **options: Any) -> Any:
        del options["revision"]
        return original(cls, clip, **options)

    def download(repo: str, filename: str, revision: str | None) -> str:
        assert (repo, revision) == ("someone/clip", None)
        if filename == "processor_config.json":
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("404", response=response)
        return str(clip / filename)

    monkeypatch.setattr(CLIPVisionModel, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    backbone = {**foundations, "semantic": "someone/clip", "weights": "pretrained"}
    trained = Trained(tmp_path, segmentor_config(backbone))
    model = _exported_elsewhere(trained, *foundations.values())
    assert list(model.backbone.encoder.semantic.mean) == half["image_mean"]
    torch.testing.assert_close(logits(model), trained.logits, atol=0, rtol=0)


def test_full_state_replaces_other_foundations(config: Any, sketches: Any) -> None:
    built = SketchFusion(config=config.to_dict())
    full = built.full_state_dict()
    other = SketchFusion(config=config.replace(weights="random").to_dict())
    assert not torch.equal(other(sketches(1))[0], built(sketches(1))[0])
    result = other.load_state_dict(full, strict=True)
    assert not result.missing_keys
    for level, expected in zip(other(sketches(1)), built(sketches(1)), strict=True):
        torch.testing.assert_close(level, expected, atol=0, rtol=0)
    # And from now on it is known by the foundations it has.
    other.load_state_dict(built.state_dict(), strict=True)


def test_full_state_of_what_was_empty(config: Any, sketches: Any) -> None:
    """Built on the meta device, then filled."""
    built = SketchFusion(config=config.to_dict())
    with torch.device("meta"):
        empty = SketchFusion(config=config.replace(weights="random").to_dict())
    empty.load_state_dict(built.full_state_dict(), assign=True, strict=False)
    other = SketchFusion(config=config.replace(weights="random").to_dict())
    assert not other.load_state_dict(empty.full_state_dict(), strict=True).missing_keys
    for level, expected in zip(other(sketches(1)), built(sketches(1)), strict=True):
        torch.testing.assert_close(level, expected, atol=0, rtol=0)


def test_incomplete_or_altered_foundations_are_refused(config: Any) -> None:
    built = SketchFusion(config=config.to_dict())
    other = SketchFusion(config=config.replace(weights="random").to_dict())
    full = built.full_state_dict()
    lost = next(name for name in full if name.endswith("conv_in.weight"))
    partial = {name: value for name, value in full.items() if name != lost}
    assert other.load_state_dict(partial, strict=False).missing_keys == [lost]
    with pytest.raises(CheckpointError, match=r"holds foundations with fingerprint .* expected"):
        other.load_state_dict({**full, lost: full[lost] + 1})
    name = "encoder.diffusion.denoiser.null_embedding"
    with pytest.raises(RuntimeError, match=r"size mismatch for .*null_embedding"):
        other.load_state_dict({**full, name: torch.zeros(1, 8, 5)})


def test_refusals(trained: Trained, segmentor_config: Any, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        export_merged(trained.config, tmp_path / "none.pth", out)
    (tmp_path / "damaged.pth").write_bytes(trained.checkpoint.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        export_merged(trained.config, tmp_path / "damaged.pth", out)
    torch.save({"weights": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="has no 'state_dict'"):
        export_merged(trained.config, tmp_path / "other.pth", out)
    saved = torch.load(trained.checkpoint, weights_only=True)
    del saved["state_dict"]["decode_head.conv_seg.bias"]
    torch.save(saved, tmp_path / "partial.pth")
    with pytest.raises(CheckpointError, match=r"does not fit .*decode_head\.conv_seg\.bias"):
        export_merged(trained.config, tmp_path / "partial.pth", out)
    model = segmentor_config()
    model["backbone"] = {
        "type": "mmseg.TIMMBackbone",
        "model_name": "resnet18",
        "pretrained": False,
    }
    config = Config({"model": model, "default_scope": "mmseg"})
    config.dump(tmp_path / "resnet.py")
    with pytest.raises(ValueError, match="backbone is SketchFusion, got TIMMBackbone"):
        export_merged(tmp_path / "resnet.py", trained.checkpoint, out)
    assert not out.exists()
