"""What holds for every command."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from sketchfusion_plugins.cli import ASK, MMSEG, START, TRAIN, app
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
        "analyse",
        "match",
        "segment",
        "recognise",
        "demo",
        "quickstart",
        "summary",
    ]
    assert {(verb,) for verb in verbs} < set(COMMANDS)
    index = ("build", "add", "search", "merge", "begin")
    assert {("index", verb) for verb in index} < set(COMMANDS)
    mmseg = {("config-path",), ("mm-train",), ("mm-test",), ("mm-export",)}
    assert {("data", "spg"), *mmseg} < set(COMMANDS)
    assert {("doctor",), ("models",)} < set(COMMANDS)


def _example(trail: tuple[str, ...]) -> str:
    (example,) = re.findall(r"^Example:\n\nsketchfusion (.+)$", COMMANDS[trail].epilog)
    return str(example)


@pytest.mark.parametrize("trail", COMMANDS, ids=" ".join)
def test_help_shows_an_example_that_parses(trail: tuple[str, ...]) -> None:
    command, example = COMMANDS[trail], _example(trail)
    shown = CliRunner().invoke(app, [*trail, "--help"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    # On a line of its own, to be copied.
    assert f"sketchfusion {example}" in map(str.strip, shown.stdout.splitlines())
    arguments = shlex.split(example)
    assert tuple(arguments[: len(trail)]) == trail
    context = command.make_context(trail[-1], arguments[len(trail) :])
    assert context.params


@pytest.mark.parametrize("trail", COMMANDS, ids=" ".join)
def test_help_says_what_every_option_is_and_loses_no_word(trail: tuple[str, ...]) -> None:
    command = COMMANDS[trail]
    assert command.help.split("\n")[0].endswith((".", ","))
    shown = CliRunner().invoke(app, [*trail, "--help"], env={"COLUMNS": "400"}).stdout
    # Words in brackets would be taken for markup.
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    assert " ".join(command.help.split()) in words
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert " ".join(parameter.help.split()) in words, parameter.name


@pytest.mark.parametrize("trail", COMMANDS, ids=" ".join)
def test_prose_of_help_fills_its_lines(trail: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*trail, "--help"], env={"COLUMNS": "80"}).stdout
    prose = re.split(r"^╭", shown, flags=re.MULTILINE)[0].split("\n")
    for line, following in pairwise(map(str.strip, prose)):
        if line and following:
            assert len(f"{line} {following.split()[0]}") > 78, line


@pytest.mark.parametrize("width", ["40", "80"])
def test_help_of_all_commands_stands_in_panels_that_fit(width: str) -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": width}).stdout
    assert max(map(len, shown.splitlines())) <= int(width)
    for panel in (START, ASK, TRAIN, MMSEG):
        assert f"─ {panel} ─" in shown
    assert "─ Commands ─" not in shown
    words = " ".join(shown.split())
    for code in ("0 done", "1 an error", "2 wrong usage", "3 done, but files were skipped"):
        assert code in words


# Names that begin with s and have something to train.
TRAINABLE = [
    "sketchfusion/tiny",
    "sketchfusion/tiny-retrieval",
    "sketchfusion_base",
    "sketchfusion_base.sd21",
    "sd15",
    "sketchfusion_base.sd15",
    "sketchfusion_base.cleandift",
    "small",
    "sketchfusion_small",
    "sketchfusion_small.bksdm",
    "sketchfusion_tiny",
    "sketchfusion_tiny.open_pictures",
]

# What runs another program and answers nothing itself.
WITHOUT_ANSWER = {("demo",), ("mm-train",), ("mm-test",)}
SHARED = {
    "--model",
    "--size",
    "--batch-size",
    "--device",
    "--dtype",
    "--weights",
    "--strict",
    "--json",
    "--seed",
    "--split-seed",
    "--out",
}


def test_every_command_that_answers_has_json() -> None:
    having = {
        trail
        for trail, command in COMMANDS.items()
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert having == set(COMMANDS) - WITHOUT_ANSWER


def _kinds(hint: Any) -> set[Any]:
    """What a flag takes: several or one, with a default or without, it is the same."""
    if get_args(hint):
        return set().union(*(_kinds(inner) for inner in get_args(hint)))
    return {hint} - {type(None)}


def test_a_flag_means_the_same_everywhere() -> None:
    found: dict[str, list[set[Any]]] = {}
    for command in COMMANDS.values():
        hints = get_type_hints(command.callback)
        for parameter in command.params:
            for flag in SHARED & set(parameter.opts):
                found.setdefault(flag, []).append(_kinds(hints[parameter.name]))
            for flag in parameter.opts:
                assert re.fullmatch(r"--[a-z]+(-[a-z]+)*|[a-z_]+", flag), flag
    assert set(found) == SHARED
    for flag, kinds in found.items():
        assert all(kind == kinds[0] for kind in kinds), flag


# Every command with something that is not there; what it says is one line, and nothing is printed.
FAILING = {
    ("quickstart",): ["--model", "nonsense"],
    ("summary",): ["nonsense"],
    ("recognise",): ["missing.png", "--model", "tiny"],
    ("features",): ["missing.png", "--model", "tiny", "--out", "a.jsonl"],
    ("analyse",): ["missing", "--model", "tiny", "--out", "a-file"],
    ("demo",): ["--model", "nonsense"],
    ("index", "build"): ["missing.png", "--model", "tiny", "--out", "a.index"],
    ("index", "add"): ["missing.png", "--index", "missing.index"],
    ("index", "search"): ["missing.png", "--index", "missing.index"],
    ("index", "merge"): ["missing.index", "other.index", "--out", "all.index"],
    ("index", "begin"): ["--like", "missing.index", "--out", "b.index"],
    ("match",): ["missing.png", "missing.png", "--model", "tiny"],
    ("segment",): ["missing.png", "missing.png", "--model", "tiny", "--out", "mask.png"],
    ("train",): ["nonsense"],
    ("evaluate",): ["recognition", "--model", "nonsense"],
    ("data", "spg"): ["--from", "missing", "--out", "spg"],
    ("data", "openmoji-seg"): ["--out", "a-file"],
    ("config-path",): ["nonsense"],
    ("mm-train",): ["nonsense"],
    ("mm-test",): ["nonsense", "missing.pth"],
    ("mm-export",): ["nonsense", "missing.pth", "merged"],
}
NEVER_FAILING = {("doctor",), ("models",)}


def test_failures_are_known_of_all_commands() -> None:
    assert set(FAILING) | NEVER_FAILING == set(COMMANDS)


@pytest.mark.parametrize("trail", FAILING, ids=" ".join)
def test_an_error_is_one_line_and_status_1(
    trail: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Whoever else uses the page's usual port here.
    monkeypatch.setattr("sketchfusion_plugins.demo.serve.check_port", lambda *_: None)
    Path("a-file").touch()
    as_json = [] if trail in WITHOUT_ANSWER else ["--json"]
    result = CliRunner().invoke(app, [*trail, *FAILING[trail], *as_json])
    assert (result.exit_code, result.stdout) == (1, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: ")
    assert re.search("nonsense|missing|a-file|knows no classes", lines[0]), lines[0]


def test_doctor_and_models_answer_in_json_and_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch is examined in tests/test_doctor.py.
    monkeypatch.setattr("sketchfusion_plugins.doctor.examine_torch", lambda: iter(()))
    runner = CliRunner()
    examined = runner.invoke(app, ["doctor", "--json"])
    report = json.loads(examined.stdout)
    assert examined.exit_code == (0 if report["healthy"] else 1)
    names = {line["name"] for line in report["findings"]}
    assert {"python", "torch", "numpy", "sketchfusion/tiny"} <= names
    words = runner.invoke(app, ["doctor"]).stdout
    for line in report["findings"]:
        assert f"{line['state']:8}{line['name']}: {line['found']}" in words

    listed = json.loads(runner.invoke(app, ["models", "--json"]).stdout)
    (tiny,) = [row for row in listed if row["preset"] == "tiny"]
    assert tiny["size"] == 128 and tiny["parameters"] == 12_134_759
    assert {part["state"] for part in tiny["weights"]} == {"bundled"}
    shown = runner.invoke(app, ["models"], env={"COLUMNS": "120"}).stdout
    for row in listed:
        assert row["preset"] in shown and f"{row['parameters'] / 1e6:,.1f} M" in shown


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sketchfusion mo", ["models"]),
        ("sketchfusion index s", ["search"]),
        (
            "sketchfusion summary sketchfusion_t",
            ["sketchfusion_tiny", "sketchfusion_tiny.open_pictures"],
        ),
        ("sketchfusion match a.png b.png --model sd:t", ["sd:tiny"]),
        ("sketchfusion train re", ["recognition", "retrieval"]),
        ("sketchfusion train recognition --model s", TRAINABLE),
        ("sketchfusion train recognition --model h", []),
        ("sketchfusion train recognition --model clip:", []),
        ("sketchfusion config-path tiny_linear_s", ["tiny_linear_spg_128"]),
    ],
)
def test_the_shell_completes(line: str, offered: list[str]) -> None:
    words = line.split()
    environment = {
        "_SKETCHFUSION_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    shown = CliRunner().invoke(app, [], prog_name="sketchfusion", env=environment)
    assert shown.stdout.split() == offered


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


# These pass on what they do not know.
@pytest.mark.parametrize(
    "trail", [t for t in COMMANDS if t not in {("mm-train",), ("mm-test",)}], ids=" ".join
)
def test_unknown_option_is_a_usage_error(trail: tuple[str, ...]) -> None:
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
        "import sys, sketchfusion_plugins.cli\n"
        "new = set(sys.modules)\n"
        "ours = {n for n in new if n.startswith('sketchfusion_plugins.')}\n"
        "ours -= {'sketchfusion_plugins.import_hooks'}\n"
        "print(sorted(n for n in ours if not n.startswith('sketchfusion_plugins.cli')))\n"
        "heavy = {'torch', 'timm', 'diffusers', 'transformers', 'mmengine', 'faiss', 'sklearn'}\n"
        "print(sorted((heavy | {'numpy', 'PIL', 'matplotlib', 'huggingface_hub'}) & new))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.split() == ["[]", "[]"]
