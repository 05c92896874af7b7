"""mmengine's checkpoints load, and run no code of others."""

from __future__ import annotations

import operator
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmseg")

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from sketchfusion_plugins import CheckpointError
from sketchfusion_plugins.mm.safe_loading import POINTER, last_checkpoint, read_checkpoint

CALLS: list[str] = []


class Harmful:
    """What a pickled file may hold."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


def note(text: str) -> str:
    CALLS.append(text)
    return text


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    """As mmengine's runner writes one."""
    hub = MessageHub("test_safe_loading")
    hub.update_scalar("train/loss", 0.25)
    hub.update_scalar("train/loss", np.float32(0.75))
    hub.update_scalar("train/loss", torch.tensor(2.0))
    hub.update_scalar("val/count", np.int64(3))
    weights = {"weight": torch.arange(3.0)}
    return {"state_dict": weights, "message_hub": hub.state_dict(), "meta": {"iter": 2}}


def test_history_is_read(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "iter.pth")
    saved = read_checkpoint(tmp_path / "iter.pth")
    assert saved["meta"] == {"iter": 2}
    assert saved["state_dict"]["weight"].tolist() == [0, 1, 2]
    history = saved["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(history, HistoryBuffer)
    assert history.mean() == 1
    assert saved["message_hub"]["log_scalars"]["val/count"].current() == 3


def test_mmengines_own_reader_needs_no_unsafe_fallback(
    checkpoint: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from mmengine.runner.checkpoint import _load_checkpoint

    torch.save(checkpoint, tmp_path / "iter.pth")
    for _ in range(2):
        saved = _load_checkpoint(str(tmp_path / "iter.pth"), map_location="cpu")
        assert saved["message_hub"]["log_scalars"]["train/loss"].max() == 2
    assert "Falling back" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "harmful",
    [
        Harmful(note, "called"),
        Harmful(getattr, np.ndarray, "tofile"),
        Harmful(getattr, HistoryBuffer, "__init__"),
        Harmful(operator.attrgetter("mean"), HistoryBuffer),
    ],
)
def test_nothing_else_is(checkpoint: dict[str, Any], harmful: Harmful, tmp_path: Path) -> None:
    torch.save({**checkpoint, "extra": harmful}, tmp_path / "iter.pth")
    with pytest.raises(CheckpointError, match="not unpickled for safety"):
        read_checkpoint(tmp_path / "iter.pth")
    assert not CALLS


def test_damage_is_named(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "iter.pth"
    torch.save(checkpoint, path)
    whole = path.read_bytes()
    for content in (whole[:-500], whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged"):
            read_checkpoint(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(CheckpointError, match="no 'state_dict'"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "none.pth")


def test_a_copied_work_directory_goes_on_from_its_own_checkpoint(
    checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    original, copy, pointed = (tmp_path / name for name in ("a", "b", "c"))
    original.mkdir()
    torch.save(checkpoint, original / "iter_2.pth")
    (original / POINTER).write_text(str(original / "iter_2.pth"))
    shutil.copytree(original, copy)
    assert last_checkpoint(copy) == copy / "iter_2.pth"
    # Where checkpoints go elsewhere, the name alone says where.
    pointed.mkdir()
    shutil.copy(original / POINTER, pointed)
    assert last_checkpoint(pointed) == original / "iter_2.pth"
