"""What is shipped: ours, with its licences, and no tests."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"sketchfusion_plugins", "timm_adapters", "mmseg_configs"}
SUFFIXES = {".py", ".json", ".md", ".safetensors", ".typed"}
# Safetensors are the bundled weights; anything else of that size is somebody's data.
LARGEST = {".safetensors": 30e6}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    if "No matching distribution" in output.stdout + output.stderr:
        pytest.skip("the build backend cannot be downloaded here")
    assert output.returncode == 0, output.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_wheel_holds_what_is_ours_alone(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", *sorted(FOLDERS)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    inside = {item.filename: item.file_size for item in wheel.infolist()}
    metadata = {name for name in inside if ".dist-info/" in name}
    assert set(inside) - metadata == set(tracked)
    for name, size in inside.items():
        path = Path(name)
        if name not in metadata:
            assert path.parts[0] in FOLDERS
            assert path.suffix in SUFFIXES or path.name == "LICENSE", name
            assert not path.name.startswith("test_"), name
            assert size <= LARGEST.get(path.suffix, 1e6), name


@pytest.mark.slow
def test_licences_are_named_and_there(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    # SPDX: the code, the bundled weights.
    assert fields["License-Expression"] == "Apache-2.0 AND CC-BY-SA-4.0"
    texts = {
        name.split("/licenses/")[1]: wheel.read(name).decode()
        for name in names
        if ".dist-info/licenses/" in name
    }
    assert set(texts) == {"LICENSE", "sketchfusion_plugins/weights/tiny/LICENSE"}
    assert "Apache License" in texts["LICENSE"] and "Version 2.0" in texts["LICENSE"]
    assert "Copyright 2026 The SketchFusion plugins developers" in texts["LICENSE"]
    weights = texts["sketchfusion_plugins/weights/tiny/LICENSE"]
    assert weights.startswith("Attribution-ShareAlike 4.0 International")
    packed = (name for name in names if name.startswith("sketchfusion_plugins/weights/"))
    for folder in {Path(name).parts[2] for name in packed}:
        card = wheel.read(f"sketchfusion_plugins/weights/{folder}/README.md").decode()
        assert card.startswith("---\nlicense: cc-by-sa-4.0\n")
