"""Modules of `examples/pretrain_tiny`, which lies outside every package, and little data for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sketchfusion_plugins.data.openmoji import held_out_concepts
from sketchfusion_plugins.data.openmoji_drawings import Drawings, load_drawings

FOLDER = Path(__file__).parents[2] / "examples" / "pretrain_tiny"
OWN = {path.stem for path in FOLDER.glob("*.py")}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of the example, anew in every test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = {name: sys.modules.pop(name) for name in OWN if name in sys.modules}
    yield importlib.import_module
    for name in OWN:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture(scope="session")
def drawings() -> Drawings:
    """The first 72 concepts of OpenMoji."""
    return load_drawings(128, limit=72, progress=False)


@pytest.fixture
def work(tmp_path: Path, load: Callable[[str], ModuleType], drawings: Drawings) -> Path:
    """A work folder whose pictures are the drawings' own, by two artists."""
    data, hidden = load("data"), held_out_concepts()
    folder = tmp_path / "work"
    for source in ("noto", "openmoji"):
        rows = [
            data.Row(source, c.name, (), c.hexcode, c.hexcode in hidden) for c in drawings.concepts
        ]
        path = folder / "pictures" / f"{source}-000.safetensors"
        data.save_shard(path, list(drawings.color), rows)
    (folder / "sources.json").write_text("{}")
    return folder


@pytest.fixture(scope="session")
def write_strokes() -> Callable[[Path, str, int], None]:
    """Writes a compact file of scribbles in two strokes, a part each."""

    def write(folder: Path, name: str, drawings: int) -> None:
        points = np.random.default_rng(0).integers(0, 255, (drawings * 12, 2))
        folder.mkdir()
        np.savez(
            folder / name,
            xy=points.astype(np.int16),
            stroke=np.tile(np.repeat([0, 1], 6), drawings).astype(np.int16),
            part=np.tile(np.repeat([0, 1], 6), drawings).astype(np.uint8),
            offset=np.arange(0, drawings * 12 + 1, 12),
        )

    return write
