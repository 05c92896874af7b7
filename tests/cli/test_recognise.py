"""``sketchfusion recognise``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def test_probabilities_are_the_models_own(run: Any, pictures: Path, checkpoints: Path) -> None:
    from sketchfusion_plugins.images import open_image, to_tensor
    from sketchfusion_plugins.tasks.load import load_task

    folder = checkpoints / "recognition"
    arguments = ("--model", folder, "--size", 64, "--top", 2, "--batch-size", 3, "--json")
    lines = run("recognise", pictures, *arguments).stdout.splitlines()
    assert len(lines) == 4
    model = load_task(folder)
    for line in lines:
        row = json.loads(line)
        with torch.inference_mode():
            image = to_tensor(open_image(row["path"]), 64)[None]
            shares = model(image)[0].softmax(0)
        best = shares.argsort(descending=True)[:2].tolist()
        assert [found["name"] for found in row["classes"]] == [model.classes[i] for i in best]
        for found, index in zip(row["classes"], best, strict=True):
            assert found["probability"] == pytest.approx(float(shares[index]), abs=1e-4)


def test_table_and_skipped_files(
    run: Any, pictures: Path, checkpoints: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    model = ("--model", checkpoints / "recognition", "--size", 64)
    result = run("recognise", pictures / "a.png", bad, *model, status=3)
    # More classes are wanted than there are.
    assert all(name in result.stdout for name in ("cat", "dog", "owl"))
    assert "skipped: " in result.stderr
    assert "no picture" not in run("recognise", bad, *model, "--strict", status=1).stdout


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("retrieval", "was trained for retrieval, expected a checkpoint of recognition"),
        (None, "got hog, which knows no classes"),
    ],
)
def test_other_models_are_refused(
    run: Any, pictures: Path, checkpoints: Path, model: str | None, message: str
) -> None:
    name = "hog" if model is None else checkpoints / model
    result = run("recognise", pictures, "--model", name, status=1)
    assert message in result.stderr
