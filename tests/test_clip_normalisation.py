"""What a CLIP's images are normalised with: as its repository says, on disk and on the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionModel,
)

from sketchfusion_plugins.config import SemanticConfig
from sketchfusion_plugins.semantic import CLIP_MEAN, CLIP_STD, ClipVision
from sketchfusion_plugins.semantic_loading import load_semantic

SOURCE = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOT_THERE: Any = SimpleNamespace(headers={}, request=None)
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def _load(source: str = SOURCE, **options: Any) -> ClipVision:
    branch = load_semantic(SemanticConfig(source=source, **options))
    assert isinstance(branch, ClipVision)
    return branch


def _normalisation(branch: ClipVision) -> dict[str, list[float]]:
    return {"image_mean": list(branch.mean), "image_std": list(branch.std)}


OPENAIS = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}


@pytest.fixture
def weights(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's weights, as transformers finds them; they are not what is tested."""
    original = CLIPVisionModel.from_pretrained.__func__

    def from_pretrained(cls: type, source: str, **options: Any) -> Any:
        del options["revision"]
        return original(cls, clip_folder, **options)

    monkeypatch.setattr(CLIPVisionModel, "from_pretrained", classmethod(from_pretrained))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's own cache, in its layout, of a repository; the hub cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / f"models--{SOURCE.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder


def test_a_repository_and_its_copy_are_normalised_alike(
    weights: None, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (folder / "preprocessor_config.json").write_text(json.dumps(HALF))

    def download(repo: str, filename: str, revision: str | None) -> str:
        if filename == "processor_config.json":
            raise RemoteEntryNotFoundError("404", response=NOT_THERE)
        assert (repo, filename, revision) == (SOURCE, "preprocessor_config.json", "v1")
        return str(folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert _normalisation(_load(revision="v1")) == HALF
    assert _normalisation(_load(str(folder))) == HALF


def test_what_transformers_processors_write_is_read(clip_folder: Path, tmp_path: Path) -> None:
    """transformers 5 puts it in another file when image processor and tokenizer are saved."""
    folder = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    tokens = CLIPTokenizer(vocab={"a</w>": 0, "<|endoftext|>": 1}, merges=[])
    CLIPProcessor(CLIPImageProcessor(**own), tokens).save_pretrained(folder)
    assert (folder / "processor_config.json").is_file()
    # The one beside it is an older version's, for transformers too.
    found = AutoImageProcessor.from_pretrained(folder)
    assert {name: list(getattr(found, name)) for name in own} == own
    assert _normalisation(_load(str(folder))) == own
    # Without images in it, the other file counts.
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    (folder / "preprocessor_config.json").write_text(json.dumps(HALF))
    assert _normalisation(_load(str(folder))) == HALF


@pytest.mark.parametrize("content", [{}, {"image_mean": None, "image_std": None}])
def test_a_preprocessor_that_says_nothing(
    content: dict[str, Any], weights: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(content))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(path))
    assert _normalisation(_load()) == OPENAIS


def test_a_repository_without_preprocessor(weights: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise RemoteEntryNotFoundError("404", response=NOT_THERE)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert _normalisation(_load()) == OPENAIS


def test_offline_the_cached_one_is_read(weights: None, cache: Path) -> None:
    (cache / "snapshots" / COMMIT / "preprocessor_config.json").write_text(json.dumps(HALF))
    with pytest.warns(UserWarning, match=r"processor_config\.json of .* was never asked for"):
        assert _normalisation(_load()) == HALF


def test_a_hub_that_refuses_is_not_taken_for_an_answer(
    weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo: str, filename: str, revision: str | None) -> str:
        raise GatedRepoError("403", response=NOT_THERE)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(OSError, match=r"could not load the CLIP image encoder.*403"):
        _load()


def test_offline_the_hub_s_earlier_no_is_remembered(weights: None, cache: Path) -> None:
    answer = cache / ".no_exist" / COMMIT / "preprocessor_config.json"
    answer.parent.mkdir(parents=True)
    answer.touch()
    assert _normalisation(_load()) == OPENAIS


def test_offline_what_was_never_asked_is_not_guessed(weights: None, cache: Path) -> None:
    with pytest.raises(OSError, match=r"preprocessor_config\.json was never asked.*Go online once"):
        _load()


@pytest.mark.parametrize(
    "source", ["openai/clip-vit-large-patch14-336", "openai/clip-vit-base-patch16"]
)
def test_of_known_repositories_nothing_is_fetched(
    source: str, weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert _normalisation(_load(source)) == OPENAIS


def test_a_damaged_preprocessor(weights: None, cache: Path) -> None:
    (cache / "snapshots" / COMMIT / "preprocessor_config.json").write_text("{")
    with pytest.raises(OSError, match=r"could not load the CLIP image encoder.*not valid JSON"):
        _load()
