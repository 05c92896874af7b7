"""Which command runs mmseg's script, and what launchers ask for."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

pytest.importorskip("mmseg")

import torch

from sketchfusion_plugins import mmseg_scripts

NAME = "tiny_fpn_folder_128"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that were to run."""
    commands: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(mmseg_scripts.subprocess, "run", run)
    monkeypatch.delenv("RANK", raising=False)
    return commands


@pytest.mark.parametrize("arguments", [["--launcher", "pytorch"], ["--launcher=pytorch"]])
def test_launcher_without_torchrun_is_refused(commands: Any, arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"expects torchrun's environment.*torchrun --nproc-per"):
        mmseg_scripts.run_tool("train", NAME, arguments)
    assert not commands


def test_processes_on_mps_are_refused(commands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ValueError, match=f"on Apple's mps.*Run: sketchfusion mm-train {NAME}"):
        mmseg_scripts.run_tool("train", NAME, ["--launcher", "pytorch"])
    assert not commands
    assert mmseg_scripts.run_tool("train", NAME, []) == 0


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize(
    ("arguments", "launched"),
    [
        (["--launcher", "pytorch"], True),
        (["--launcher=pytorch", "--cfg-options", "a=1"], True),
        (["--launcher", "none"], False),
        (["--work-dir", "pytorch"], False),
        ([], False),
    ],
)
def test_only_cpu_processes_of_torchrun_join_a_group_first(
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    accelerated: bool,
    arguments: list[str],
    launched: bool,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerated)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert mmseg_scripts.run_tool("train", NAME, arguments) == 0
    ((_, *command),) = commands
    if launched and not accelerated:
        assert command[:2] == ["-m", "sketchfusion_plugins.mmseg_scripts"]
        command = command[2:]
        assert command[2:] == [*arguments, "--cfg-options", *mmseg_scripts.CPU_WRAPPER]
    else:
        assert command[2:] == arguments
    assert command[0].endswith("train.py")
    assert command[1].endswith(f"{NAME}.py")
