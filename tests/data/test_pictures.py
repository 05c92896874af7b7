"""Pictures from folders and lists: labels, instances, keys, splits, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sketchfusion_plugins.data.pictures import (
    NO_INSTANCE,
    Picture,
    PictureDataset,
    by_concept_split,
    instance_number,
    of_categories,
    read_list,
    scan,
    seed_of,
    some_of,
)
from sketchfusion_plugins.images import to_tensor
from sketchfusion_plugins.inference.picture_files import list_pictures


@pytest.fixture
def folder(tmp_path: Path, draw_picture: Callable[..., Path]) -> Path:
    draw_picture(tmp_path / "all" / "pig" / "b.png", (255, 0, 0))
    draw_picture(tmp_path / "all" / "pig" / "a.JPG", (0, 255, 0), (9, 31))
    draw_picture(tmp_path / "all" / "ant" / "c.webp", (0, 0, 255))
    draw_picture(tmp_path / "all" / "ant" / ".hidden.png")
    draw_picture(tmp_path / "all" / ".cache" / "d.png")
    draw_picture(tmp_path / "all" / "loose.png")
    (tmp_path / "all" / "ant" / "notes.txt").write_text("no picture")
    return tmp_path / "all"


def test_scan_is_sorted_and_passes_over_what_is_no_picture(folder: Path) -> None:
    pictures = scan(folder, "")
    assert [(p.category, p.path.name, p.instance) for p in pictures] == [
        ("ant", "c.webp", None),
        ("pig", "a.JPG", None),
        ("pig", "b.png", None),
    ]
    assert [p.path.name for p in of_categories(pictures, ["pig"])] == ["a.JPG", "b.png"]


def test_every_kind_of_picture_that_commands_read_is_found(
    tmp_path: Path, draw_picture: Callable[..., Path]
) -> None:
    kinds = ["bmp", "gif", "jpeg", "jpg", "png", "tif", "tiff", "webp"]
    for kind in kinds:
        draw_picture(tmp_path / "pig" / f"a.{kind}", (200, 30, 60))
    pictures = scan(tmp_path, "")
    assert [picture.path.name for picture in pictures] == [f"a.{kind}" for kind in kinds]
    assert [picture.path for picture in pictures] == list_pictures([tmp_path])
    data = PictureDataset(pictures)
    assert all(data[i]["image"].shape == (3, 14, 20) for i in range(len(kinds)))
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"pig/a.{kind}\n" for kind in kinds))
    assert read_list(listed, tmp_path, "") == pictures


def test_a_picture_that_a_transform_refuses_is_named(
    tmp_path: Path, draw_picture: Callable[..., Path]
) -> None:
    long = draw_picture(tmp_path / "x" / "long.png", size=(4000, 10))
    data = PictureDataset([Picture(long, "x")], transform=partial(to_tensor, size=16))
    with pytest.raises(ValueError, match=r"x/long\.png: an image of 4000 x 10 px vanishes"):
        data[0]


def test_samples(folder: Path) -> None:
    pictures = scan(folder, "", lambda path: path.stem)
    data = PictureDataset(pictures, ["pig", "dog", "ant"], root=folder)
    assert [data[i]["label"] for i in range(3)] == data.labels.tolist() == [2, 0, 0]
    assert [data[i]["key"] for i in range(3)] == ["ant/c.webp", "pig/a.JPG", "pig/b.png"]
    assert [data[i]["instance"] for i in range(3)] == data.instances.tolist()
    assert data[1]["image"].shape == (3, 31, 9)
    torch.testing.assert_close(data[2]["image"][:, 3, 4], torch.tensor([1.0, -1.0, -1.0]))
    assert PictureDataset(pictures).categories == ("ant", "pig")
    assert PictureDataset(pictures)[0]["key"] == (folder / "ant" / "c.webp").as_posix()


def test_transparency_is_white_and_exif_turns(
    tmp_path: Path, draw_picture: Callable[..., Path]
) -> None:
    clear = draw_picture(tmp_path / "x" / "clear.png", (0, 0, 0, 0), mode="RGBA")
    turned = tmp_path / "x" / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(turned, exif=exif)
    data = PictureDataset([Picture(clear, "x"), Picture(turned, "x")])
    assert torch.equal(data[0]["image"], torch.ones(3, 14, 20))
    assert data[1]["image"].shape == (3, 30, 10)


def test_workers_and_pickles_see_the_same(
    folder: Path, same_in_workers: Callable[..., list[Any]]
) -> None:
    data = PictureDataset(
        scan(folder, "", lambda path: path.stem), transform=partial(to_tensor, size=(12, 17))
    )
    batches = same_in_workers(data)
    assert batches[0]["image"].shape == (2, 3, 12, 17)
    assert batches[0]["instance"].dtype == torch.int64
    copy = pickle.loads(pickle.dumps(data))
    assert copy[0]["key"] == data[0]["key"] and torch.equal(copy[2]["image"], data[2]["image"])


def test_instances_agree_between_data_sets(folder: Path) -> None:
    sketch = PictureDataset([Picture(folder / "pig" / "b.png", "pig", "n1")])
    photos = PictureDataset(
        [
            Picture(folder / "pig" / "a.JPG", "pig", "n1"),
            Picture(folder / "ant" / "c.webp", "ant", "n1"),
            Picture(folder / "ant" / "c.webp", "ant"),
        ]
    )
    assert (photos.instances == sketch.instances[0]).tolist() == [True, False, False]
    assert photos[2]["instance"] == NO_INSTANCE == -1


def test_seeds_are_63_bits_and_know_where_parts_end() -> None:
    # SHA-256 of b"abc" starts with ba7816bf 8f01cfea (FIPS 180-2); the last bit is dropped.
    assert seed_of("abc") == 0xBA7816BF8F01CFEA >> 1
    assert seed_of("a", "bc") != seed_of("ab", "c")
    assert seed_of(1, 2) == seed_of("1", "2")
    # A name of one byte that is no UTF-8; sha256(b"\xe9").
    assert seed_of("\udce9") == int(hashlib.sha256(b"\xe9").hexdigest()[:16], 16) >> 1
    assert len({instance_number("a", str(i)) for i in range(1000)}) == 1000


def share_of(name: str, seed: int) -> float:
    """A name's hash, 0..1."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_a_name_is_held_out_by_its_own_hash(fraction: float) -> None:
    names = [f"class {i}" for i in range(20)]
    train, held_out = by_concept_split(names, fraction, seed=3)
    assert held_out == sorted(name for name in names if share_of(name, 3) < fraction)
    assert 2 < len(held_out) < 18, "else the test would show less"
    assert sorted(train + held_out) == sorted(names)
    assert by_concept_split(names[::-1] + names[:4], fraction, seed=3) == (train, held_out)
    assert train == sorted(train) and held_out == sorted(held_out)


@pytest.mark.parametrize(
    ("count", "least", "most"), [(2, 1, 1), (3, 1, 1), (4, 2, 2), (5, 2, 3), (20, 2, 18)]
)
def test_two_names_are_on_either_side_where_there_are_enough(
    count: int, least: int, most: int
) -> None:
    names = [f"class {i}" for i in range(count)]
    for seed in range(20):
        ordered = sorted(names, key=lambda name: share_of(name, seed))
        for fraction, held in ((1e-9, least), (1 - 1e-9, most)):
            assert by_concept_split(names, fraction, seed)[1] == sorted(ordered[:held])


def test_who_was_trained_on_is_not_held_out_when_names_are_added() -> None:
    generator = random.Random(0)
    grown = 0
    for seed in range(300):
        names = [f"{generator.getrandbits(40):x}" for _ in range(50)]
        fraction = generator.choice([0.1, 0.3, 0.5])
        trained: set[str] = set()
        count = 2
        while count <= len(names):
            train, held_out = by_concept_split(names[:count], fraction, seed)
            assert not trained & set(held_out)
            grown += bool(trained)
            # Of two that were left to train on in any case, nothing is promised.
            if len(train) > 2:
                trained |= set(train)
            count += generator.randint(1, 7)
    assert grown > 2000


def test_many_names_are_told_by_the_first_ones() -> None:
    assert some_of({"owl", "ant"}) == "ant, owl"
    assert some_of("cabd", 2) == "a, b, 2 more"


def test_seeds_change_the_split_and_every_name_is_held_out_about_as_often() -> None:
    names = [f"class {i}" for i in range(20)]
    counts = dict.fromkeys(names, 0)
    for seed in range(200):
        for name in by_concept_split(names, 0.2, seed)[1]:
            counts[name] += 1
    # 40 expected, standard deviation 5.7.
    assert min(counts.values()) > 15 and max(counts.values()) < 65


@pytest.mark.parametrize(
    ("names", "fraction"), [(["a", "a"], 0.5), ([], 0.5), ("ab", 0), ("ab", 1)]
)
def test_impossible_splits_are_refused(names: list[str], fraction: float) -> None:
    with pytest.raises(ValueError, match="at least two names and a held-out fraction"):
        by_concept_split(names, fraction)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_keep_their_order_and_blanks(
    encoding: str, tmp_path: Path, draw_picture: Callable[..., Path]
) -> None:
    for name in ("alarm clock/1.png", "ant/2.png"):
        draw_picture(tmp_path / "png" / name)
    listed = tmp_path / "list.txt"
    lines = "png/ant/2.png 17\n\npng/alarm clock/1.png 0\npng/alarm clock/1.png\n"
    listed.write_text(lines, encoding=encoding)
    pictures = read_list(listed, tmp_path, "", lambda path: path.stem)
    assert [(p.category, p.instance) for p in pictures] == [
        ("ant", "2"),
        ("alarm clock", "1"),
        ("alarm clock", "1"),
    ]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("../ant/2.png 1", ValueError, "line 1: expected folder/<category>/<picture>"),
        ("/ant/2.png", ValueError, "line 1"),
        ("ant/2.txt", ValueError, "line 1"),
        ("2.png", ValueError, "line 1"),
        ("\n\n", ValueError, "names no picture. Get it"),
        ("ant/3.png 1", FileNotFoundError, "3.png is missing, named by .*list.txt. Get it"),
    ],
)
def test_bad_lists_are_refused(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(error, match=message):
        read_list(tmp_path / "list.txt", tmp_path, "Get it.")


def test_bad_input_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing\. Get it"):
        scan(tmp_path / "nowhere", "Get it.")
    with pytest.raises(FileNotFoundError, match=r"list\.txt is missing\. Get it"):
        read_list(tmp_path / "list.txt", tmp_path, "Get it.")
    (tmp_path / "empty" / "ant").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds no picture .*Get it"):
        scan(tmp_path / "empty", "Get it.")
    with pytest.raises(ValueError, match="at least one picture"):
        PictureDataset([])
    with pytest.raises(ValueError, match=r"without \['ant'\]"):
        PictureDataset(scan(folder, ""), ["pig"])
    with pytest.raises(ValueError, match="3 names, 2 of them distinct"):
        PictureDataset(scan(folder, ""), ["pig", "ant", "ant"])
    with pytest.raises(ValueError, match="not in the subpath"):
        PictureDataset(scan(folder, ""), root=tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="must not be empty"):
        Picture(folder, "pig", "")
