"""Galleries: OpenMoji's and the user's, what they are named by, and that work is not done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sketchfusion_plugins.demo.gallery import (
    LEFT_OUT,
    Gallery,
    draw_concept,
    gallery_concepts,
    openmoji_gallery,
    own_gallery,
)
from sketchfusion_plugins.features import HogFeatures, PixelFeatures
from sketchfusion_plugins.images import open_image, to_tensor
from sketchfusion_plugins.index import Hit, IndexWriter
from sketchfusion_plugins.inference import gallery as inference
from sketchfusion_plugins.inference import sharding
from sketchfusion_plugins.inference.answers import describe
from sketchfusion_plugins.problems import Problems

SIZE = 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat/one.png", "cat/two.png", "dog/one.png")):
        image = Image.new("RGB", (70, 60), "white")
        ImageDraw.Draw(image).line((5, 5 + 9 * number, 65, 55 - 20 * number), "black", 4)
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return tmp_path / "photos"


def _describe(model: Any, image: Image.Image) -> torch.Tensor:
    return describe(model, to_tensor(image, SIZE)[None])[0]


def test_line_drawings_are_searched_and_named_and_colours_shown(
    described: Callable[..., Any],
) -> None:
    model = HogFeatures()
    concepts = gallery_concepts(6)
    gallery = openmoji_gallery(model, described(model, "hog", SIZE), 6)
    assert gallery.title == "6 OpenMoji pictures (CC BY-SA 4.0)"
    keys = [key for key, _ in gallery.index.items()]
    for concept in concepts:
        line = _describe(model, draw_concept(concept, "line", 128))
        (best, *_) = gallery.similar(line, 3)
        assert (gallery.name(best.key), best.score) == (concept.name, pytest.approx(1, abs=1e-4))
        assert gallery.classes(line, 5)[0][0] == concept.name
        keys.remove(best.key)
        shown = np.asarray(open_image(gallery.picture(best.key)))
        np.testing.assert_array_equal(shown, np.asarray(draw_concept(concept, "color", 128)))
    assert keys == []


def test_concepts_are_things_and_spread_evenly() -> None:
    few, more = gallery_concepts(10), gallery_concepts(100_000)
    assert len(few) == 10
    assert len(more) > 900
    assert not LEFT_OUT & {concept.group for concept in more}
    places = np.diff([more.index(concept) for concept in few])
    assert places.max() - places.min() <= 1


def test_a_second_start_describes_nothing(
    described: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PixelFeatures()
    first = openmoji_gallery(model, described(model, "pixels", SIZE), 4)
    counted: list[int] = []
    real = sharding.describe_files

    def counting(model: Any, paths: Any, *rest: Any, **options: Any) -> Any:
        counted.append(len(paths))
        return real(model, paths, *rest, **options)

    monkeypatch.setattr(sharding, "describe_files", counting)
    # As a start leaves it that is killed when the picture has taken its place.
    shown = Path(next(iter(first.shown.values())))
    left = shown.with_name(f".{shown.name}.unfinished")
    left.mkdir()
    second = openmoji_gallery(model, described(model, "pixels", SIZE), 4)
    assert counted == [0]
    assert not left.exists()
    assert list(second.index.items()) == list(first.index.items())


def test_a_cache_that_was_moved(
    described: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = PixelFeatures()
    mine = described(model, "pixels", SIZE)
    monkeypatch.setenv("SKETCHFUSION_CACHE", str(tmp_path / "here"))
    before = openmoji_gallery(model, mine, 3)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setenv("SKETCHFUSION_CACHE", str(tmp_path / "there"))
    moved = openmoji_gallery(model, mine, 3)
    keys = [key for key, _ in moved.index.items()]
    assert len(keys) == 3 and all("/there/" in key for key in keys)
    assert {moved.name(key) for key in keys} == set(before.names.values())


def test_what_was_kept_for_other_pictures_is_not_searched(
    described: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PixelFeatures()
    mine = described(model, "pixels", SIZE)
    before = openmoji_gallery(model, mine, 3)
    more = openmoji_gallery(model, mine, 5)
    monkeypatch.setattr("sketchfusion_plugins.demo.gallery.metadata.version", lambda _: "99")
    newer = openmoji_gallery(model, mine, 3)
    places = [{Path(key).parent for key, _ in found.index.items()} for found in (before, newer)]
    assert places[0].isdisjoint(places[1])
    assert [len(found.index) for found in (before, more, newer)] == [3, 5, 3]


def test_votes_are_the_softmax_of_the_nearest() -> None:
    class Found:
        def search(self, *_: object) -> list[list[Hit]]:
            return [[Hit("a", 0.9, {}), Hit("b", 0.85, {}), Hit("c", 0.8, {})]]

    found: Any = Found()
    gallery = Gallery("", found, {"a": "cat", "c": "cat", "b": "dog"})
    weights = np.exp([2, 1, 0])
    weights /= weights.sum()
    votes = gallery.classes(torch.ones(3), 5)
    assert [name for name, _ in votes] == ["cat", "dog"]
    np.testing.assert_allclose([share for _, share in votes], [weights[[0, 2]].sum(), weights[1]])
    assert len(gallery.classes(torch.ones(3), 1)) == 1


def test_own_pictures_are_named_by_folder_or_by_file(
    folder: Path, described: Callable[..., Any]
) -> None:
    model = HogFeatures()
    gallery = own_gallery(folder, model, described(model, "hog", SIZE))
    assert gallery.title == f"3 pictures of {folder}"
    query = _describe(model, open_image(folder / "dog" / "one.png"))
    key = gallery.similar(query, 1)[0].key
    assert gallery.picture(key) == key == str(folder / "dog" / "one.png")
    assert gallery.classes(query, 1)[0][0] == "dog"
    one = own_gallery(folder / "cat", model, described(model, "hog", SIZE))
    assert {one.name(key) for key, _ in one.index.items()} == {"one", "two"}


def test_pictures_that_changed_since_the_last_start_are_described_anew(
    folder: Path, described: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = HogFeatures()
    mine = described(model, "hog", SIZE)
    added: list[int] = []
    add = inference.add_pictures

    def counting(*arguments: Any) -> tuple[int, int]:
        counts = add(*arguments)
        added.append(counts[0])
        return counts

    monkeypatch.setattr("sketchfusion_plugins.demo.gallery.add_pictures", counting)
    own_gallery(folder, model, mine)
    own_gallery(folder, model, mine)
    one, two = folder / "cat" / "one.png", folder / "cat" / "two.png"
    (folder / "cat" / "three.png").write_bytes(two.read_bytes())
    own_gallery(folder, model, mine)
    assert added == [3, 0, 1]
    one.write_bytes(two.read_bytes())
    query = _describe(model, open_image(one))
    found = {hit.key: hit.score for hit in own_gallery(folder, model, mine).similar(query, 4)}
    assert found[str(one)] == pytest.approx(1, abs=1e-4)
    two.unlink()
    gallery = own_gallery(folder, model, mine)
    assert gallery.title == f"3 pictures of {folder}"
    assert str(two) not in {key for key, _ in gallery.index.items()}


def test_an_index_serves_as_gallery_for_its_own_model_alone(
    folder: Path, tmp_path: Path, described: Callable[..., Any]
) -> None:
    model = HogFeatures()
    mine = described(model, "hog", SIZE)
    paths = sorted(folder.rglob("*.png"))
    inference.add_pictures(tmp_path / "index", model, mine, paths, Problems(), progress=False)
    assert len(own_gallery(tmp_path / "index", model, mine).index) == 3
    for other, name, size in ((PixelFeatures(), "pixels", SIZE), (model, "hog", 96)):
        with pytest.raises(ValueError, match="Start it with --model hog --size 64"):
            own_gallery(tmp_path / "index", other, described(other, name, size))


def test_an_index_whose_pictures_were_moved_is_told(
    folder: Path, tmp_path: Path, described: Callable[..., Any], recwarn: pytest.WarningsRecorder
) -> None:
    model, index = HogFeatures(), tmp_path / "index"
    mine = described(model, "hog", SIZE)
    paths = sorted(folder.rglob("*.png"))
    inference.add_pictures(index, model, mine, paths, Problems(), progress=False)
    for path in paths[:-1]:
        path.unlink()
    own_gallery(index, model, mine)
    assert not [told for told in recwarn if "can be read" in str(told.message)]
    folder.rename(tmp_path / "moved")
    message = rf"none of the 3 pictures of {index} can be read .*\({paths[0]}\).*index build"
    with pytest.warns(UserWarning, match=message):
        gallery = own_gallery(index, model, mine)
    # Names and points are answered as ever.
    query = _describe(model, open_image(tmp_path / "moved" / "dog" / "one.png"))
    assert gallery.classes(query, 1)[0][0] == "dog"


def test_a_folder_without_pictures_is_refused(
    tmp_path: Path, described: Callable[..., Any]
) -> None:
    model = PixelFeatures()
    mine = described(model, "pixels", SIZE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        own_gallery(tmp_path / "empty", model, mine)
    (tmp_path / "empty" / "a.png").write_text("no")
    with pytest.raises(FileNotFoundError, match="none of 1 files is a picture"):
        own_gallery(tmp_path / "empty", model, mine)


def test_pictures_that_changed_are_left_to_who_describes_them(
    folder: Path, described: Callable[..., Any]
) -> None:
    model = HogFeatures()
    mine = described(model, "hog", SIZE)
    index = own_gallery(folder, model, mine).index
    one, two = folder / "cat" / "one.png", folder / "cat" / "two.png"
    one.write_bytes(two.read_bytes())
    with IndexWriter.open(index.folder), pytest.raises(BlockingIOError, match="another writer"):
        own_gallery(folder, model, mine)
    # What is open is searched on, and the next start describes them.
    query = _describe(model, open_image(folder / "dog" / "one.png"))
    assert len(index.search(query[None], 3)[0]) == 3
    again = own_gallery(folder, model, mine)
    assert len(again.index) == 3
    assert len(index.search(query[None], 3)[0]) == 3
    new = {hit.key: hit.score for hit in again.similar(_describe(model, open_image(one)), 3)}
    assert new[str(one)] == pytest.approx(1, abs=1e-4)


def test_what_was_kept_and_damaged_is_described_anew(
    folder: Path, described: Callable[..., Any]
) -> None:
    model = HogFeatures()
    mine = described(model, "hog", SIZE)
    index = own_gallery(folder, model, mine).index
    (vectors,) = index.folder.glob("vectors-*")
    vectors.write_bytes(vectors.read_bytes()[:-4])
    with pytest.warns(UserWarning, match=r"is damaged: vectors-.*The latter is done"):
        assert len(own_gallery(folder, model, mine).index) == 3


def test_pictures_that_cannot_be_read_are_told(folder: Path, described: Callable[..., Any]) -> None:
    model = HogFeatures()
    (folder / "bad.png").write_text("no")
    message = rf"1 picture.* in {folder} cannot be read and are left out, the first: .*bad\.png"
    with pytest.warns(UserWarning, match=message):
        assert len(own_gallery(folder, model, described(model, "hog", SIZE)).index) == 3
