"""Logs as trainers write them: mmengine's own, and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sketchfusion_plugins.evaluation.training_log import read_training_log


def _write(path: Path, *entries: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_starts_of_a_run_are_joined_and_the_later_value_counts(tmp_path: Path) -> None:
    first = {"lr": 0.1, "data_time": 0.02, "loss": 3.0, "time": 1.2, "iter": 50, "step": 50}
    second = {**first, "loss": 2.0, "iter": 100, "step": 100}
    again = {**second, "loss": 2.5}
    judged = {"mIoU": 39.4, "data_time": 0.1, "time": 0.2, "step": 150}
    # Made in the other order: names tell which start came first, not times of files.
    _write(tmp_path / "20261123_100000" / "vis_data" / "scalars.json", again, judged)
    _write(tmp_path / "20261123_090000" / "vis_data" / "scalars.json", first, second)
    curves = read_training_log(tmp_path)
    assert set(curves) == {"lr", "loss", "mIoU"}
    steps, values = curves["loss"]
    assert steps.tolist() == [50, 100] and values.tolist() == [3.0, 2.5]
    assert curves["mIoU"][0].tolist() == [150]


def test_what_a_resume_does_again_hides_what_came_of_it_before(tmp_path: Path) -> None:
    def log(name: str, *steps: int, loss: float, **judged: float) -> None:
        entries = [{"loss": loss, "step": step} for step in steps]
        _write(tmp_path / name / "vis_data/scalars.json", *entries, {**judged, "step": steps[-1]})

    log("20261123_090000", 20, 40, 60, 80, loss=4.0, mIoU=0.3)
    # Killed at 80, where nothing was saved since 40.
    log("20261123_100000", 60, loss=1.0)
    curves = read_training_log(tmp_path)
    assert curves["loss"][0].tolist() == [20, 40, 60]
    assert curves["loss"][1].tolist() == [4.0, 4.0, 1.0]
    assert curves["mIoU"][0].tolist() == [80]
    # Nothing was saved at all.
    log("20261123_110000", 20, 40, loss=0.5)
    assert read_training_log(tmp_path)["loss"][1].tolist() == [0.5, 0.5]


def test_a_trainers_own_log_is_the_one_that_is_read(tmp_path: Path) -> None:
    runner = pytest.importorskip("mmengine.visualization")
    folder = tmp_path / "20261123_090000"
    backend = runner.LocalVisBackend(save_dir=str(folder / "vis_data"))
    backend.add_scalars({"loss": 1.5, "lr": 0.1, "time": 1.0}, step=20)
    backend.add_scalars({"PCK@5": 0.25}, step=40)
    curves = read_training_log(tmp_path)
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in curves.items()} == {
        "loss": ([20], [1.5]),
        "lr": ([20], [0.1]),
        "PCK@5": ([40], [0.25]),
    }


def test_a_run_that_began_anew_hides_those_before_it(tmp_path: Path) -> None:
    backend = pytest.importorskip("mmengine.visualization").LocalVisBackend
    config = pytest.importorskip("mmengine.config").Config
    # A run and its resume, then a shorter one in the same folder, and the resume of that.
    starts = ((False, (1, 2, 3)), (True, (3, 4)), (False, (2, 3)), (True, (3,)))
    known = [[1, 2, 3], [1, 2, 3, 4], [2, 3], [2, 3]]
    for number, ((resume, steps), expected) in enumerate(zip(starts, known, strict=True)):
        log = backend(save_dir=str(tmp_path / f"20261123_09000{number}" / "vis_data"))
        log.add_config(config({"work_dir": "runs", "resume": resume}))
        for step in steps:
            log.add_scalars({"loss": float(number)}, step=step)
        curves = read_training_log(tmp_path)
        assert curves["loss"][0].tolist() == expected
    assert curves["loss"][1].tolist() == [2.0, 3.0]


def test_json_lines_without_their_half_written_end(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "unet.jsonl",
        {"step": 23, "seconds": 30.6, "loss": 0.8, "learning_rate": 1e-4},
        {"step": 45, "seconds": 61.5, "held_out_loss": 0.3, "note": "text"},
    )
    path.write_text(path.read_text() + '{"step": 67, "lo')
    curves = read_training_log(path)
    assert set(curves) == {"loss", "learning_rate", "held_out_loss"}
    assert curves["loss"][1].tolist() == [0.8]


@pytest.mark.parametrize("text", ["no json\n", '{"loss": 1.0}\n', '[1]\n{"step": 1}\n', '{"step'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"log\.jsonl, line 1: expected a JSON object"):
        read_training_log(path)


def test_folders_without_a_log_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(FileNotFoundError, match="holds no training log"):
            read_training_log(path)
