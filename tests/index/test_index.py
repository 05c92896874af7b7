"""An index folder in one process: search, growth, errors, damage."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

pytest.importorskip("faiss")

from sketchfusion_plugins.index import IndexWriter, SketchIndex, approximation, writer
from sketchfusion_plugins.index.manifest import Manifest, StoredFile

KINDS = ["flat", "ivf", "hnsw"]  # "ivfpq" learns from 256 rows at least and has tests of its own
DIM = 16


@pytest.fixture
def small_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Structures from 200 rows on, so that tests stay small."""
    monkeypatch.setattr(approximation, "MINIMUM_ROWS", 200)


def make_vectors(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


def fill(folder: Path, kind: Any, vectors: np.ndarray, batch: int) -> None:
    with IndexWriter.create(folder, DIM, kind) as index:
        for start in range(0, len(vectors), batch):
            rows = range(start, min(start + batch, len(vectors)))
            index.add(vectors[rows], [f"k{row}" for row in rows], [{"row": row} for row in rows])
            index.commit()


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosine = (
        queries
        @ vectors.T
        / np.linalg.norm(queries, axis=1)[:, None]
        / np.linalg.norm(vectors, axis=1)
    )
    order = np.argsort(-cosine, axis=1)[:, :k]
    return np.take_along_axis(cosine, order, 1), order


@pytest.mark.usefixtures("small_structures")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [37, 250, 1000])
def test_search_equals_brute_force(kind: str, batch: int, tmp_path: Path) -> None:
    vectors, queries = make_vectors(1000), make_vectors(9, seed=1)
    fill(tmp_path, kind, vectors, batch)
    index = SketchIndex.open(tmp_path)
    index.verify()
    assert (index.manifest.approximation is None) is (kind == "flat")
    scores, rows = exact(vectors, queries, 7)
    found = index.search(queries, 7, effort=1000)
    for row in range(9):
        assert [hit.key for hit in found[row]] == [f"k{number}" for number in rows[row]]
        assert [hit.metadata["row"] for hit in found[row]] == rows[row].tolist()
        assert [hit.score for hit in found[row]] == pytest.approx(scores[row].tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_small_indexes_of_any_kind_are_exact(kind: str, tmp_path: Path) -> None:
    vectors = make_vectors(5)
    fill(tmp_path, kind, vectors, 5)
    index = SketchIndex.open(tmp_path)
    assert index.manifest.approximation is None
    scores, rows = index.search_rows(vectors * 50, 99)
    expected = exact(vectors, vectors, 5)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_allclose(scores, expected[0], atol=1e-6)
    assert [len(hits) for hits in index.search(vectors, 99)] == [5] * 5


@pytest.mark.usefixtures("small_structures")
@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_little_effort_may_miss_items_but_invents_none(kind: str, tmp_path: Path) -> None:
    vectors = make_vectors(600)
    fill(tmp_path, kind, vectors, 600)
    index = SketchIndex.open(tmp_path)
    scores, rows = index.search_rows(vectors[:20], 500, effort=1)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query in range(20):
        found = rows[query][rows[query] >= 0]
        assert len(set(found.tolist())) == len(found)
        np.testing.assert_allclose(
            scores[query][: len(found)], unit[found] @ unit[query], atol=1e-5
        )
    hits = index.search(vectors[:20], 500, effort=1)
    assert [len(row) for row in hits] == (rows >= 0).sum(1).tolist()
    if kind != "hnsw":
        assert (rows == -1).any()


@pytest.mark.usefixtures("small_structures")
def test_quantised_vectors_answer_with_exact_scores_in_a_fraction_of_the_space(
    tmp_path: Path,
) -> None:
    vectors = make_vectors(4000)
    for kind in ("ivf", "ivfpq"):
        fill(tmp_path / kind, kind, vectors, 1000)
    index = SketchIndex.open(tmp_path / "ivfpq")
    assert len(index.manifest.shards) > 0
    scores, rows = index.search_rows(vectors[:100], 5, effort=500)
    expected_scores, expected_rows = exact(vectors, vectors[:100], 5)
    # Every list is probed: what is missed, quantisation has hidden from the best 100.
    found = [len(set(a) & set(b)) for a, b in zip(rows, expected_rows, strict=True)]
    assert np.mean(found) / 5 > 0.9
    assert (rows[:, 0] == np.arange(100)).all()
    np.testing.assert_allclose(scores[:, 0], expected_scores[:, 0], atol=1e-5)
    sizes = [
        SketchIndex.open(tmp_path / kind).manifest.approximation.file.size  # type: ignore[union-attr]
        for kind in ("ivf", "ivfpq")
    ]
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize(("dim", "expected"), [(256, 64), (192, 48), (130, 26), (7, 1), (1, 1)])
def test_codes_divide_vectors_evenly(dim: int, expected: int) -> None:
    assert approximation.code_bytes(dim) == expected


def test_tensors_and_arrays_of_any_length_and_precision(tmp_path: Path) -> None:
    vectors = torch.randn(8, DIM, generator=torch.Generator().manual_seed(0)) * 1e15
    keys = [f"drawings/žlutý kůň {row}\u2028.png" for row in range(8)]
    with IndexWriter.create(tmp_path, DIM) as index:
        index.add(vectors.double().requires_grad_(), keys)
    index = SketchIndex.open(tmp_path)
    found = index.search(vectors.bfloat16() / 1e20, 1)
    assert [hits[0].key for hits in found] == keys
    assert [key for key, _ in index.items()] == keys
    assert found[0][0].metadata == {}
    assert index.search(torch.zeros(0, DIM)) == []


def test_shards_are_merged_like_the_digits_of_a_counter(tmp_path: Path) -> None:
    vectors = make_vectors(16)
    with IndexWriter.create(tmp_path, DIM) as index:
        for row in range(13):
            index.add(vectors[row : row + 1], [str(row)])
            index.commit()
    reader = SketchIndex.open(tmp_path)
    assert [shard.rows for shard in reader.manifest.shards] == [8, 4, 1]
    assert reader.manifest.generation == 13
    assert [key for key, _ in reader.items()] == [str(row) for row in range(13)]
    unit = vectors[:13] / np.linalg.norm(vectors[:13], axis=1, keepdims=True)
    np.testing.assert_allclose(np.concatenate([*reader.vectors()]), unit, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([*reader.vectors(9)]), unit[9:], atol=1e-6)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "current.json",
        "write.lock",
        *(file.name for file in reader.manifest.files),
    }


def test_large_shards_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LARGEST_MERGED_ROWS", 4)
    fill(tmp_path, "flat", make_vectors(24), 6)
    first = SketchIndex.open(tmp_path)
    assert [shard.rows for shard in first.manifest.shards] == [6, 6, 6, 6]
    np.testing.assert_array_equal(first.search_rows(make_vectors(24), 1)[1][:, 0], range(24))


@pytest.mark.parametrize(
    ("limit", "value"), [("LARGEST_MERGED_BYTES", 4 * DIM * 4), ("LARGEST_MERGED_ROWS", 4)]
)
def test_merging_makes_no_larger_shard_than_the_limit(
    limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, limit, value, raising=False)
    vectors = make_vectors(16)
    with IndexWriter.create(tmp_path / "ones", DIM) as index:
        for row in range(13):
            index.add(vectors[row : row + 1], [str(row)])
            index.commit()
    reader = SketchIndex.open(tmp_path / "ones")
    assert [shard.rows for shard in reader.manifest.shards] == [4, 4, 4, 1]
    np.testing.assert_array_equal(reader.search_rows(vectors[:13], 1)[1][:, 0], range(13))
    # Each is smaller than the one before, so the last could take all of them with it.
    with IndexWriter.create(tmp_path / "falling", DIM) as index:
        for start, stop in ((0, 4), (4, 7), (7, 9), (9, 13)):
            index.add(vectors[start:stop], [str(row) for row in range(start, stop)])
            index.commit()
    reader = SketchIndex.open(tmp_path / "falling")
    assert [shard.rows for shard in reader.manifest.shards] == [4, 3, 2, 4]


@pytest.mark.usefixtures("small_structures")
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_structures_are_extended_when_enough_rows_came(kind: str, tmp_path: Path) -> None:
    vectors = make_vectors(5000)
    covered, trained = [], []
    with IndexWriter.create(tmp_path, DIM, kind) as index:  # type: ignore[arg-type]
        for start, stop in (
            (0, 199),
            (199, 200),
            (200, 399),
            (399, 400),
            (400, 4000),
            (4000, 4399),
        ):
            index.add(vectors[start:stop], [str(row) for row in range(start, stop)])
            index.commit()
            structure = index.manifest.approximation
            covered.append(structure.rows if structure else 0)
            trained.append(structure.trained_rows if structure else 0)
    assert covered == [0, 200, 200, 400, 4000, 4000]
    if kind == "ivf":
        assert trained == [0, 200, 200, 200, 4000, 4000]
    reader = SketchIndex.open(tmp_path)
    _, rows = reader.search_rows(vectors[:4399], 1, effort=500)
    assert (rows[:, 0] == np.arange(4399)).mean() > 0.999


def test_an_open_index_keeps_its_generation(tmp_path: Path) -> None:
    vectors = make_vectors(40)
    fill(tmp_path, "flat", vectors[:3], 3)
    old = SketchIndex.open(tmp_path)
    for start in range(3, 40, 3):
        with IndexWriter.open(tmp_path) as index:
            stop = min(start + 3, 40)
            index.add(vectors[start:stop], [f"k{row}" for row in range(start, stop)])
    assert len(old) == 3
    assert [hits[0].key for hits in old.search(vectors[:3], 1)] == ["k0", "k1", "k2"]
    assert len(SketchIndex.open(tmp_path)) == 40


@pytest.mark.parametrize("step", ["size", "safetensors", "torch"])
def test_a_reader_between_two_generations_gets_the_newer(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "flat", make_vectors(3), 3)
    stale = Manifest.read(tmp_path)
    with IndexWriter.open(tmp_path) as index:
        index.add(make_vectors(9, seed=2), [f"new{row}" for row in range(9)])
    answers = [stale]
    real = Manifest.read.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Manifest,
        "read",
        classmethod(lambda cls, folder: answers.pop() if answers else real(cls, folder)),
    )
    if step != "size":
        # The files vanish after their sizes were looked at.
        monkeypatch.setattr(StoredFile, "check_size", lambda *_: None)
    if step == "torch":
        load = safetensors.torch.load_file

        def load_after_open(path: Path) -> Any:
            if not path.exists():
                raise RuntimeError("unable to open file in read-only mode")
            return load(path)

        monkeypatch.setattr(safetensors.torch, "load_file", load_after_open)
    assert len(SketchIndex.open(tmp_path)) == 12


def test_errors_in_the_block_discard_what_was_not_committed(tmp_path: Path) -> None:
    vectors = make_vectors(4)

    def add_half() -> None:
        with IndexWriter.create(tmp_path, DIM) as index:
            index.add(vectors[:2], ["a", "b"])
            index.commit()
            index.add(vectors[2:], ["c", "d"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_half()
    with IndexWriter.open(tmp_path) as index:
        assert len(index) == 2
        assert "b" in index
        assert "c" not in index
        index.add(vectors[2:], ["c", "d"])
        assert "c" in index
        assert len(index) == 4
    assert len(SketchIndex.open(tmp_path)) == 4


def test_a_full_disk_leaves_the_former_generation_and_what_was_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = make_vectors(4)
    fill(tmp_path, "flat", vectors[:2], 2)
    with IndexWriter.open(tmp_path) as index:
        index.add(vectors[2:], ["c", "d"])

        def fail(*_: Any) -> None:
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(writer, "write_safetensors", fail)
            with pytest.raises(OSError, match="No space left"):
                index.commit()
        assert len(SketchIndex.open(tmp_path)) == 2
        index.commit()
    assert len(SketchIndex.open(tmp_path)) == 4


def test_empty_index(tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path, DIM):
        pass
    index = SketchIndex.open(tmp_path)
    assert len(index) == 0
    assert index.search(make_vectors(2), 5) == [[], []]


def test_second_writer_is_refused(tmp_path: Path) -> None:
    index = IndexWriter.create(tmp_path, DIM)
    with pytest.raises(BlockingIOError, match="another writer has the index"):
        IndexWriter.open(tmp_path)
    index.close()
    with pytest.raises(ValueError, match="closed"):
        index.add(make_vectors(1), ["a"])
    with pytest.raises(ValueError, match="closed"):
        index.commit()
    IndexWriter.open(tmp_path).close()


def test_what_interrupted_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, "flat", make_vectors(3), 3)
    left = [
        "vectors-000009.safetensors",
        "items-000009.jsonl",
        "approximation-000009.faiss",
    ]
    theirs = ["notes.txt", "vectors.safetensors", "items-1.jsonl", ".hidden.tmp"]
    for name in (*left, *theirs):
        (tmp_path / name).write_bytes(b"x")
    folders = ["thesis.unfinished", "deep/.thesis.unfinished"]
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    SketchIndex.open(tmp_path).verify()
    assert all((tmp_path / name).exists() for name in left)
    IndexWriter.open(tmp_path).close()
    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in (*theirs, *folders))
    SketchIndex.open(tmp_path).verify()


def test_another_model_is_refused(tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path, DIM, model="tiny@1a2b"):
        pass
    message = r"built with the model 'tiny@1a2b', you use 'base@9f'"
    with pytest.raises(ValueError, match=message):
        SketchIndex.open(tmp_path, model="base@9f")
    with pytest.raises(ValueError, match=message):
        IndexWriter.open(tmp_path, model="base@9f")
    assert SketchIndex.open(tmp_path, model="tiny@1a2b").manifest.model == "tiny@1a2b"
    assert len(SketchIndex.open(tmp_path)) == 0


def test_no_index_or_one_already(tmp_path: Path) -> None:
    for call in (SketchIndex.open, IndexWriter.open):
        with pytest.raises(FileNotFoundError, match=r"holds no index.*sketchfusion index build"):
            call(tmp_path / "nothing")
    with IndexWriter.create(tmp_path, DIM):
        pass
    with pytest.raises(FileExistsError, match=r"holds an index already.*IndexWriter\.open"):
        IndexWriter.create(tmp_path, DIM)
    with pytest.raises(ValueError, match="one of flat, ivf, ivfpq, hnsw, got 'tree'"):
        IndexWriter.create(tmp_path / "b", DIM, "tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one dimension, got 0"):
        IndexWriter.create(tmp_path / "b", 0)


@pytest.mark.parametrize(
    ("vectors", "keys", "metadata", "message"),
    [
        (make_vectors(2)[:, :5], ["a", "b"], None, r"\[N, 16\], got \[2, 5\]"),
        (make_vectors(2)[0], ["a"], None, r"\[N, 16\], got \[16\]"),
        (np.zeros((1, DIM)), ["a"], None, "1 of 1 vectors are zero or not finite"),
        (make_vectors(2) * [[1], [np.nan]], ["a", "b"], None, "the first is row 1"),
        (make_vectors(2), ["a"], None, "2 vectors, 1 keys and 1 mappings"),
        (make_vectors(2), ["a", "b"], [{}], "2 keys and 1 mappings"),
        (make_vectors(2), ["a", ""], None, "texts and not empty, got ''"),
        (make_vectors(2), ["a", 3], None, "texts and not empty, got 3"),
        (make_vectors(2), ["a", "a"], None, "the key 'a' is in the index already"),
        (make_vectors(2), ["a", "known"], None, "the key 'known' is in the index already"),
        (make_vectors(2), ["a", "collected"], None, "'collected' is in the index already"),
        (make_vectors(1), ["a"], [{"x": object()}], "metadata of 'a' cannot be written as JSON"),
        (make_vectors(1), ["a"], [{"x": float("nan")}], "metadata of 'a' cannot"),
    ],
)
def test_bad_additions_add_nothing(
    vectors: Any, keys: Any, metadata: Any, message: str, tmp_path: Path
) -> None:
    with IndexWriter.create(tmp_path, DIM) as index:
        index.add(make_vectors(1), ["known"])
        index.commit()
        index.add(make_vectors(1), ["collected"])
        with pytest.raises(ValueError, match=message):
            index.add(vectors, keys, metadata)
        assert len(index) == 2
    assert [key for key, _ in SketchIndex.open(tmp_path).items()] == ["known", "collected"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": np.ones((1, 3))}, r"\[N, 16\], got \[1, 3\]"),
        ({"k": 0}, "k and effort of at least 1, got 0 and None"),
        ({"effort": 0}, "got 10 and 0"),
    ],
)
def test_bad_searches(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    fill(tmp_path, "flat", make_vectors(3), 3)
    index = SketchIndex.open(tmp_path)
    with pytest.raises(ValueError, match=message):
        index.search(**{"vectors": make_vectors(1), **options})
    with pytest.raises(IndexError, match="row of 0 to 2, got 3"):
        index.item(3)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # still valid as JSON and as a number
    path.write_bytes(content)


@pytest.mark.usefixtures("small_structures")
@pytest.mark.parametrize("pattern", ["vectors-*", "items-*", "approximation-*"])
def test_damaged_files_are_noticed(pattern: str, tmp_path: Path) -> None:
    fill(tmp_path, "ivf", make_vectors(300), 300)
    path = next(tmp_path.glob(pattern))
    content = path.read_bytes()
    damage = r"the index .* is damaged: {}.*build it anew"

    flip(path)
    with pytest.raises(OSError, match=damage.format(f"{path.name} does not have the SHA-256")):
        SketchIndex.open(tmp_path).verify()
    if not pattern.startswith("approximation"):
        # What is merged must not get a new checksum.
        with (
            pytest.raises(OSError, match="SHA-256"),
            IndexWriter.open(tmp_path) as index,
        ):
            index.add(make_vectors(400, seed=1), [f"new{row}" for row in range(400)])
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=damage.format(f"{path.name} has .* bytes instead of")):
        SketchIndex.open(tmp_path)
    path.write_bytes(b"\0" * len(content))
    with pytest.raises(OSError, match=r"damaged|FAISS cannot read"):
        SketchIndex.open(tmp_path).search(make_vectors(5), 3)
    path.unlink()
    with pytest.raises(OSError, match=damage.format(f".*{path.name}.* is missing")):
        SketchIndex.open(tmp_path)
    path.write_bytes(content)
    SketchIndex.open(tmp_path).verify()


@pytest.mark.usefixtures("small_structures")
@pytest.mark.parametrize("error", [FileNotFoundError("gone"), OSError(errno.ESTALE, "stale")])
def test_a_structure_that_a_commit_removes_meanwhile_is_looked_for_anew(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.index import reader

    fill(tmp_path, "ivf", make_vectors(400), 400)
    read, asked = reader.read_structure, []

    def removed_at_first(path: Path, mapped: bool) -> Any:
        asked.append(path)
        if len(asked) == 1:
            with IndexWriter.open(tmp_path) as index:
                index.add(make_vectors(400, seed=1), [f"new{row}" for row in range(400)])
            raise error
        return read(path, mapped)

    monkeypatch.setattr(reader, "read_structure", removed_at_first)
    assert len(SketchIndex.open(tmp_path)) == 800
    assert asked[-1] != asked[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"rows": 3', '"rows": 4'),
        lambda text: text.replace('"kind": "flat"', '"kind": "none"'),
        lambda text: text.replace('"vectors-000001.safetensors"', '"../../secret.safetensors"'),
        lambda text: text.replace('"dim": 16', '"width": 16'),
        lambda text: text.replace('"shards"', '"parts"'),
    ],
)
def test_damaged_pointer(change: Any, tmp_path: Path) -> None:
    fill(tmp_path, "flat", make_vectors(3), 3)
    path = tmp_path / "current.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(OSError, match="is damaged"):
        SketchIndex.open(tmp_path)


def test_newer_format_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "flat", make_vectors(3), 3)
    path = tmp_path / "current.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(OSError, match="Update this package"):
        SketchIndex.open(tmp_path)


def test_without_faiss_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "flat", make_vectors(3), 3)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install .*\[tasks\]"):
        SketchIndex.open(tmp_path).search(make_vectors(1))
