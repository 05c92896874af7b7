"""The API reference is built by one command, without a complaint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytest.importorskip("pdoc")
pytest.importorskip("mmseg")

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_every_module_has_its_page_and_its_docstrings(tmp_path: Path) -> None:
    # As in a folder of sources whose wheel is installed: two places go by the package's name.
    (tmp_path / "sketchfusion_plugins").mkdir()
    (tmp_path / "sketchfusion_plugins" / "__init__.py").touch()
    command = [sys.executable, str(ROOT / ".ci" / "build_api.py"), "--out", str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    for package in ("sketchfusion_plugins", "timm_adapters"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).with_suffix("")
            if {"task_configs", "__main__"} & set(name.parts):
                continue
            page = name.parent if name.name == "__init__" else name
            assert (tmp_path / page.with_suffix(".html")).is_file(), page
    page = (tmp_path / "sketchfusion_plugins" / "encoder.html").read_text()
    assert "SketchFusionEncoder" in page and "Arguments:" in page
    assert "FeatureLevels" in (tmp_path / "sketchfusion_plugins.html").read_text()
