"""Pictures, checkpoints of the tiny model, and a way to call the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sketchfusion_plugins.cli import app

TINY = ("--model", "tiny", "--weights", "random", "--size", "64")


@pytest.fixture
def run() -> Callable[..., Any]:
    """Calls ``sketchfusion`` with arguments."""

    def call(*arguments: object, status: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == status, result.output
        return result

    return call


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four drawings of different shapes in a folder with a subfolder; to be read only."""
    from PIL import Image, ImageDraw

    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    names = {"a.png": (90, 50), "b.png": (64, 64), "more/c.png": (40, 77), "more/d.png": (120, 33)}
    for number, (name, size) in enumerate(names.items()):
        image = Image.new("RGB", size, "white")
        box = (3 + 5 * number, 4, 24 + 3 * number, 30)
        ImageDraw.Draw(image).ellipse(box, outline="black", width=2 + number)
        image.save(folder / name)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of every task, untrained, by the task's name; to be read only."""
    from sketchfusion_plugins.inference.models import find_config, fresh_encoder
    from sketchfusion_plugins.tasks.load import TASKS, build_task

    folder = tmp_path_factory.mktemp("checkpoints")
    encoder = fresh_encoder(find_config("tiny").replace(weights="random"))
    for name in TASKS:
        settings = {"classes": ["cat", "dog", "owl"]} if name == "recognition" else {}
        build_task(name, encoder, **settings).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def sized(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoints, as if they had been trained on 72 px; to be read only."""
    from sketchfusion_plugins.tasks.load import TASKS, load_task

    folder = tmp_path_factory.mktemp("sized")
    for name in TASKS:
        task = load_task(checkpoints / name)
        task.image_size = 72
        task.save_pretrained(folder / name)
    return folder
