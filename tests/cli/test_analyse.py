"""``sketchfusion analyse``."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = ("--model", "tiny", "--weights", "random", "--size", "64")


@pytest.fixture(scope="module")
def kinds(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("kinds")
    return tuple(Path(shutil.copytree(pictures, root / name)) for name in ("lines", "others"))  # type: ignore[return-value]


def test_spectra_of_every_map_and_their_control(
    run: Any, kinds: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "spectra"
    printed = run("analyse", *kinds, *TINY, "--control", "--out", out, "--json").stdout
    told = json.loads(printed)
    assert told["out"] == [str(out / f"spectra.{suffix}") for suffix in ("csv", "png", "svg")]
    assert told["model"] == "tiny" and told["size"] == 64
    names = [f"{part}, stride {stride}" for part in ("SD", "fused") for stride in (8, 16, 32)]
    found = {(row["kind"], row["weights"], row["features"]): row for row in told["spectra"]}
    assert found.keys() == {
        (kind, weights, name)
        for kind in ("lines", "others")
        for weights in ("model", "control")
        for name in (*names, "CLIP", "aggregated")
    }
    for (_, weights, name), row in found.items():
        # The same pictures under another name.
        assert row == {**found["lines", weights, name], "kind": row["kind"]}
        assert row["count"] == 4 and sum(row["energy_share"]) == pytest.approx(1)
    grids = {name: found["lines", "model", name]["grid"] for name in names[:3]}
    assert list(grids.values()) == [[8, 8], [4, 4], [2, 2]]
    # Fresh injection starts at zero; the control's is random, lest it say nothing about fusion.
    model, control = (
        [found["lines", weights, f"{part}, stride 8"]["energy_share"] for part in ("SD", "fused")]
        for weights in ("model", "control")
    )
    assert model[0] == model[1] and control[0] != control[1]
    assert len(list(csv.DictReader((out / "spectra.csv").open()))) == 32 * 8


def test_table_is_printed_and_bad_files_are_told(
    run: Any, kinds: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(kinds[0], tmp_path / "lines"))
    (folder / "broken.png").write_text("no picture")
    result = run("analyse", folder, *TINY, "--out", tmp_path / "out", status=3)
    assert "white noise" in result.stdout and "control" not in result.stdout
    assert "fused, stride 8" in result.stdout and "spectra.csv" in result.stdout
    assert result.stderr.count("skipped: ") == 1 and "broken.png" in result.stderr
    run("analyse", folder, *TINY, "--out", tmp_path / "strict", "--strict", status=1)
    assert not (tmp_path / "strict").exists()


def test_what_is_read_is_not_replaced(run: Any, kinds: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(kinds[0], tmp_path / "lines"))
    own = shutil.copy(folder / "a.png", folder / "spectra.png")
    before = own.read_bytes()
    result = run("analyse", folder, "--model", "paper", "--out", folder, status=1)
    assert "spectra.png would replace" in result.stderr
    assert own.read_bytes() == before


def test_what_a_figure_needs_is_looked_for_first(
    run: Any, kinds: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run("analyse", kinds[0], "--model", "paper", "--out", tmp_path / "out", status=1)
    assert "matplotlib" in result.stderr
    assert not (tmp_path / "out").exists()


def test_model_and_control_compute_in_one_precision(
    run: Any, kinds: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins import spectra

    seen = {}

    def study(encoders: Any, *_: Any, **__: Any) -> Any:
        for name, encoder in encoders.items():
            seen[name] = next(encoder.diffusion.parameters()).dtype
        raise ValueError("that was all")

    monkeypatch.setattr(spectra, "study_pictures", study)
    options = ("--control", "--dtype", "bfloat16", "--out", tmp_path)
    assert "that was all" in run("analyse", kinds[0], *TINY, *options, status=1).stderr
    assert seen == {"model": torch.bfloat16, "control": torch.bfloat16}


@pytest.mark.parametrize(
    ("model", "message"),
    [("hog", "hog has no Stable Diffusion and CLIP inside"), ("nonsense", "no model 'nonsense'")],
)
def test_models_without_parts_are_refused(
    run: Any, kinds: tuple[Path, Path], tmp_path: Path, model: str, message: str
) -> None:
    result = run("analyse", kinds[0], "--model", model, "--out", tmp_path, status=1)
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_folders_are_checked_before_anything_is_loaded(run: Any, tmp_path: Path) -> None:
    result = run("analyse", tmp_path / "none", "--model", "paper", "--out", tmp_path, status=1)
    assert "is no folder" in result.stderr
