"""timm's own ``tests/test_models.py``, unmodified, on our models; see ``timm_suite_plugin``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def timm_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source distribution of the installed timm, from the package index."""
    folder = tmp_path_factory.mktemp("timm_source")
    name = f"timm-{version('timm')}"
    download = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=timm"]
        + ["--dest", str(folder), name.replace("-", "==", 1)],
        capture_output=True,
        text=True,
    )
    if download.returncode and "CI" not in os.environ:
        pytest.skip(f"timm's source distribution is not to be had: {download.stderr[-300:]}")
    assert download.returncode == 0, download.stderr
    # tarfile's own filter argument is missing in Python 3.11.2, Debian 12's.
    shutil.unpack_archive(folder / f"{name}.tar.gz", folder)
    return folder / name


def run_suite(source: Path, models: str, *options: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "timm_suite_plugin"]
        + ["-c", os.devnull, "--rootdir", str(source), "-q", "-rA", "-W", "ignore", *options]
        + [str(source / "tests" / "test_models.py")],
        env={
            **os.environ,
            "PYTHONPATH": str(HERE),
            "SKETCHFUSION_TIMM_MODELS": models,
        },
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_tiny(timm_source: Path) -> None:
    output = run_suite(timm_source, "sketchfusion_tiny")
    assert re.search(r"\b9 passed", output), output[-3000:]


@pytest.mark.slow
def test_small(timm_source: Path) -> None:
    # The contract test, which timm leaves out of its own CI, copies the model a dozen times.
    options = ("-k", "not prune_intermediate_layers_contract")
    output = run_suite(timm_source, "sketchfusion_small", *options)
    assert re.search(r"\b8 passed", output), output[-3000:]


@pytest.mark.slow
def test_base(timm_source: Path) -> None:
    options = ("-k", "not prune_intermediate_layers_contract")
    output = run_suite(timm_source, "sketchfusion_base", *options)
    # As above, with one test of shapes and interface for each of the three tags.
    assert re.search(r"\b10 passed", output), output[-3000:]
