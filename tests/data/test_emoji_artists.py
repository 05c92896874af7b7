"""Other artists' pictures: names of files, iconify packages, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sketchfusion_plugins.data.emoji_artists import load_artist, plain_code
from sketchfusion_plugins.data.openmoji import Concept

pytest.importorskip("resvg_py")

CONCEPTS = [
    Concept(code, code, "g", "s", Path("x"))
    for code in ("1F468-200D-2708-FE0F", "1F600", "2764-FE0F")
]
RED = '<rect x="{x}" width="{w}" height="{w}" fill="#ff0000"/>'


def svg(side: int) -> str:
    body = RED.format(x=0, w=side)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}">{body}</svg>'


def write_iconify(folder: Path, icons: object, characters: object) -> None:
    (folder / "icons.json").write_text(json.dumps(icons))
    (folder / "chars.json").write_text(json.dumps(characters))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("emoji_u1f468_200d_2708", "1f468-200d-2708"),
        ("1F468-200D-2708-FE0F", "1f468-200d-2708"),
        ("2764-fe0f", "2764"),
        ("1f600", "1f600"),
    ],
)
def test_code_points_are_read_as_artists_write_them(name: str, code: str) -> None:
    assert plain_code(name) == code


@pytest.mark.parametrize("names", [("emoji_u1f600", "emoji_u2764"), ("1f600", "2764-fe0f")])
def test_svg_files(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in (*names, "1f34c"):
        (tmp_path / f"{name}.svg").write_text(svg(128))
    found, pictures = load_artist(tmp_path, CONCEPTS, 16, progress=False)
    assert [c.hexcode for c in found] == ["1F600", "2764-FE0F"]
    assert pictures.shape == (2, 16, 16, 3) and (pictures == (255, 0, 0)).all()


def test_iconify_packages(tmp_path: Path) -> None:
    icons = {
        "width": 32,
        "height": 32,
        "icons": {
            "pilot": {"body": RED.format(x=0, w=16)},
            "grin": {"body": RED.format(x=8, w=8), "width": 8, "height": 8, "left": 8},
        },
    }
    write_iconify(tmp_path, icons, {"1f468-200d-2708": "pilot", "1f600": "grin", "2764": "gone"})
    found, pictures = load_artist(tmp_path, CONCEPTS, 16, progress=False)
    assert [c.hexcode for c in found] == ["1F468-200D-2708-FE0F", "1F600"]
    assert (pictures[0, :8, :8] == (255, 0, 0)).all() and (pictures[0, 8:] == 255).all()
    assert (pictures[1] == (255, 0, 0)).all()


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no picture of the 3 concepts.*npm pack"):
        load_artist(tmp_path, CONCEPTS)
    (tmp_path / "1f600.svg").write_text("<svg")
    with pytest.raises(ValueError, match="1F600: not a well-formed SVG"):
        load_artist(tmp_path, CONCEPTS, progress=False)
    (tmp_path / "icons.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"chars\.json is missing"):
        load_artist(tmp_path, CONCEPTS)
    (tmp_path / "chars.json").write_text("[]")
    with pytest.raises(ValueError, match=r"chars\.json: expected a JSON object, got list"):
        load_artist(tmp_path, CONCEPTS)
    (tmp_path / "chars.json").write_text("{")
    with pytest.raises(ValueError, match=r"chars\.json is not JSON"):
        load_artist(tmp_path, CONCEPTS)
