"""Merged indexes against one that was built from everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("faiss")

from sketchfusion_plugins.index import IndexWriter, SketchIndex, approximation, merging
from sketchfusion_plugins.index.manifest import tell_apart
from sketchfusion_plugins.index.merging import begin_like, merge_indexes

DIM = 16


@pytest.fixture(autouse=True)
def small_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximation, "MINIMUM_ROWS", 200)


def _vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


def _keys(prefix: str, rows: int) -> list[str]:
    return [f"{prefix}/{row}" for row in range(rows)]


def _extend(folder: Path, vectors: np.ndarray, prefix: str, batch: int = 1000) -> None:
    with IndexWriter.open(folder) as index:
        keys = _keys(prefix, len(vectors))
        for start in range(0, len(vectors), batch):
            rows = slice(start, start + batch)
            details = [{"from": prefix}] * len(keys[rows])
            index.add(vectors[rows], keys[rows], details)
            index.commit()


def _build(folder: Path, kind: Any, vectors: np.ndarray, prefix: str) -> Path:
    IndexWriter.create(folder, DIM, kind, "m").close()
    _extend(folder, vectors, prefix)
    return folder


def _answers(folder: Path, effort: int | None = None) -> list[Any]:
    index = SketchIndex.open(folder, "m")
    index.verify()
    return index.search(_vectors(25, 99), 9, effort)


@pytest.mark.parametrize("kind", ["flat", "ivf", "ivfpq", "hnsw"])
def test_merged_small_and_flat_indexes_equal_one_of_everything(kind: str, tmp_path: Path) -> None:
    rows = 120 if kind != "flat" else 901
    one, two = _vectors(rows, 1), _vectors(rows // 3, 2)
    parts = [_build(tmp_path / "a", kind, one, "a"), _build(tmp_path / "b", kind, two, "b")]
    merged = merge_indexes(parts, tmp_path / "merged")
    assert merged == (rows + rows // 3, ())
    whole = _build(tmp_path / "whole", kind, one, "a")
    _extend(whole, two, "b")
    assert _answers(tmp_path / "merged") == _answers(whole)
    with IndexWriter.open(tmp_path / "merged", "m") as index:
        assert "a/0" in index and "b/3" in index
        index.add(_vectors(1, 5), ["new"])
    assert len(SketchIndex.open(tmp_path / "merged")) == merged.rows + 1


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_shared_lists_are_joined_and_answer_as_one_index(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximation, "NUMBERS_PER_BYTE", 8)  # seconds of k-means for each byte
    one, two, three = _vectors(830, 1), _vectors(700, 2), _vectors(90, 3)
    parts = [_build(tmp_path / "a", kind, one, "a")]
    for name, vectors in (("b", two), ("c", three)):
        begin_like(parts[0], tmp_path / name)
        assert len(SketchIndex.open(tmp_path / name)) == 0
        _extend(tmp_path / name, vectors, name)
        parts.append(tmp_path / name)
    joined: list[int] = []
    join = merging.join_lists
    monkeypatch.setattr(
        merging,
        "join_lists",
        lambda structure, other: (joined.append(other.ntotal), join(structure, other)),
    )
    assert merge_indexes(parts, tmp_path / "merged").rows == 1620
    assert joined == [700], "the second's lists were joined, the third is too small to have any"
    whole = Path(tmp_path / "whole")
    begin_like(parts[0], whole)
    with IndexWriter.open(whole) as index:
        for name, vectors in (("a", one), ("b", two), ("c", three)):
            index.add(vectors, _keys(name, len(vectors)), [{"from": name}] * len(vectors))
    for effort in (1, 5, 500):
        assert _answers(tmp_path / "merged", effort) == _answers(whole, effort)
    manifest = SketchIndex.open(tmp_path / "merged").manifest
    assert manifest.approximation is not None
    assert manifest.approximation.rows == 1620


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("sizes", [(700, 900), (900, 20)])
def test_structures_learned_apart_miss_nothing_when_all_is_searched(
    kind: str, sizes: tuple[int, int], tmp_path: Path
) -> None:
    one, two = _vectors(sizes[0], 1), _vectors(sizes[1], 2)
    parts = [_build(tmp_path / "a", kind, one, "a"), _build(tmp_path / "b", kind, two, "b")]
    merge_indexes(parts, tmp_path / "merged")
    index = SketchIndex.open(tmp_path / "merged")
    index.verify()
    assert index.manifest.approximation is not None
    found = index.search(np.concatenate([one, two]), 1, effort=2000)
    expected = _keys("a", sizes[0]) + _keys("b", sizes[1])
    assert [hits[0].key for hits in found] == expected
    assert [hits[0].metadata["from"] for hits in found] == [key[0] for key in expected]


def test_lists_are_learned_anew_where_many_were_learned_apart(tmp_path: Path) -> None:
    vectors = _vectors(1250, 1)
    parts = [
        _build(tmp_path / name, "ivf", vectors[250 * number :][:250], name)
        for number, name in enumerate("abcde")
    ]
    merge_indexes(parts, tmp_path / "merged")
    found = SketchIndex.open(tmp_path / "merged").manifest.approximation
    assert found is not None
    assert (found.rows, found.trained_rows) == (1250, 1250)
    whole = tmp_path / "whole"
    with IndexWriter.create(whole, DIM, "ivf", "m") as index:
        keys = [key for name in "abcde" for key in _keys(name, 250)]
        index.add(vectors, keys, [{"from": key[0]} for key in keys])
    assert _answers(tmp_path / "merged", 3) == _answers(whole, 3)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_of_a_key_in_several_indexes_the_first_vector_is_kept(kind: str, tmp_path: Path) -> None:
    one, two = _vectors(300, 1), _vectors(250, 2)
    a = _build(tmp_path / "a", kind, one, "same")
    b = _build(tmp_path / "b", kind, two, "same")
    _extend(b, one[:3] * -1, "b")
    with pytest.raises(ValueError, match=r"250 key\(s\) .*same/0, same/1"):
        merge_indexes([a, b], tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()
    merged = merge_indexes([a, b], tmp_path / "merged")
    assert merged == (303, tuple(_keys("same", 250)))
    index = SketchIndex.open(tmp_path / "merged")
    index.verify()
    hits = index.search(np.concatenate([one[:5], -one[:3]]), 1, effort=500)
    assert [hit[0].key for hit in hits] == [*_keys("same", 5), *_keys("b", 3)]


def test_models_that_differ_are_told_by_what_differs(tmp_path: Path) -> None:
    one = {"name": "tiny", "weights": "pretrained", "size": 128, "fingerprint": "1a"}
    other = {"name": "hog", "weights": "pretrained", "size": 128, "fingerprint": "2b", "v": ""}
    for name, model in (("a", one), ("b", other)):
        IndexWriter.create(tmp_path / name, DIM, "flat", json.dumps(model)).close()
    with pytest.raises(ValueError, match="Vectors of different models cannot be") as error:
        merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    told = (
        f"{tmp_path / 'b'} was built with the model (name 'hog', fingerprint '2b', v ''), "
        f"{tmp_path / 'a'} with (name 'tiny', fingerprint '1a', no v)."
    )
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("one", "other"), [("m", '{"a": 1}'), ("[1]", "[2]"), ('{"a": 1}', '{"a":1}'), ("", "null")]
)
def test_models_without_fields_that_differ_are_told_as_they_are(one: str, other: str) -> None:
    assert tell_apart(one, other) == (repr(one), repr(other))


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    a = _build(tmp_path / "a", "flat", _vectors(5, 1), "a")
    IndexWriter.create(tmp_path / "model", DIM, "flat", "other").close()
    IndexWriter.create(tmp_path / "wide", DIM + 1, "flat", "m").close()
    IndexWriter.create(tmp_path / "kind", DIM, "hnsw", "m").close()
    out = tmp_path / "out"
    for other, message in (
        ("model", r"model was built with the model 'other', .*a with 'm'"),
        ("wide", "has dim 17, .* has 16"),
        ("kind", "has kind hnsw, .* has flat"),
        ("a", "at least two different indexes"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_indexes([a, tmp_path / other], out)
    with pytest.raises(ValueError, match="at least two"):
        merge_indexes([], out)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        merge_indexes([a, tmp_path / "nowhere"], out)
    assert not out.exists()
    with pytest.raises(FileExistsError, match="holds an index already"):
        merge_indexes([a, _build(tmp_path / "b", "flat", _vectors(5, 2), "b")], a)
    with pytest.raises(ValueError, match="has learned no lists"):
        begin_like(a, out)


def test_a_merge_that_is_done_outlasts_what_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [_build(tmp_path / name, "flat", _vectors(5, n), name) for n, name in enumerate("ab")]
    write = merging.Manifest.write

    def interrupted(manifest: Any, folder: Path) -> None:
        write(manifest, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(merging.Manifest, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge_indexes(parts, tmp_path / "out")
    assert len(SketchIndex.open(tmp_path / "out")) == 10


@pytest.mark.parametrize("damaged", ["vectors", "items"])
def test_a_damaged_source_gives_no_index(damaged: str, tmp_path: Path) -> None:
    parts = [
        _build(tmp_path / name, "flat", _vectors(5, number), name)
        for number, name in enumerate("ab")
    ]
    (path,) = (tmp_path / "b").glob(f"{damaged}-*")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="damaged"):
        merge_indexes(parts, tmp_path / "out")
    assert not (tmp_path / "out" / "current.json").exists()
    assert {path.name for path in (tmp_path / "out").glob("*")} <= {"write.lock"}
    content[-3] ^= 1
    path.write_bytes(content)
    assert merge_indexes(parts, tmp_path / "out").rows == 10
    named = {file.name for file in SketchIndex.open(tmp_path / "out").manifest.files}
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found - {"write.lock", "current.json"} == named
    assert json.loads((tmp_path / "out" / "current.json").read_text())["model"] == "m"
