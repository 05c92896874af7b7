"""Pictures in an index: interruption, and what the index remembers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from timm.layers import GELU, QuickGELU
from torch import nn

pytest.importorskip("faiss")

from sketchfusion_plugins import preset
from sketchfusion_plugins.features import HogFeatures
from sketchfusion_plugins.index import IndexWriter, SketchIndex
from sketchfusion_plugins.index.merging import merge_indexes
from sketchfusion_plugins.inference import gallery, sharding
from sketchfusion_plugins.inference.gallery import (
    GalleryModel,
    add_pictures,
    is_same_model,
    search_pictures,
)
from sketchfusion_plugins.inference.models import fresh_encoder, open_model
from sketchfusion_plugins.inference.sharding import ProcessReport, Ranks
from sketchfusion_plugins.problems import Problems

SIZE = 64


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = []
    for number in range(10):
        image = Image.new("RGB", (60, 40 + number), "white")
        ImageDraw.Draw(image).line((number, 5, 55 - 4 * number, 35), fill="black", width=3)
        found.append(tmp_path / f"{number}.png")
        image.save(found[-1])
    return found


def _described(model: Any) -> GalleryModel:
    return GalleryModel.of(model, "hog", "pretrained", SIZE)


def _vectors(index: Path) -> np.ndarray:
    return np.concatenate(list(SketchIndex.open(index).vectors()))


@pytest.mark.parametrize(
    ("error", "together", "kept"),
    [
        (RuntimeError, 1, 6),
        (RuntimeError, 4, 6),
        (RuntimeError, 5, 6),
        (RuntimeError, 100, 6),
        (KeyboardInterrupt, 4, 6),
        (KeyboardInterrupt, 100, 6),
    ],
)
def test_what_was_committed_survives_and_a_second_run_goes_on(
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    together: int,
    kept: int,
) -> None:
    model, index = HogFeatures(), tmp_path / "index"
    options: dict[str, Any] = {"batch_size": 2, "together": together, "progress": False}

    described: list[Path] = []
    real = sharding.describe_files

    def dying(*arguments: Any, **settings: Any) -> Iterator[Any]:
        for number, batch in enumerate(real(*arguments, **settings)):
            if number == 3:
                raise error
            yield batch

    monkeypatch.setattr(sharding, "describe_files", dying)
    with pytest.raises(error):
        add_pictures(index, model, _described(model), paths, Problems(), **options)
    assert len(SketchIndex.open(index)) == kept

    def counting(*arguments: Any, **settings: Any) -> Iterator[Any]:
        for part, vectors in real(*arguments, **settings):
            described.extend(part)
            yield part, vectors

    monkeypatch.setattr(sharding, "describe_files", counting)
    result = add_pictures(index, model, _described(model), paths, Problems(), **options)
    assert result == (10 - kept, 10)
    assert described == paths[kept:]
    whole = add_pictures(
        tmp_path / "whole", model, _described(model), paths, Problems(), progress=False
    )
    assert whole == (10, 10)
    np.testing.assert_array_equal(_vectors(index), _vectors(tmp_path / "whole"))


def test_a_strict_failure_keeps_what_was_described_before(
    paths: list[Path], tmp_path: Path
) -> None:
    model, index = HogFeatures(), tmp_path / "index"
    Image.new("RGB", (60, 40), "white").save(paths[6])
    with pytest.raises(OSError, match=rf"{paths[6].name}: its descriptor is zero"):
        add_pictures(
            index,
            model,
            _described(model),
            paths,
            Problems(strict=True),
            batch_size=2,
            progress=False,
        )
    assert [key for key, _ in SketchIndex.open(index).items()] == list(map(str, paths[:6]))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt("out of me")])
def test_an_error_is_told_though_nothing_more_can_be_committed(
    error: BaseException,
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = sharding.describe_files

    def dying(*arguments: Any, **settings: Any) -> Iterator[Any]:
        yield next(real(*arguments, **settings))
        raise error

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharding, "describe_files", dying)
    monkeypatch.setattr(IndexWriter, "commit", full)
    model = HogFeatures()
    with (
        pytest.warns(UserWarning, match="described since the last commit is lost.*No space left"),
        pytest.raises(type(error), match="out of me"),
    ):
        add_pictures(
            tmp_path / "index", model, _described(model), paths, Problems(), progress=False
        )


def test_ctrl_c_before_the_first_picture_makes_no_index(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(*_: Any, **__: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(sharding, "describe_files", dying)
    model, index = HogFeatures(), tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        add_pictures(index, model, _described(model), paths, Problems(), progress=False)
    assert not index.exists()


@dataclass(frozen=True)
class Killed(Ranks):
    """The first of two processes, which are killed when the first has described its share."""

    world_size: int = 2

    def wait(self) -> None:
        pass

    def gather(self, report: ProcessReport) -> list[ProcessReport]:
        raise KeyboardInterrupt


def test_parts_of_a_killed_launch_keep_pictures_of_the_same_relative_name_apart(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, index = HogFeatures(), tmp_path / "index"
    described = _described(model)
    for name, source in (("cats", paths[0]), ("dogs", paths[9])):
        (tmp_path / name).mkdir()
        source.rename(tmp_path / name / "1.png")
    picture = [Path("1.png")]
    monkeypatch.chdir(tmp_path / "cats")
    with pytest.raises(KeyboardInterrupt):
        add_pictures(index, model, described, picture, Problems(), progress=False, ranks=Killed())
    assert len(list(tmp_path.glob("index.rank-*"))) == 1
    monkeypatch.chdir(tmp_path / "dogs")
    add_pictures(index, model, described, picture, Problems(), progress=False)
    assert not list(tmp_path.glob("index.rank-*"))
    whole = tmp_path / "whole"
    add_pictures(whole, model, described, picture, Problems(), progress=False)
    assert [key for key, _ in SketchIndex.open(index).items()] == [str(tmp_path / "dogs" / "1.png")]
    np.testing.assert_array_equal(_vectors(index), _vectors(whole))


def test_parts_of_a_killed_launch_serve_from_another_folder(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, index = HogFeatures(), tmp_path / "index"
    described = _described(model)
    options: dict[str, Any] = {"batch_size": 5, "progress": False}
    monkeypatch.chdir(tmp_path)
    named = [Path(path.name) for path in paths]
    with pytest.raises(KeyboardInterrupt):
        add_pictures(index, model, described, named, Problems(), ranks=Killed(), **options)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for path in paths[:5]:
        path.unlink()  # Their descriptors are in the first's part.
    named = [Path("..", path.name) for path in paths]
    problems = Problems()
    assert add_pictures(index, model, described, named, problems, **options) == (10, 10)
    assert problems.found == []


def test_parts_of_a_model_that_computes_otherwise_are_refused(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, index = open_model("clip:tiny", weights="random"), tmp_path / "index"
    options: dict[str, Any] = {"problems": Problems(), "progress": False}

    def describe() -> GalleryModel:
        return GalleryModel.of(model, "clip:tiny", "random", SIZE)

    with pytest.raises(KeyboardInterrupt):
        add_pictures(index, model, describe(), paths[:3], ranks=Killed(), **options)
    (part,) = tmp_path.glob("index.rank-*")
    with monkeypatch.context() as patch:
        patch.setattr(model.encoder.semantic, "mean", (0.2, 0.2, 0.2))
        with pytest.raises(ValueError, match="was made by the model"):
            add_pictures(index, model, describe(), paths[:3], **options)
    assert part.exists()
    # The same model goes on from there; an index remembers less where an earlier version made it.
    less = replace(describe(), settings="")
    assert add_pictures(index, model, less, paths[:3], **options) == (3, 3)
    assert not part.exists()


def test_hits_are_cosine_neighbours(paths: list[Path], tmp_path: Path) -> None:
    from sketchfusion_plugins.images import open_image, to_tensor

    model, index = HogFeatures(), tmp_path / "index"
    described = _described(model)
    add_pictures(index, model, described, paths, Problems(), progress=False)
    images = torch.stack([to_tensor(open_image(path), SIZE) for path in paths])
    vectors = model.describe(images)
    similarity = vectors @ vectors.T
    found = dict(search_pictures(index, model, described, paths, Problems(), top=3, progress=False))
    assert list(found) == paths
    for number, hits in enumerate(found.values()):
        scores, order = similarity[number].topk(3)
        assert [hit.key for hit in hits] == [str(paths[place]) for place in order.tolist()]
        torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), scores)


def test_the_model_is_remembered(paths: list[Path], tmp_path: Path) -> None:
    model, index = HogFeatures(), tmp_path / "index"
    described = _described(model)
    add_pictures(index, model, described, paths[:1], Problems(), progress=False)
    assert GalleryModel.read(index) == described
    assert isinstance(described.open(), HogFeatures)
    with pytest.raises(ValueError, match="is not the model that the index was built with"):
        described.open(place="pixels")


def test_a_model_that_computes_otherwise_is_refused(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, older = tmp_path / "index", tmp_path / "older"
    model = open_model("tiny", weights="random")
    described = GalleryModel.of(model, "tiny", "random", SIZE)
    for place, by in ((index, described), (older, replace(described, settings=""))):
        add_pictures(place, model, by, paths[:1], Problems(), progress=False)
    monkeypatch.setattr(model.encoder.semantic, "mean", (0.2, 0.2, 0.2))
    other = GalleryModel.of(model, "tiny", "random", SIZE)
    assert other.fingerprint == described.fingerprint
    with pytest.raises(ValueError, match="Descriptors of different models cannot be compared"):
        add_pictures(index, model, other, paths, Problems(), progress=False)
    monkeypatch.setattr(gallery, "open_model", lambda *_, **__: model)
    with pytest.raises(ValueError, match="computes otherwise than when the index was built"):
        GalleryModel.read(index).open()
    # Indexes of versions that did not write it are read as they were.
    assert GalleryModel.read(older).open() is model
    assert add_pictures(older, model, other, paths[:2], Problems(), progress=False) == (1, 2)


def _with_quick_gelu(model: Any) -> Any:
    for part in list(model.modules()):
        if isinstance(getattr(part, "act", None), nn.GELU | GELU):
            part.act = QuickGELU()
    return model


@pytest.mark.parametrize("name", ["clip:tiny", "timm:vit_tiny_patch16_224"])
def test_an_index_of_gelu_is_none_of_quick_gelu(
    name: str, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(model: Any) -> GalleryModel:
        return GalleryModel.of(model, name, "random", 32)

    model, other = (open_model(name, weights="random") for _ in range(2))
    if name.startswith("timm"):
        model.size = other.size = None  # so that small pictures do
    gelu, quick = describe(model), describe(_with_quick_gelu(other))
    assert quick.fingerprint == gelu.fingerprint and quick.settings != gelu.settings
    older = replace(gelu, settings=gelu.settings.partition(".")[0])
    for place, by in (("new", gelu), ("old", older)):
        IndexWriter.create(tmp_path / place, 4, model=str(by)).close()
    with pytest.raises(ValueError, match="Descriptors of different models cannot be compared"):
        add_pictures(tmp_path / "new", other, quick, paths, Problems(), progress=False)
    monkeypatch.setattr(gallery, "open_model", lambda *_, **__: other)
    with pytest.raises(ValueError, match=r"activation \(GELU or QuickGELU\)"):
        GalleryModel.read(tmp_path / "new").open()
    # Indexes of versions that did not write it are read as they were.
    assert GalleryModel.read(tmp_path / "old").open() is other
    assert older.is_like(quick) and older.is_like(gelu) and gelu.is_like(older)


def test_indexes_that_say_more_and_less_of_a_model_are_merged(tmp_path: Path) -> None:
    says = GalleryModel("m", "random", SIZE, "f", "s.gelu")
    models = {
        "says": says,
        "less": replace(says, settings="s"),
        "nothing": replace(says, settings=""),
        "quick": replace(says, settings="s.quick"),
        "moved": replace(says, name="elsewhere"),
        "other": replace(says, fingerprint="another"),
    }
    for number, (place, model) in enumerate(models.items()):
        with IndexWriter.create(tmp_path / place, 4, model=str(model)) as index:
            index.add(np.eye(4)[:1] + number, [place])

    def merge(*places: str) -> int:
        out = tmp_path / "-".join(places)
        sources = [tmp_path / place for place in places]
        return merge_indexes(sources, out, same_model=is_same_model).rows

    assert merge("says", "less", "nothing") == merge("less", "nothing", "quick") == 3
    # The model has another path on another machine.
    assert merge("says", "moved") == 2
    for places in (("says", "quick"), ("less", "says", "quick"), ("says", "other")):
        with pytest.raises(ValueError, match="Vectors of different models cannot be compared"):
            merge(*places)
    assert is_same_model("any text", "any text") and not is_same_model("any text", str(says))


@pytest.mark.parametrize("name", ["hog", "tiny", "sd:tiny", "timm:test_vit"])
def test_folders_of_a_model_s_name_are_not_the_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    model = open_model(name, weights="random")
    described = GalleryModel.of(model, name, "random", SIZE)
    assert described.name == name
    assert type(described.open()) is type(model)


@pytest.mark.parametrize("name", ["mine", "sketchfusion/tiny"])
def test_a_checkpoint_is_found_from_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of a packaged id's name comes before the id, when it is opened and remembered."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fresh_encoder(preset("tiny").replace(weights="random"), seed=3).save_pretrained(name)
    described = GalleryModel.of(open_model(name), name, "pretrained", SIZE)
    assert described.name == str(tmp_path / name)
    monkeypatch.chdir(tmp_path / "elsewhere")
    described.open()


def test_ids_are_remembered_as_they_are() -> None:
    name = "sketchfusion/tiny"
    assert GalleryModel.of(open_model(name), name, "pretrained", SIZE).name == name


@pytest.mark.parametrize("model", ["", "some text", "[]", '{"name": "hog"}'])
def test_indexes_of_others_are_refused(tmp_path: Path, model: str) -> None:
    IndexWriter.create(tmp_path / "index", 4, model=model).close()
    with pytest.raises(ValueError, match="does not say which model made it"):
        GalleryModel.read(tmp_path / "index")
