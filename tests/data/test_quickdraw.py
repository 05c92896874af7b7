"""Quick, Draw!: every layout on disk, what is chosen, and what is refused with file and line."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sketchfusion_plugins.data.quickdraw import QuickDraw
from sketchfusion_plugins.data.strokes import Strokes, StrokeStyle, render
from sketchfusion_plugins.problems import Problems

STYLE = StrokeStyle(40)
CATEGORIES = ("aircraft carrier", "cat", "zebra")


def drawing(category: int, number: int) -> list[np.ndarray]:
    """Two strokes ``[n, 2]`` that differ from drawing to drawing."""
    generator = np.random.default_rng([category, number])
    return [generator.integers(0, 256, (n, 2)) for n in (5, 3 + number)]


def record(category: int, number: int, raw: bool = False) -> dict[str, Any]:
    strokes = [path.T.tolist() for path in drawing(category, number)]
    if raw:
        strokes = [[x, y, list(range(len(x)))] for x, y in strokes]
    return {
        "word": CATEGORIES[category],
        "countrycode": "DE",
        "timestamp": "2017-03-01 20:41:36.70725 UTC",
        "recognized": number % 2 == 0,
        "key_id": str(1000 * category + number),
        "drawing": strokes,
    }


@pytest.fixture
def ndjson(tmp_path: Path) -> Path:
    """Files of 5, 4 and 3 drawings, named as Google does and as a browser renames them."""
    names = ("aircraft carrier", "full_simplified_cat", "full%2Fsimplified%2Fzebra")
    for category, name in enumerate(names):
        lines = [json.dumps(record(category, number)) for number in range(5 - category)]
        (tmp_path / f"{name}.ndjson").write_text("\n".join(lines) + "\n")
    return tmp_path


def write_compact(folder: Path, split: bool = False) -> Path:
    rows = [(c, n) for c in (2, 0, 1) for n in range(4)]
    paths = [drawing(c, n) for c, n in rows]
    counts = [sum(map(len, strokes)) for strokes in paths]
    np.savez(
        folder / "quickdraw_strokes.npz",
        xy=np.concatenate([path for strokes in paths for path in strokes]).astype(np.int16),
        stroke=np.concatenate(
            [np.full(len(path), i) for strokes in paths for i, path in enumerate(strokes)]
        ).astype(np.int16),
        offset=np.array([0, *np.cumsum(counts)]),
    )
    lines = ["index,class,recognized,key_id,strokes" + ",split" * split]
    for index, (c, n) in enumerate(rows):
        line = f"{index},{CATEGORIES[c]},{1 - n % 2},{1000 * c + n},2"
        lines.append(line + (",train" if n < 3 else ",valid") * split)
    (folder / "quickdraw.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    return write_compact(tmp_path)


@pytest.fixture
def bitmaps(tmp_path: Path) -> Path:
    for category, name in enumerate(CATEGORIES):
        generator = np.random.default_rng(category)
        np.save(tmp_path / f"{name}.npy", generator.integers(0, 256, (4, 784), np.uint8))
    return tmp_path


def keep(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def expected(category: int, number: int) -> np.ndarray:
    return render(Strokes.from_paths(drawing(category, number)), STYLE)


@pytest.mark.parametrize("raw", [False, True])
def test_ndjson_drawings(raw: bool, ndjson: Path) -> None:
    if raw:
        lines = [json.dumps(record(1, number, raw=True)) for number in range(4)]
        (ndjson / "full_simplified_cat.ndjson").write_text("\n".join(lines))
    data = QuickDraw(ndjson, STYLE, keep)
    assert data.categories == CATEGORIES
    assert data.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 3
    assert len(data) == 12
    sample = data[7]
    assert (sample["label"], sample["key"]) == (1, "cat/1002")
    np.testing.assert_array_equal(sample["image"], expected(1, 2))
    assert data[-1]["key"] == "zebra/2002"
    with pytest.raises(IndexError):
        data[12]


def test_compact_drawings(compact: Path) -> None:
    data = QuickDraw(compact, STYLE, keep)
    assert data.categories == CATEGORIES
    assert data.labels.tolist() == [2] * 4 + [0] * 4 + [1] * 4
    sample = data[9]
    assert (sample["label"], sample["key"]) == (1, "cat/1001")
    np.testing.assert_array_equal(sample["image"], expected(1, 1))


def test_bitmaps_are_inverted(bitmaps: Path) -> None:
    data = QuickDraw(bitmaps, transform=keep)
    assert data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    sample = data[6]
    assert (sample["label"], sample["key"]) == (1, "cat/2")
    ink = np.random.default_rng(1).integers(0, 256, (4, 784), np.uint8)[2].reshape(28, 28)
    np.testing.assert_array_equal(sample["image"], np.repeat(255 - ink[..., None], 3, 2))


@pytest.mark.parametrize(
    ("choice", "keys"),
    [
        ({"categories": ["zebra", "cat"], "limit": 1}, ["cat/1000", "zebra/2000"]),
        ({"recognized": False, "limit": 1}, ["aircraft carrier/1", "cat/1001", "zebra/2001"]),
        ({"recognized": True, "categories": ["cat"]}, ["cat/1000", "cat/1002"]),
    ],
)
@pytest.mark.parametrize("layout", ["ndjson", "compact"])
def test_choices(
    layout: str, choice: dict[str, Any], keys: list[str], request: pytest.FixtureRequest
) -> None:
    data = QuickDraw(request.getfixturevalue(layout), STYLE, keep, **choice)
    assert data.categories == tuple(sorted(choice.get("categories", CATEGORIES)))
    assert sorted(data[index]["key"] for index in range(len(data))) == keys
    for index in range(len(data)):
        sample = data[index]
        assert sample["key"].startswith(data.categories[sample["label"]] + "/")


def test_splits_of_the_compact_layout(tmp_path: Path) -> None:
    folder = write_compact(tmp_path, split=True)
    assert len(QuickDraw(folder, STYLE, split="train")) == 9
    data = QuickDraw(folder, STYLE, keep, split="valid")
    assert [data[i]["key"] for i in range(3)] == ["zebra/2003", "aircraft carrier/3", "cat/1003"]
    with pytest.raises(ValueError, match="no split 'test', expected one of train, valid"):
        QuickDraw(folder, split="test")


def test_limit_of_bitmaps(bitmaps: Path) -> None:
    data = QuickDraw(bitmaps, transform=keep, limit=3, categories=["cat"])
    assert [data[i]["key"] for i in range(len(data))] == ["cat/0", "cat/1", "cat/2"]


@pytest.mark.parametrize("layout", ["ndjson", "compact", "bitmaps"])
@pytest.mark.parametrize("workers", [0, 2])
def test_loads_in_batches(layout: str, workers: int, request: pytest.FixtureRequest) -> None:
    data = QuickDraw(request.getfixturevalue(layout), STYLE)
    batches = list(DataLoader(data, batch_size=5, num_workers=workers))
    images = torch.cat([batch["image"] for batch in batches])
    side = 28 if layout == "bitmaps" else 40
    assert images.shape == (12, 3, side, side)
    assert images.min() >= -1
    assert images.max() == 1
    assert torch.cat([batch["label"] for batch in batches]).tolist() == data.labels.tolist()
    keys = [key for batch in batches for key in batch["key"]]
    assert keys == [data[index]["key"] for index in range(12)]


@pytest.mark.parametrize("layout", ["ndjson", "compact", "bitmaps"])
def test_a_pickled_copy_is_small_and_reads_the_same(
    layout: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(layout)
    if layout == "bitmaps":
        np.save(folder / "cat.npy", np.zeros((5000, 784), np.uint8))
    data = QuickDraw(folder, STYLE, keep)
    pickled = pickle.dumps(data)
    assert len(pickled) < 200_000
    copy = pickle.loads(pickled)
    for index in (0, len(data) - 1):
        np.testing.assert_array_equal(copy[index]["image"], data[index]["image"])


def test_a_style_that_varies_follows_torch(compact: Path) -> None:
    data = QuickDraw(compact, StrokeStyle(40, perturbation=0.5), keep)
    torch.manual_seed(3)
    visits = [data[0]["image"] for _ in range(4)]
    assert len({visit.tobytes() for visit in visits}) == 4
    torch.manual_seed(3)
    np.testing.assert_array_equal(visits[0], data[0]["image"])
    plain = QuickDraw(compact, StrokeStyle(40), keep)
    assert len({plain[0]["image"].tobytes() for _ in range(3)}) == 1


def replaced(folder: Path, line: int, text: str) -> None:
    path = folder / "full_simplified_cat.ndjson"
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"key_id": "1", "drawing": [[[1, 2], [1]]]}', "ValueError"),
        ('{"key_id": "1", "drawing": [[[1, 2], [1, 2]], [[1]]]}', r"shape \[1, 1\]"),
        ('{"key_id": "1", "drawing": [[[1, NaN], [1, 2]]]}', "finite coordinates"),
        ('{"key_id": "1", "drawing": [[[1, "a"], [1, 2]]]}', "could not convert"),
        ('{"key_id": "1", "drawing": []}', "at least one point"),
        ('{"key_id": "1", "drawing": [[[], []]]}', "at least one point"),
        ('{"key_id": "1"}', "KeyError: 'drawing'"),
        ('{"drawing": [[[1], [2]]]}', "KeyError: 'key_id'"),
        ("[1, 2]", "TypeError"),
        ('{"key_id": "1", "drawing": [[[1', "JSONDecodeError"),
        ("\x00\x01", "JSONDecodeError"),
    ],
)
def test_bad_lines_are_named(text: str, reason: str, ndjson: Path) -> None:
    replaced(ndjson, 3, text)
    data = QuickDraw(ndjson, STYLE)
    with pytest.raises(ValueError, match=rf"simplified_cat\.ndjson, line 3: .*{reason}"):
        data[7]
    assert data[6]["key"] == "cat/1001"
    assert data[8]["key"] == "cat/1003"


@pytest.mark.parametrize("blank", ["", "  \t"])
def test_blank_lines_are_named(blank: str, ndjson: Path) -> None:
    replaced(ndjson, 2, blank)
    with pytest.raises(ValueError, match=r"simplified_cat\.ndjson, line 2: .* a blank line"):
        QuickDraw(ndjson)


def test_lines_without_the_flag_are_named(ndjson: Path) -> None:
    replaced(ndjson, 4, '{"key_id": "1", "drawing": [[[1], [2]]]}')
    assert len(QuickDraw(ndjson)) == 12
    with pytest.raises(ValueError, match=r'cat\.ndjson, line 4: expected "recognized"'):
        QuickDraw(ndjson, recognized=True)


def test_a_file_that_changes_is_noticed(ndjson: Path) -> None:
    data = QuickDraw(ndjson, STYLE)
    replaced(ndjson, 1, json.dumps(record(1, 4)))
    with pytest.raises(ValueError, match=r"cat\.ndjson has changed since .* Build the data set"):
        data[5]
    assert data[0]["key"] == "aircraft carrier/0"
    assert QuickDraw(ndjson, STYLE)[5]["key"] == "cat/1004"


def test_hidden_files_are_no_categories(ndjson: Path) -> None:
    """What macOS packs beside every file of an archive."""
    (ndjson / "._full_simplified_cat.ndjson").write_bytes(b"\0\5\x16\7")
    assert QuickDraw(ndjson).categories == CATEGORIES


def test_hidden_files_are_no_second_layout(bitmaps: Path) -> None:
    expected = QuickDraw(bitmaps).categories
    (bitmaps / "._cat.ndjson").write_bytes(b"\0\5\x16\7")
    (bitmaps / "._cat.npy").write_bytes(b"\0\5\x16\7")
    assert QuickDraw(bitmaps).categories == expected


def test_categories_without_a_drawing_are_told(ndjson: Path) -> None:
    (ndjson / "full_simplified_cat.ndjson").write_text("{\n\n")
    problems = Problems()
    with pytest.warns(UserWarning, match=r"can be read of cat, and they stay among") as told:
        data = QuickDraw(ndjson, problems=problems)
    assert len(told) == 1 and len(problems.found) == 2
    assert data.categories == CATEGORIES and data.labels.tolist() == [0] * 5 + [2] * 3


def test_bitmaps_without_a_drawing_are_told(bitmaps: Path) -> None:
    np.save(bitmaps / "cat.npy", np.zeros((0, 784), np.uint8))
    with pytest.warns(UserWarning, match="can be read of cat, and they stay"):
        assert QuickDraw(bitmaps).categories == CATEGORIES


def test_compact_categories_without_a_drawing_are_told(tmp_path: Path) -> None:
    folder = write_compact(tmp_path)
    edited(folder, lambda text: text.replace(",cat,1,", ",cat,0,"))
    with pytest.warns(UserWarning, match="can be read of cat, and they stay"):
        data = QuickDraw(folder, recognized=True)
    assert data.categories == CATEGORIES and set(data.labels.tolist()) == {0, 2}


def refused(folder: Path, error: type[Exception], message: str, **choice: Any) -> None:
    with pytest.raises(error, match=message):
        QuickDraw(folder, **choice)


def test_missing_files_say_how_to_get_them(ndjson: Path, tmp_path_factory: Any) -> None:
    refused(ndjson / "none", FileNotFoundError, "is no folder. .*storage.googleapis.com")
    empty = tmp_path_factory.mktemp("empty")
    refused(empty, FileNotFoundError, r"expected one of \*\.ndjson, \*\.npy, quickdraw\.csv.*none")
    message = (
        r"dog\.ndjson is missing\. Fetch https://storage.*/simplified/<category>\.ndjson.*gs:/"
    )
    refused(ndjson, FileNotFoundError, message, categories=["cat", "dog"])
    (ndjson / "cat.ndjson").touch()
    refused(ndjson, ValueError, r"cat\.ndjson and .*cat\.ndjson both hold 'cat'\. Keep one")
    (ndjson / "quickdraw.csv").touch()
    refused(ndjson, FileNotFoundError, r"found \*\.ndjson, quickdraw\.csv\. Keep each in a folder")
    (empty / "quickdraw.csv").touch()
    refused(empty, FileNotFoundError, r"quickdraw_strokes\.npz is missing; expected quickdraw\.csv")


def test_choices_that_cannot_be(ndjson: Path) -> None:
    refused(ndjson, ValueError, "have no splits, got split='train'", split="train")
    refused(ndjson, ValueError, "limit must be at least 1, got 0", limit=0)
    refused(ndjson, ValueError, "different categories, at least one", categories=[])
    refused(ndjson, ValueError, "different categories", categories=["cat", "cat"])
    lines = json.dumps(record(1, 1))
    for path in ndjson.glob("*.ndjson"):
        path.write_text(lines)
    refused(ndjson, ValueError, "no drawing in .* recognized=True", recognized=True)


def edited(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "quickdraw.csv"
    path.write_text(change(path.read_text()))


def test_compact_refusals(compact: Path) -> None:
    refused(compact, ValueError, r"quickdraw\.csv has no category dog", categories=["dog", "cat"])
    refused(compact, ValueError, r"no column split; found index, class", split="train")
    whole = (compact / "quickdraw.csv").read_text()
    edited(compact, lambda text: text.replace("\n5,", "\n99,"))
    refused(compact, ValueError, r"quickdraw\.csv, line 7: expected an index below 12, got '99'")
    edited(compact, lambda _: whole.replace("\n5,", "\n-5,"))
    refused(compact, ValueError, r"line 7: .* got '-5'")
    edited(compact, lambda _: whole + "11,cat\n")
    refused(compact, ValueError, r"line 14: expected 5 values, got 2")
    edited(compact, lambda _: whole.replace("class", "word"))
    refused(compact, ValueError, "no column class; found index, word")


def test_bitmap_refusals(bitmaps: Path) -> None:
    refused(bitmaps, ValueError, "do not say which drawings were recognized", recognized=True)
    refused(bitmaps, ValueError, "have no splits", split="train")
    refused(bitmaps, FileNotFoundError, r"numpy_bitmap/<category>\.npy", categories=["dog"])
    path = bitmaps / "cat.npy"
    for array in (np.zeros((3, 28, 28), np.uint8), np.zeros((3, 784))):
        np.save(path, array)
        refused(bitmaps, ValueError, r"cat\.npy: expected bytes \[N, 784\], got")
    np.save(path, np.array([{}]), allow_pickle=True)
    refused(bitmaps, ValueError, r"cat\.npy is no \.npy file, or cut off")
    np.save(path, np.zeros((3, 784), np.uint8))
    path.write_bytes(path.read_bytes()[:-10])
    refused(bitmaps, ValueError, r"cat\.npy is no \.npy file, or cut off")
    path.write_bytes(b"")
    refused(bitmaps, ValueError, r"cat\.npy is no \.npy file, or cut off")


@pytest.mark.skipif(
    "QUICKDRAW_FOLDER" not in os.environ, reason="QUICKDRAW_FOLDER names no folder of Quick, Draw!"
)
def test_the_real_data() -> None:
    data = QuickDraw(os.environ["QUICKDRAW_FOLDER"], STYLE, keep)
    assert len(data.categories) == 345
    assert data.labels.unique().tolist() == list(range(345))
    for index in range(0, len(data), max(1, len(data) // 300)):
        assert data[index]["image"].min() < 128
