"""Files of former versions load for ever; those of later ones say that they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sketchfusion_plugins import CheckpointError, SketchFusionEncoder
from sketchfusion_plugins.adapter_file import (
    FORMAT_VERSION,
    WEIGHTS_FILE,
    read_config,
    read_image_size,
    read_split,
    read_task,
)
from sketchfusion_plugins.checkpoint import adapter_state, load_adapters
from sketchfusion_plugins.tasks.load import load_task

# A recognition task on random foundations, saved by every version of the format. What is in
# one of these folders is never changed: users have such files.
FOLDER = Path(__file__).parents[1] / "formats"
VERSIONS = sorted(int(path.name) for path in FOLDER.iterdir())


def test_every_version_is_kept() -> None:
    assert list(range(1, FORMAT_VERSION + 1)) == VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_adapters_load(version: int) -> None:
    path = FOLDER / str(version) / "adapters"
    task = load_task(path)
    # Value i of the n-th tensor, by name, is ((i + n) mod 7 - 3) / 8.
    state = adapter_state(task)
    for number, (name, tensor) in enumerate(sorted(state.items())):
        expected = ((torch.arange(tensor.numel()) + number) % 7 - 3).view(tensor.shape) / 8
        assert torch.equal(tensor, expected.to(tensor.dtype)), name
    assert set(load_file(path / WEIGHTS_FILE)) == set(state)
    assert read_config(path).injection.sites == ("down0",)
    described = read_task(path)
    assert described is not None
    assert described[0] == task.name == "recognition"
    assert list(described[1]["classes"]) == ["cat", "dog", "pig"]
    assert read_image_size(path) == 128
    # Written before splits were.
    assert read_split(path) is task.split is None
    encoder = SketchFusionEncoder.from_pretrained(path).eval()
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 8, 8, 8)


def test_files_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 100_000


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0, "1", None])
def test_other_versions_say_so(version: object, tmp_path: Path) -> None:
    source = FOLDER / str(FORMAT_VERSION) / "adapters" / WEIGHTS_FILE
    with safe_open(source, framework="pt") as file:
        description = json.loads(file.metadata()["sketchfusion"])
    # A later version may have renamed everything else.
    changed = {"format": description["format"], "format_version": version, "new": 1}
    path = tmp_path / WEIGHTS_FILE
    save_file(load_file(source), path, {"sketchfusion": json.dumps(changed)})
    model = torch.nn.Module()
    for read in (read_config, read_task, lambda p: load_adapters(model, p)):
        with pytest.raises(CheckpointError, match=r"of format .*Upgrade sketchfusion-plugins"):
            read(path)


def test_a_later_index_says_so(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    from sketchfusion_plugins.index import IndexWriter, SketchIndex

    IndexWriter.create(tmp_path, 3).close()
    pointer = tmp_path / "current.json"
    values = json.loads(pointer.read_text())
    pointer.write_text(json.dumps({"format": values["format"] + 1, "new": 1}))
    for opening in (SketchIndex.open, IndexWriter.open):
        with pytest.raises(OSError, match=r"another format than 1\. Update this package"):
            opening(tmp_path)
