"""Work that several processes share."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sketchfusion_plugins.index import SketchIndex
from sketchfusion_plugins.inference import sharding
from sketchfusion_plugins.inference.descriptor_files import DescriptorWriter
from sketchfusion_plugins.inference.models import open_model
from sketchfusion_plugins.inference.sharding import (
    ProcessReport,
    Ranks,
    describe_together,
    forget_parts,
)
from sketchfusion_plugins.problems import Problems

TINY = ("--model", "tiny", "--weights", "random", "--size", "64", "--batch-size", "3")
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
PATIENCE = 600  # seconds, so that nothing hangs; a busy machine may need minutes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(11):
        pixels = generator.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def _run(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = ["-m", "sketchfusion_plugins", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *command],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("suffix", ["jsonl", pytest.param("safetensors", marks=pytest.mark.slow)])
def test_two_processes_write_the_bytes_of_one(pictures: Path, tmp_path: Path, suffix: str) -> None:
    results: list[Path] = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}" / f"features.{suffix}"
        run = _run(processes, "features", pictures, *TINY, "--out", out, "--json")
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout)["written"] == 11
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        results.append(out)
    if suffix == "jsonl":
        assert results[0].read_bytes() == results[1].read_bytes()
        return
    # safetensors writes the entries of its header in any order.
    found = []
    for path in results:
        with safe_open(path, framework="np") as file:
            found.append((file.metadata(), file.get_tensor("descriptors").tobytes()))
    assert found[0] == found[1]


@pytest.mark.slow
def test_two_processes_build_the_index_of_one(pictures: Path, tmp_path: Path) -> None:
    (pictures / "05.png").write_text("no picture")
    found = []
    for processes, code in ((1, 3), (2, 0)):  # a launcher would take 3 for a crash
        out = tmp_path / f"{processes}.index"
        run = _run(processes, "index", "build", pictures, *TINY, "--out", out, "--json")
        assert run.returncode == code, run.stderr
        assert "05.png" in run.stderr
        index = SketchIndex.open(out)
        found.append((list(index.items()), np.concatenate(list(index.vectors()))))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_the_first_process_tells_what_all_have_skipped(pictures: Path, tmp_path: Path) -> None:
    for number in (1, 4, 10):  # of the first process's share, and of the second's
        (pictures / f"{number:02d}.png").write_text("no picture")
    run = _run(2, "features", pictures, *TINY, "--out", tmp_path / "a.jsonl", "--json")
    assert run.returncode == 0  # a launcher would take 3 for a crash
    assert "FAILED" not in run.stderr
    counts = json.loads(run.stdout)
    assert (counts["written"], counts["skipped"]) == (8, 3)
    told = [line for line in run.stderr.splitlines() if line.startswith("skipped: ")]
    assert [line.split(".png")[0][-2:] for line in told] == ["01", "04", "10"]


@pytest.mark.slow
def test_a_launcher_of_one_process_sees_no_crash(pictures: Path, tmp_path: Path) -> None:
    (pictures / "01.png").write_text("no picture")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m"]
    command = ["sketchfusion_plugins", "features", pictures, *TINY, "--out", tmp_path / "a.jsonl"]
    run = subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        env={**os.environ, **ENVIRONMENT},
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0


def test_a_process_that_fails_ends_all_and_loses_nothing(pictures: Path, tmp_path: Path) -> None:
    (pictures / "10.png").write_text("no picture")  # in the second batch of the second process
    out = tmp_path / "features.jsonl"
    arguments = ("features", pictures, *TINY, "--out", out)
    run = _run(2, *arguments, "--strict")
    assert run.returncode != 0
    assert "10.png" in run.stderr
    # The launcher ends the first process wherever it is, maybe with the result open.
    assert not out.exists() or not out.read_bytes()
    parts = sorted(tmp_path.glob("features.jsonl.rank-*.jsonl"))
    kept = {path.name: path.read_bytes() for path in parts}
    assert kept["features.jsonl.rank-1.jsonl"].count(b"\n") == 3
    # One process takes over what two have begun.
    run = _run(1, *arguments, "--json")
    assert run.returncode == 3, run.stderr
    lines = out.read_text().splitlines()
    assert [Path(json.loads(line)["path"]).stem for line in lines] == [
        f"{number:02d}" for number in range(10)
    ]
    assert kept["features.jsonl.rank-1.jsonl"].decode().splitlines() == lines[3:6]
    assert not list(tmp_path.glob("*.rank-*"))


def test_parts_of_another_model_are_refused(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.jsonl"
    with DescriptorWriter(tmp_path / "features.jsonl.rank-0.jsonl", "another") as writer:
        writer.add(["a.png"], torch.zeros(1, 2))
    with pytest.raises(ValueError, match="made by the model another, this is mine"):
        list(
            describe_together(
                Ranks(),
                open_model("pixels"),
                sorted(pictures.iterdir()),
                64,
                Problems(),
                result=out,
                fingerprint="mine",
            )
        )


def test_parts_with_relative_paths_are_refused_elsewhere(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "features.jsonl"
    paths = [Path(path.name) for path in sorted(pictures.iterdir())]
    arguments = (Ranks(), open_model("pixels"), paths, 64, Problems())
    monkeypatch.chdir(pictures)
    with DescriptorWriter(tmp_path / "features.jsonl.rank-0.jsonl", "mine") as writer:
        writer.add(paths[:1], torch.full((1, 192), 7.0))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"'00\.png' relative to {pictures}, you are in"):
        next(describe_together(*arguments, result=out, fingerprint="mine"))
    monkeypatch.chdir(pictures)
    found = list(describe_together(*arguments, result=out, fingerprint="mine", batch_size=1))
    assert [readable for readable, _ in found] == [[path] for path in paths]
    assert (found[0][1] == 7).all()


@dataclass(frozen=True)
class TwoMachines(Ranks):
    """The first of two processes; the second says that it wrote five pictures elsewhere."""

    world_size: int = 2

    def wait(self) -> None:
        pass

    def gather(self, report: ProcessReport) -> list[ProcessReport]:
        return [report, ProcessReport("a.jsonl.rank-1.jsonl", 5, ())]


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (0, r"rank-1\.jsonl \(0 of 5 pictures\)"),
        (4, r"rank-1\.jsonl \(4 of 5 pictures\)"),
        (9, r"described: 5 pictures\. Nothing was deleted\. Give --out in a folder that all"),
    ],
)
def test_parts_that_others_wrote_elsewhere_are_missed(
    pictures: Path, tmp_path: Path, left: int, message: str
) -> None:
    # What lies in the second's place, if anything, is of a former launch with other pictures.
    part = tmp_path / "a.jsonl.rank-1.jsonl"
    if left:
        with DescriptorWriter(part, "mine") as writer:
            writer.add([f"former-{number}.png" for number in range(left)], torch.zeros(left, 2))
    found = describe_together(
        TwoMachines(),
        open_model("pixels"),
        sorted(pictures.iterdir()),
        64,
        Problems(),
        result=tmp_path / "a.jsonl",
        fingerprint="mine",
        batch_size=3,
    )
    with pytest.raises(OSError, match=message):
        next(found)
    assert (tmp_path / "a.jsonl.rank-0.jsonl").read_text().count("\n") == 6
    assert part.exists() == bool(left)


def test_what_is_left_is_dealt_out_evenly(pictures: Path, tmp_path: Path) -> None:
    paths = sorted(pictures.iterdir())
    done = [*paths[3:6], *paths[9:]]  # All that was the second's, as after the first's crash.
    with DescriptorWriter(tmp_path / "a.jsonl.rank-1.jsonl", "mine") as writer:
        writer.add(list(map(str, done)), torch.zeros(len(done), 2))
    found = describe_together(
        TwoMachines(),
        open_model("pixels"),
        paths,
        64,
        Problems(),
        result=tmp_path / "a.jsonl",
        fingerprint="mine",
        batch_size=3,
    )
    with pytest.raises(OSError, match="described: 3 pictures"):
        next(found)
    lines = (tmp_path / "a.jsonl.rank-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == list(map(str, paths[:3]))


def test_after_a_kill_batches_are_as_they_were(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "00.png").write_text("no picture")
    paths = sorted(pictures.iterdir())
    with DescriptorWriter(tmp_path / "a.jsonl.rank-0.jsonl", "mine") as writer:
        writer.add(list(map(str, [*paths[1:3], paths[3]])), torch.zeros(3, 2))
    batches, describe = [], sharding.describe_files

    def spy(*asked: Any, **options: Any) -> Any:
        for readable, _ in describe(*asked, **options):
            batches.append(readable)
            yield readable, torch.zeros(len(readable), 2)

    monkeypatch.setattr(sharding, "describe_files", spy)
    list(
        describe_together(
            Ranks(),
            open_model("pixels"),
            paths,
            64,
            Problems(),
            result=tmp_path / "a.jsonl",
            fingerprint="mine",
            batch_size=3,
        )
    )
    # Of the first batch nothing can be read, of the second the end was not written.
    assert batches == [paths[6:9], paths[9:], paths[4:6]]


def _free_port() -> int:
    """A port that the system gives to nobody who asks for any: it is used seconds later."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


@pytest.mark.parametrize(
    "command",
    [("features",), pytest.param(("index", "build"), marks=pytest.mark.slow)],
    ids=["features", "index"],
)
def test_machines_without_a_common_folder_are_told(
    pictures: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    port = _free_port()
    machines = [tmp_path / f"machine-{rank}" for rank in range(2)]
    runs = []
    try:
        for rank, folder in enumerate(machines):
            folder.mkdir()
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            ranks = {"RANK": str(rank), "WORLD_SIZE": "2"}
            options = ["--model", "pixels", "--size", "64", "--batch-size", "3", "--out", "a.jsonl"]
            runs.append(
                subprocess.Popen(
                    [sys.executable, "-m", "sketchfusion_plugins", *command, pictures, *options],
                    cwd=folder,
                    env={**os.environ, **ENVIRONMENT, **address, **ranks},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        errors = [run.communicate(timeout=PATIENCE)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert all(run.returncode for run in runs)
    assert f"{machines[0]} lacks what other processes described" in errors[0]
    assert "a.jsonl.rank-1.jsonl (0 of 5 pictures)" in errors[0]
    counts = [
        (folder / f"a.jsonl.rank-{rank}.jsonl").read_text().count("\n")
        for rank, folder in enumerate(machines)
    ]
    assert counts == [6, 5]


def test_alone_leaves_no_parts(pictures: Path, tmp_path: Path) -> None:
    paths = sorted(pictures.iterdir())
    found = describe_together(
        Ranks(),
        open_model("pixels"),
        paths,
        64,
        Problems(),
        result=tmp_path / "a.jsonl",
        fingerprint="mine",
        batch_size=4,
    )
    assert [path for readable, _ in found for path in readable] == paths
    forget_parts(Ranks(), tmp_path / "a.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.parametrize(
    ("rank", "world_size", "message"),
    [
        ("2", "2", "expected a rank of 0 to 1, got 2"),
        ("one", "2", "expected numbers in RANK and WORLD_SIZE, got 'one' and '2'"),
    ],
)
def test_a_wrong_environment_is_explained(
    monkeypatch: pytest.MonkeyPatch, rank: str, world_size: str, message: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(ValueError, match=message):
        Ranks.from_environment()
