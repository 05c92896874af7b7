"""Files of descriptors."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sketchfusion_plugins.inference.descriptor_files import (
    DescriptorWriter,
    check_target,
    known_paths,
)

SYSTEM_CALLS = Path("/proc/self/io")
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
