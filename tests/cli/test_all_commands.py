"""What holds for every command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sketchfusion_plugins.cli import app
from sketchfusion_plugins.data.sources import SOURCES


def _leaves(command: Any, trail: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not hasattr(command, "commands"):
        return {trail: command}
    found: dict[tuple[str, ...], Any] = {}
    for name, child in command.commands.items():
        found |= _leaves(child, (*trail, name))
    return found


COMMANDS = _leaves(typer.main.get_command(app))
RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.sh"))


def test_all_commands_are_there() -> None:
    verbs = [
        "train",
        "evaluate",
        "features",
        "match",
        "segment",
        "recognise",
        "quickstart",
        "summary",
    ]
    assert {(verb,) for verb in verbs} < set(COMMANDS)
    assert {("index", verb) for verb in ("build", "add", "search")} < set(COMMANDS)
    assert {("data", "spg"), ("config-path",), ("mm-train",), ("mm-export",)} < set(COMMANDS)


@pytest.mark.parametrize("trail", COMMANDS, ids=" ".join)
def test_help_shows_an_example_that_parses(trail: tuple[str, ...]) -> None:
    command = COMMANDS[trail]
    (example,) = re.findall(r"Example: sketchfusion (.+)", command.help)
    shown = CliRunner().invoke(app, [*trail, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert f"Example: sketchfusion {example}" in " ".join(shown.stdout.split())
    arguments = shlex.split(example)
    assert tuple(arguments[: len(trail)]) == trail
    context = command.make_context(trail[-1], arguments[len(trail) :])
    assert context.params


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_call_commands_that_exist(recipe: Path, tmp_path: Path) -> None:
    stand_in, calls = tmp_path / "sketchfusion", tmp_path / "calls"
    stand_in.write_text(f'#!/usr/bin/env bash\nprintf "%q " "$@" >> {calls}; echo >> {calls}\n')
    stand_in.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    subprocess.run(["bash", recipe, "/one", "/two"], check=True, env={**os.environ, "PATH": path})
    for line in calls.read_text().splitlines():
        verb, *arguments = shlex.split(line)
        context = COMMANDS[(verb,)].make_context(verb, arguments)
        if verb in ("train", "evaluate"):
            source = context.params["data"].partition(":")[0]
            assert source in SOURCES[context.params["task"]]


@pytest.mark.parametrize("trail", COMMANDS, ids=" ".join)
def test_unknown_option_is_a_usage_error(trail: tuple[str, ...]) -> None:
    if trail == ("mm-train",):
        pytest.skip("passes unknown options on")
    assert CliRunner().invoke(app, [*trail, "--nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["features", "a.png", "--model", "tiny", "--out", "a.jsonl", "--device", "gpu9"],
        ["index", "build", "a.png", "--model", "hog", "--out", "index", "--device", "gpu9"],
    ],
)
def test_unknown_device_is_one_line(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the device 'gpu9' cannot be used here")
    assert result.stderr.count("\n") == 1


def test_reading_the_command_line_loads_nothing_of_what_it_calls() -> None:
    code = (
        "import sys, sketchfusion_plugins\n"
        "before = set(sys.modules)\n"
        "import sketchfusion_plugins.cli\n"
        "new = set(sys.modules) - before\n"
        "ours = {n for n in new if n.startswith('sketchfusion_plugins')}\n"
        "print(sorted(n for n in ours if not n.startswith('sketchfusion_plugins.cli')))\n"
        "heavy = {'diffusers', 'transformers', 'mmengine', 'faiss', 'sklearn', 'matplotlib'}\n"
        "print(sorted(heavy & new))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.split() == ["[]", "[]"]
