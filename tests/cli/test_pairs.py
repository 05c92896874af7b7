"""``sketchfusion match`` and ``sketchfusion segment``."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY = ("--model", "tiny", "--weights", "random", "--size", "64")


def test_match_of_given_points(run: Any, pictures: Path, checkpoints: Path, tmp_path: Path) -> None:
    picture = tmp_path / "matches.png"
    model = ("--model", checkpoints / "correspondence", "--size", 64)
    points = ("--points", "12.5,20", "--points", "89,49.5")
    pair = (pictures / "a.png", pictures / "more" / "c.png")
    result = run("match", *pair, *model, *points, "--out", picture, "--json")
    matches = json.loads(result.stdout)["matches"]
    assert [match["sketch"] for match in matches] == [[12.5, 20.0], [89.0, 49.5]]
    for match in matches:
        x, y = match["photo"]
        assert 0 <= x <= 40 and 0 <= y <= 77
        assert -1 <= match["similarity"] <= 1.0001
    with Image.open(picture) as image:
        assert min(image.size) > 300


@pytest.mark.parametrize("extra", [(), ("--mutual",)])
def test_match_with_itself_stays_in_place(run: Any, pictures: Path, extra: tuple[str, ...]) -> None:
    path = pictures / "a.png"
    result = run("match", path, path, *TINY, "--count", 3, *extra, "--json")
    matches = json.loads(result.stdout)["matches"]
    assert len(matches) == 3
    for match in matches:
        # Stride 8 of a map of 64 px of a picture that is 90 px wide.
        distance = np.subtract(match["sketch"], match["photo"])
        assert np.abs(distance).max() < 2 * 8 * 90 / 64
        assert match["similarity"] > 0.5


def test_match_prints_a_table(run: Any, pictures: Path) -> None:
    shown = run("match", pictures / "a.png", pictures / "b.png", "--model", "hog").stdout
    assert "similarity" in shown and len(shown.splitlines()) > 8


@pytest.mark.parametrize("text", ["12", "1,2,3", "a,b"])
def test_malformed_point_is_a_usage_error(run: Any, pictures: Path, text: str) -> None:
    pair = (pictures / "a.png", pictures / "b.png")
    run("match", *pair, "--model", "hog", "--points", text, status=2)


def test_points_and_mutual_neighbours_are_a_usage_error(run: Any, pictures: Path) -> None:
    pair = (pictures / "a.png", pictures / "b.png")
    result = run("match", *pair, "--model", "hog", "--points", "9,10", "--mutual", status=2)
    assert "not both" in result.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--points", "91,10"), "91,10 lies outside the sketch, which is 90 x 50 px"),
        (("--out", "matches.pdf"), "valid suffixes: .png, .svg"),
    ],
)
def test_match_errors_are_one_line(
    run: Any, pictures: Path, extra: tuple[str, ...], message: str
) -> None:
    pair = (pictures / "a.png", pictures / "b.png")
    result = run("match", *pair, "--model", "hog", *extra, status=1)
    assert message in result.stderr and result.stderr.count("\n") == 1


@pytest.fixture
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model can be opened."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr("sketchfusion_plugins.inference.models.open_model", refuse)


@pytest.mark.usefixtures("nothing_computed")
def test_what_cannot_be_drawn_is_told_at_once(
    run: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match = ("match", pictures / "a.png", pictures / "b.png", "--model", "hog", "--out")
    assert "valid suffixes: .png, .svg" in run(*match, "matches.pdf", status=1).stderr
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "sketchfusion-plugins[quickstart]" in run(*match, "matches.png", status=1).stderr


@pytest.mark.usefixtures("nothing_computed")
def test_pictures_that_are_read_are_not_written_over(
    run: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        shutil.copy(pictures / name, tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "link.png").symlink_to("b.png")
    (tmp_path / "new-link.png").symlink_to("new.png")
    monkeypatch.chdir(tmp_path)
    match = ("match", "a.png", "b.png", "--model", "hog")
    segment = ("segment", "a.png", tmp_path / "b.png", "--model", "hog", "--threshold", 0)
    for arguments in (
        (*match, "--out", tmp_path / "a.png"),
        (*match, "--out", "link.png"),
        (*segment, "--out", "a.png"),
        (*segment, "--out", "mask.png", "--overlay", "b.png"),
        (*segment, "--out", "mask.png", "--overlay", "link.png"),
        (*segment, "--out", "mask.png", "--overlay", tmp_path / "mask.png"),
        (*segment, "--out", "new.png", "--overlay", "new-link.png"),
    ):
        result = run(*arguments, status=1)
        assert "would replace" in result.stderr and result.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "mask.png").exists()


def test_a_folder_is_no_picture(run: Any, pictures: Path) -> None:
    result = run("match", pictures / "a.png", pictures, "--model", "hog", status=1)
    assert result.stderr == f"Error: {pictures} is a folder, expected a picture.\n"


def test_mask_has_the_photos_size(
    run: Any, pictures: Path, checkpoints: Path, tmp_path: Path
) -> None:
    mask, overlay = tmp_path / "mask.png", tmp_path / "overlay.png"
    pair = (pictures / "b.png", pictures / "more" / "d.png")
    model = ("--model", checkpoints / "query_segmentation", "--size", 64, "--photo-size", 96)
    result = run("segment", *pair, *model, "--out", mask, "--overlay", overlay, "--json")
    with Image.open(mask) as image:
        assert image.size == (120, 33) and image.mode == "L"
        values = np.asarray(image)
    assert set(np.unique(values)) <= {0, 255}
    share = json.loads(result.stdout)["share"]
    assert share == pytest.approx((values == 255).mean())
    with Image.open(overlay) as image, Image.open(pair[1]) as photo:
        tinted, plain = np.asarray(image).astype(int), np.asarray(photo).astype(int)
    np.testing.assert_array_equal(tinted[values == 0], plain[values == 0])
    halved = np.rint(plain[values == 255] / 2 + [127.5, 0, 0])
    np.testing.assert_allclose(tinted[values == 255], halved, atol=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model", "hog", "--out", "mask.png"),
            "hog has learned no threshold; give a cosine similarity, -1 to 1, by --threshold",
        ),
        (("--model", "hog", "--out", "mask.jpg", "--threshold", "0"), "ends in .png"),
    ],
)
def test_segment_errors_are_one_line(
    run: Any, pictures: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("segment", pictures / "a.png", pictures / "b.png", *arguments, status=1)
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_learned_threshold_is_not_overridden(
    run: Any, pictures: Path, checkpoints: Path, tmp_path: Path
) -> None:
    model = ("--model", checkpoints / "query_segmentation", "--size", 64, "--threshold", 0.1)
    pair = (pictures / "a.png", pictures / "b.png")
    result = run("segment", *pair, *model, "--out", tmp_path / "mask.png", status=1)
    assert f"{model[1]} has learned its threshold; leave --threshold out" in result.stderr
