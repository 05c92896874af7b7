"""Files of descriptors."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sketchfusion_plugins.inference import descriptor_files
from sketchfusion_plugins.inference.descriptor_files import (
    DescriptorWriter,
    check_target,
    fitting_paths,
    known_paths,
)
from sketchfusion_plugins.problems import Problems, tell

SYSTEM_CALLS = Path("/proc/self/io")
NOT_UTF_8 = "caf\udce9.png"
VALUES = torch.tensor([[0.1, -2.5], [3.0, 1e-7], [0.0, 1.0]])


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.jsonl"
    with DescriptorWriter(path, "model") as writer:
        assert writer.known == frozenset()
        writer.add(["x.png", Path("y.png")], VALUES[:2])
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["path"] for line in lines] == ["x.png", "y.png"]
    assert {line["model"] for line in lines} == {"model"}
    assert torch.equal(torch.tensor([line["descriptor"] for line in lines]), VALUES[:2])
    with DescriptorWriter(path, "model") as writer:
        assert writer.known == {"x.png", "y.png"}
        writer.add(["z\n\u2028.png"], VALUES[2:])
    with DescriptorWriter(path, "model") as writer:
        assert writer.known == {"x.png", "y.png", "z\n\u2028.png"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a full disk at hand")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    with DescriptorWriter(path, "model") as writer:
        writer.add(["x.png"], VALUES[:1])
        held = path.read_bytes()
        with Path("/dev/full").open("wb", buffering=0) as full:
            monkeypatch.setattr(
                writer,
                "_file",
                SimpleNamespace(
                    seek=writer._file.seek, truncate=writer._file.truncate, write=full.write
                ),
            )
            with pytest.raises(OSError, match="No space left") as error:
                writer.add(["y.png"], VALUES[1:2])
        monkeypatch.undo()
        assert tell(error.value) == f"{path}: No space left on device."
    assert path.read_bytes() == held


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_cut_short_by_a_crash_is_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl"
    with DescriptorWriter(path, "model") as writer:
        writer.add(["x.png", "y.png"], VALUES[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with DescriptorWriter(path, "model") as writer:
        assert writer.known == {"x.png"}
        writer.add(["y.png"], VALUES[1:2])
    assert path.read_bytes() == whole


@pytest.mark.skipif(not SYSTEM_CALLS.exists(), reason="Linux alone counts a process's reads")
def test_what_is_there_is_read_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    names = [f"{number}.png" for number in range(100)]
    with DescriptorWriter(path, "model") as writer:
        writer.add(names, torch.rand(100, 256))
    before = _reads()
    assert known_paths(path, "model") == set(names)
    with DescriptorWriter(path, "model") as writer:
        assert writer.known == set(names)
        writer.add(["z.png"], VALUES[:1])
    # Two readings in blocks of the platform's choice; byte by byte it were hundreds of thousands.
    assert _reads() - before < 2 * path.stat().st_size / 512
    assert known_paths(path, "model") == {*names, "z.png"}


def _reads() -> int:
    """Read calls of this process to the operating system."""
    counts = dict(line.split(": ") for line in SYSTEM_CALLS.read_text().splitlines())
    return int(counts["syscr"])


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_a_file_that_stayed_empty_is_removed(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    unlink = Path.unlink

    def unlink_as_there(self: Path, missing_ok: bool = False) -> None:
        # Windows deletes no open file; elsewhere another writer may have it once it is closed.
        assert writer._file is not None and writer._file.closed == (platform == "win32")
        unlink(self, missing_ok)

    monkeypatch.setattr(descriptor_files, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr(Path, "unlink", unlink_as_there)
    with DescriptorWriter(path, "model") as writer:
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a", "model": "other", "descriptor": []}\n', "made by the model other"),
        ('{"name": 3}\n', "line 1 is no descriptor of ours"),
        ("some notes\nof mine\n", "line 1 is no descriptor of ours"),
        ("[1]\n", "line 1 is no descriptor of ours"),
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        DescriptorWriter(path, "model")
    assert path.read_text() == text


@pytest.mark.parametrize("suffix", ["parquet", "safetensors"])
def test_whole_files_appear_at_the_end_or_not_at_all(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"a.{suffix}"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), DescriptorWriter(path, "model") as writer:
        writer.add(["x.png"], VALUES[:1])
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    with DescriptorWriter(path, "model") as writer:
        writer.add(["x.png", "y.png"], VALUES[:2])
        assert path.read_text() == "before"
        writer.add(["z.png"], VALUES[2:])
    assert list(tmp_path.iterdir()) == [path]
    if suffix == "parquet":
        from pyarrow import parquet

        table = parquet.read_table(path)
        assert table.schema.metadata[b"model"] == b"model"
        assert table.to_pydict()["path"] == ["x.png", "y.png", "z.png"]
        assert torch.equal(torch.tensor(table.to_pydict()["descriptor"]), VALUES)
    else:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            assert torch.equal(file.get_tensor("descriptors"), VALUES)
            assert file.metadata() == {
                "paths": '["x.png", "y.png", "z.png"]',
                "model": "model",
            }


def test_refusals_come_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'a\.csv'; valid suffixes: \.jsonl, \.parquet"):
        check_target(tmp_path / "a.csv")
    real = builtins.__import__

    def without_pyarrow(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*parquet.*\.jsonl"):
        DescriptorWriter(tmp_path / "a.parquet", "model")


def test_relative_paths_are_continued_in_their_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, elsewhere = tmp_path / "a.jsonl", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    # As it was written before lines named the folder.
    path.write_text('{"path": "w.png", "model": "model", "descriptor": [1.0, 2.0]}\n')
    with DescriptorWriter(path, "model") as writer:
        writer.add(["x.png", tmp_path / "y.png"], VALUES[:2])
    first, second, third = map(json.loads, path.read_text().splitlines())
    assert second == {**second, "path": "x.png", "folder": str(tmp_path)}
    assert first.keys() == third.keys() == {"path", "model", "descriptor"}
    before = path.read_bytes()
    monkeypatch.chdir(elsewhere)
    message = rf"line 2 names 'x\.png' relative to {tmp_path}, you are in {elsewhere}\. Run the"
    with pytest.raises(ValueError, match=message):
        DescriptorWriter(path, "model")
    with pytest.raises(ValueError, match=message):
        known_paths(path, "model")
    assert path.read_bytes() == before
    monkeypatch.chdir(tmp_path)
    with DescriptorWriter(path, "model") as writer:
        assert writer.known == {"w.png", "x.png", str(tmp_path / "y.png")}


def test_absolute_paths_are_continued_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    with DescriptorWriter(path, "model") as writer:
        writer.add([tmp_path / "x.png"], VALUES[:1])
    monkeypatch.chdir(tmp_path)
    with DescriptorWriter(path, "model") as writer:
        assert writer.known == {str(tmp_path / "x.png")}


def test_names_that_are_not_utf_8_are_told_before_any_work(tmp_path: Path) -> None:
    paths = [Path("x.png"), Path(NOT_UTF_8), Path("y.png")]
    for suffix in ("jsonl", "safetensors"):
        problems = Problems()
        assert fitting_paths(tmp_path / f"a.{suffix}", paths, problems) == paths
        assert problems.found == []
        with DescriptorWriter(tmp_path / f"a.{suffix}", "model") as writer:
            writer.add(paths, VALUES)
    assert known_paths(tmp_path / "a.jsonl", "model") == set(map(str, paths))
    pytest.importorskip("pyarrow")
    path, problems = tmp_path / "a.parquet", Problems()
    assert fitting_paths(path, paths, problems) == [paths[0], paths[2]]
    (line,) = problems.found
    assert line.startswith(f"{NOT_UTF_8}: its path is not UTF-8") and ".jsonl" in line
    with pytest.raises(OSError, match="not UTF-8"):
        fitting_paths(path, paths, Problems(strict=True))
    with DescriptorWriter(path, "model") as writer:
        writer.add(paths[:1], VALUES[:1])
        with pytest.raises(ValueError, match="not UTF-8"):
            writer.add(paths[1:], VALUES[1:])
    from pyarrow import parquet

    assert parquet.read_table(path).to_pydict()["path"] == ["x.png"]


def test_more_paths_than_a_header_holds_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What each character takes in the header, as safetensors itself writes it.
    paths = [Path("plain.png"), Path("\u00e9 \U0001f600.png"), Path('quo"te.png'), Path(NOT_UTF_8)]
    path = tmp_path / "a.safetensors"
    with DescriptorWriter(path, "model") as writer:
        writer.add(paths, torch.zeros(4, 2))
    whole = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr(descriptor_files, "HEADER_REST", 0)
    monkeypatch.setattr(descriptor_files, "LARGEST_HEADER", whole)
    assert fitting_paths(path, paths, Problems()) == paths
    # The rest of this header, which is small, is all that may be between.
    monkeypatch.setattr(descriptor_files, "LARGEST_HEADER", whole - 200)
    with pytest.raises(ValueError, match=r"the paths of 4 pictures take .* \.jsonl or \.parquet"):
        fitting_paths(path, paths, Problems())
    assert fitting_paths(tmp_path / "a.parquet", paths[:3], Problems()) == paths[:3]


def test_what_is_not_refused_does_fit_a_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    # Each path takes its characters, two quotes with two escapes, and a comma with a blank.
    paths = [Path("x" * 999_994)] * 99 + [Path("x" * 998_992)]
    assert fitting_paths(path, paths, Problems()) == paths
    with DescriptorWriter(path, "model" * 10) as writer:
        writer.add(paths, torch.zeros(100, 2))
    assert 99_999_000 < int.from_bytes(path.read_bytes()[:8], "little") < 100_000_000
    path.unlink()
    with pytest.raises(ValueError, match=r"of 100 pictures take 99,999,001 .* at most 99,999,000"):
        fitting_paths(path, [*paths[:-1], Path("x" * 998_993)], Problems())
