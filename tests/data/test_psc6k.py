"""A miniature of PSC6K: both csv formats, both protocols, coordinates, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sketchfusion_plugins.data.psc6k import (
    CorrespondenceDataset,
    KeyPointPair,
    load_psc6k,
    read_pairs,
)

PHOTO = "photo/tx_000000000000/{}/n{:02d}.jpg"
SKETCH = "sketch/tx_000000000000/{}/n{:02d}-{}.png"
# Ten photos of five sketches each: 50 pairs of a category, as in PSC6K.
PAIRS = [(c, p, s) for c in ("pig", "ant") for p in range(9, -1, -1) for s in range(1, 6)]


def numbers(start: float) -> str:
    return ";".join(str(start + i) for i in range(8))


def points_of(pair: tuple[str, int, int]) -> tuple[str, str, str, str]:
    _, photo, sketch = pair
    return numbers(photo), numbers(100 + photo), numbers(10 * sketch), numbers(200.5)


@pytest.fixture
def ps(tmp_path: Path) -> Path:
    rows = ["photo,sketch,class,XA,YA,XB,YB"]
    for pair in PAIRS:
        name, photo, sketch = pair
        points = ",".join(points_of(pair))
        rows.append(f"{PHOTO.format(name, photo)},{SKETCH.format(name, photo, sketch)},1,{points}")
    path = tmp_path / "test_pairs_ps.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def st(tmp_path: Path) -> Path:
    rows = ["source_image,target_image,class,XA,YA,XB,YB"]
    for pair in PAIRS:
        name, photo, sketch = pair
        xa, ya, xb, yb = points_of(pair)
        files = PHOTO.format(name, photo), SKETCH.format(name, photo, sketch)
        # In every second pair the direction from the sketch comes first.
        forth = f"{files[0]},{files[1]},1,{xa},{ya},{xb},{yb}"
        back = f"{files[1]},{files[0]},1,{xb},{yb},{xa},{ya}"
        rows += [forth, back] if sketch % 2 else [back, forth]
    path = tmp_path / "test_pairs_st.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def root(tmp_path: Path, draw_picture: Callable[..., Path]) -> Path:
    for name, photo, sketch in PAIRS:
        draw_picture(tmp_path / PHOTO.format(name, photo), (0, 0, 0), (256, 256))
        draw_picture(tmp_path / SKETCH.format(name, photo, sketch), "white", (256, 256))
    return tmp_path


def test_both_formats_hold_the_same_pairs(ps: Path, st: Path) -> None:
    pairs = read_pairs(ps)
    assert len(pairs) == 100
    assert read_pairs(st) == pairs
    first = pairs[0]
    assert (first.category, first.photo) == ("pig", PHOTO.format("pig", 9))
    assert first.photo_points[:2] == ((9.0, 109.0), (10.0, 110.0))
    assert first.sketch_points[7] == (17.0, 207.5)


def test_protocols(ps: Path, st: Path) -> None:
    assert load_psc6k(ps) == read_pairs(ps)
    train = load_psc6k(ps, "sketchfusion", "train")
    test = load_psc6k(ps, "sketchfusion", "test")
    assert load_psc6k(st, "sketchfusion", "train") == train
    assert (len(train), len(test)) == (60, 40)
    # Sorted by photo, the first six photos train and the last four are evaluated.
    assert {p.photo for p in train} == {
        PHOTO.format(c, i) for c in ("ant", "pig") for i in range(6)
    }
    assert not {p.photo for p in train} & {p.photo for p in test}
    assert len({p.sketch for p in train + test}) == 100


def test_samples_lead_both_ways(
    ps: Path, root: Path, same_in_workers: Callable[..., list[Any]]
) -> None:
    data = CorrespondenceDataset(read_pairs(ps)[:3], root, 128, ["ant", "pig"])
    assert len(data) == 6
    forth, back = data[0], data[1]
    assert forth["source"].shape == forth["target"].shape == (3, 128, 128)
    assert (forth["source"] == -1).all() and (forth["target"] == 1).all()
    # 256 px to 128 px halves.
    torch.testing.assert_close(forth["source_points"][1], torch.tensor([5.0, 55.0]))
    torch.testing.assert_close(forth["target_points"][0], torch.tensor([5.0, 100.25]))
    for one, other in (("source", "target"), ("source_points", "target_points")):
        assert torch.equal(forth[one], back[other]) and torch.equal(forth[other], back[one])
    assert forth["visible"].tolist() == [True] * 8 and forth["label"] == 1
    assert forth["key"] == f"{PHOTO.format('pig', 9)} {SKETCH.format('pig', 9, 1)}"
    assert data[-1]["key"] == data[5]["key"] and len(list(data)) == 6
    everything = CorrespondenceDataset(read_pairs(ps), root, 8)
    photos = [pair.photo for pair in everything.pairs for _ in range(2)]
    named = set(zip(photos, (sample["instance"] for sample in everything), strict=True))
    assert 1 < len(named) == len(set(photos)) == len({number for _, number in named})
    batch = same_in_workers(data)[0]
    assert batch["source_points"].shape == (2, 8, 2) and batch["visible"].shape == (2, 8)


def test_protocols_that_do_not_exist_are_refused(ps: Path) -> None:
    with pytest.raises(ValueError, match="unknown protocol 'psc', valid: pscnet, sketchfusion"):
        load_psc6k(ps, "psc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown split 'val'"):
        load_psc6k(ps, "pscnet", "val")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'pscnet' trains without key points"):
        load_psc6k(ps, "pscnet", "train")
    ps.write_text("\n".join(ps.read_text().splitlines()[:80]))
    with pytest.raises(ValueError, match="ant has 29 pairs, the protocol 'sketchfusion' needs 50"):
        load_psc6k(ps, "sketchfusion")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("photo,sketch", "a,b", "expected the columns XA, YA, XB, YB and either photo, sketch or"),
        ("XA,YA", "flip,YA", "The files of training pairs have no key points"),
        ("9.0;", "", r"line 2: XA, YA, XB, YB hold 7, 8, 8, 8 numbers"),
        (";10", ";x", "line 2: could not convert"),
        (";10", ";nan", "line 2: .* expected finite coordinates"),
        ("photo/tx", "../photo/tx", "line 2: expected a path below Sketchy's folder"),
        ("photo/tx", "sketch/tx", "line 2: expected a photo and a sketch"),
        ("photo/tx", "images/tx", "line 2: expected a folder 'photo' or 'sketch' in the path"),
    ],
)
def test_malformed_files_are_refused(ps: Path, old: str, new: str, message: str) -> None:
    text = ps.read_text().replace("9;", "9.0;", 1)
    assert old in text
    ps.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_pairs(ps)


def test_missing_files_say_how_to_get_them(ps: Path, tmp_path: Path, root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv is missing.*PSC6K\.zip"):
        load_psc6k(tmp_path / "none.csv")
    pairs = read_pairs(ps)[:2]
    (root / pairs[1].sketch).unlink()
    with pytest.raises(FileNotFoundError, match=r"n09-2\.png is missing.*sketchy\.eye\.gatech"):
        CorrespondenceDataset(pairs, root)
    ps.write_text(ps.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="holds no pair"):
        read_pairs(ps)


def test_pairs_check_themselves(ps: Path, root: Path) -> None:
    pair = read_pairs(ps)[0]
    with pytest.raises(ValueError, match=r"as many points .* got 8 and 7"):
        replace(pair, sketch_points=pair.sketch_points[:7])
    with pytest.raises(ValueError, match="got 0 and 0"):
        KeyPointPair(pair.photo, pair.sketch, (), ())
    shorter = replace(
        pair, photo_points=pair.photo_points[:3], sketch_points=pair.sketch_points[:3]
    )
    with pytest.raises(ValueError, match=r"as many points each, got \[3, 8\]"):
        CorrespondenceDataset([pair, shorter], root)
