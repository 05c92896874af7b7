"""Pushing to the hub: what is uploaded, and the model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import timm
import torch

from sketchfusion_plugins import SketchFusionEncoder
from sketchfusion_plugins.adapter_file import CONFIG_FILE, WEIGHTS_FILE
from sketchfusion_plugins.checkpoint import adapter_state
from sketchfusion_plugins.publish import push_adapters
from sketchfusion_plugins.tasks.load import build_task


class FakeHub:
    """Stands in for huggingface_hub.HfApi: repositories, and what it was given."""

    repositories: ClassVar[dict[str, dict[str, bytes]]]
    calls: ClassVar[dict[str, Any]]

    def __init__(self, token: str | None = None) -> None:
        self.calls["token"] = token

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
        self.calls.update(created=repo_id, private=private, exist_ok=exist_ok)
        self.repositories.setdefault(f"me/{repo_id}", {})
        return type("Url", (), {"repo_id": f"me/{repo_id}"})

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return filename in self.repositories[repo_id]

    def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> Any:
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.repositories[repo_id].update(files)
        return type("Commit", (), {"commit_url": "https://hub/commit/1"})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr(FakeHub, "repositories", {}, raising=False)
    monkeypatch.setattr(FakeHub, "calls", {}, raising=False)

    def download(repo: str, filename: str, revision: str | None, **_: Any) -> str:
        (tmp_path / filename).write_bytes(FakeHub.repositories[repo][filename])
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return FakeHub


def _run(card: str) -> dict[str, Any]:
    """Names that the card's own code makes."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def _assert_same(got: Any, pushed: Any) -> None:
    expected = adapter_state(pushed)
    assert adapter_state(got).keys() == expected.keys()
    for name, tensor in adapter_state(got).items():
        assert torch.equal(tensor, expected[name]), name


def test_adapters_alone_are_uploaded(build: Any, hub: type[FakeHub]) -> None:
    encoder = build(seed=1)
    address = encoder.push_to_hub("sketches", private=True, token="hf_x")
    assert address == "https://hub/commit/1"
    assert hub.calls == {"created": "sketches", "private": True, "exist_ok": True, "token": "hf_x"}
    files = hub.repositories["me/sketches"]
    assert sorted(files) == ["README.md", WEIGHTS_FILE, CONFIG_FILE]
    card = files["README.md"].decode()
    assert card.startswith("---\n")
    assert encoder.config.diffusion.source in card
    assert "hf_x" not in card
    loaded = _run(card)["encoder"]
    assert isinstance(loaded, SketchFusionEncoder)
    _assert_same(loaded, encoder)


def test_a_card_says_what_the_file_holds(build: Any, hub: type[FakeHub]) -> None:
    encoder = build()
    encoder.push_to_hub("plain")
    assert "which are not included" in hub.repositories["me/plain"]["README.md"].decode()
    with torch.no_grad():
        encoder.diffusion.denoiser.unet.conv_in.weight.add_(1.0)
    with pytest.warns(UserWarning, match="holds them too"):
        encoder.push_to_hub("changed")
    assert "and are included" in hub.repositories["me/changed"]["README.md"].decode()


def test_a_card_that_is_there_stays(build: Any, hub: type[FakeHub]) -> None:
    build(seed=1).push_to_hub("sketches")
    hub.repositories["me/sketches"]["README.md"] = b"my own words"
    encoder = build(seed=2)
    encoder.push_to_hub("sketches")
    assert hub.repositories["me/sketches"]["README.md"] == b"my own words"
    _assert_same(SketchFusionEncoder.from_pretrained("me/sketches"), encoder)


def test_a_classifier_of_timm_comes_back_whole(
    hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model(
        "sketchfusion_tiny", pretrained=True, num_classes=5, global_pool="max"
    ).eval()
    push_adapters(model, "classifier")
    card = hub.repositories["me/classifier"]["README.md"].decode()
    assert "with a classifier of 5 classes, for `" in card
    monkeypatch.setattr("timm.models._hub.hf_hub_download", huggingface_hub.hf_hub_download)
    loaded = _run(card)["model"].eval()
    _assert_same(loaded, model)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded(image), model(image))


@pytest.mark.parametrize(
    ("name", "settings", "head"),
    [
        ("recognition", {"classes": ("cat", "dog")}, "ClassifierHead"),
        ("query_segmentation", {}, "QuerySegmentationHead"),
        ("correspondence", {}, "no head"),
    ],
)
def test_a_task_s_card_says_how_to_load_it(
    name: str, settings: dict[str, Any], head: str, build: Any, hub: type[FakeHub]
) -> None:
    task = build_task(name, build(seed=1), **settings)
    push_adapters(task, "task")
    card = hub.repositories["me/task"]["README.md"].decode()
    assert f"`{name}`" in card and head in card and "load_task" in card
    loaded = _run(card)["task"]
    assert type(loaded) is type(task)
    _assert_same(loaded, task)
