"""Our configs and mmseg's own scripts, found where they are installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

INSTALL = 'pip install "sketchfusion-plugins[mmseg]"'


def list_configs() -> dict[str, Path]:
    """Names of the experiment configs, with their files."""
    spec = find_spec("mmseg_configs")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return {path.stem: path for folder in folders for path in sorted(Path(folder).glob("*.py"))}


def config_path(name: str) -> Path:
    """File of a config by its name.

    Raises:
        ValueError: Unknown name; the message lists the valid ones.
    """
    configs = list_configs()
    if name not in configs:
        raise ValueError(f"no config {name!r}; choose one of {', '.join(configs)}.")
    return configs[name]


def train(name: str, arguments: Sequence[str]) -> int:
    """Run mmseg's own ``tools/train.py`` on a config, by name or path.

    Returns:
        The script's exit status.

    Raises:
        ModuleNotFoundError: mmseg is not installed, or without its scripts.
        ValueError: Unknown config name.
    """
    config = Path(name) if name.endswith(".py") else config_path(name)
    spec = find_spec("mmseg")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"mm-train needs mmsegmentation: {INSTALL}")
    script = Path(spec.origin).parent / ".mim" / "tools" / "train.py"
    if not script.is_file():
        raise ModuleNotFoundError(
            f"expected mmsegmentation's train script at {script}; install it as a wheel: {INSTALL}"
        )
    return subprocess.run([sys.executable, str(script), str(config), *arguments]).returncode
