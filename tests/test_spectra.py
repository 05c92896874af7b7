"""The pilot study, judged on images whose spectrum is known."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sketchfusion_plugins import spectra
from sketchfusion_plugins.problems import Problems
from sketchfusion_plugins.spectra import Study, measure_spectra, pictures_by_kind, study_pictures


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """An "encoder" whose only map is its image."""
    monkeypatch.setattr(spectra, "all_maps", lambda encoder, image: {"image": image})
    return torch.nn.Identity()


def _wave(periods: int, size: int = 32) -> Tensor:
    x = torch.arange(size) / size
    return torch.cos(2 * math.pi * periods * x).expand(1, 3, size, size)


def test_waves_lie_at_their_frequency(identity: Any) -> None:
    # Amplitudes 3 and 1 at 2 and 12 periods of 32 cells, around 5.
    images = 3 * _wave(2) + _wave(12) + 5
    own = measure_spectra(identity, [images, images])["image"]
    assert own.grid == (32, 32) and own.count == 2
    assert own.low_share is not None and own.low_share.value == pytest.approx(0.9, abs=1e-5)
    expected = np.zeros(8)
    expected[[1, 6]] = 0.9, 0.1
    np.testing.assert_allclose(own.energy_share, expected, atol=1e-5)
    assert sum(own.energy_share) == pytest.approx(1, abs=1e-6)
    # Radii by hand, over all coefficients but the constant.
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32) / 0.5] * 2)).ravel()[1:]
    bands = np.minimum((frequency * 8 + 1e-9).astype(int), 7)
    radius = [frequency[bands == band].mean() for band in range(8)]
    np.testing.assert_allclose(own.radius, radius, rtol=1e-5)
    # A cosine of amplitude a has a / 2 in each of two of the band's coefficients.
    for band, amplitude in ((1, 3), (6, 1)):
        expected_log = math.log(amplitude / (bands == band).sum() / 5)
        assert own.log_amplitude[band] == pytest.approx(expected_log, abs=1e-3)


def test_white_noise_has_what_theory_says(identity: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(20, 100, 32, 32, generator=generator) for _ in range(2)]
    own = measure_spectra(identity, images, bands=4)["image"]
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(32) / 0.5] * 2)).ravel()[1:]
    counts = np.histogram(frequency, [0, 0.25 - 1e-9, 0.5 - 1e-9, 0.75 - 1e-9, 2])[0]
    np.testing.assert_allclose(own.energy_share, counts / 1023, rtol=0.01)
    assert own.white_noise == pytest.approx((frequency <= 0.25 + 1e-9).sum() / 1023)
    assert own.low_share is not None
    assert own.low_share.value == pytest.approx(own.white_noise, rel=0.01)
    assert own.low_share.low < own.white_noise < own.low_share.high
    assert own.low_share.count == own.count == 40


def test_a_grid_that_is_too_small_has_no_low_frequencies(identity: Any) -> None:
    images = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    own = measure_spectra(identity, [images])["image"]
    assert own.low_share is None and math.isnan(own.white_noise)
    assert np.isnan(own.log_amplitude).tolist() == np.isnan(own.radius).tolist()
    assert np.isfinite(own.log_amplitude).nonzero()[0].tolist() == [4, 5, 7]
    assert sum(own.energy_share) == pytest.approx(1)


def test_constant_maps_do_not_count(identity: Any) -> None:
    images = torch.cat([_wave(2), torch.ones(1, 3, 32, 32)]) + 5
    own = measure_spectra(identity, [images])["image"]
    assert own.low_share is not None
    assert own.low_share.value == pytest.approx(1) and own.low_share.count == 1
    blank = measure_spectra(identity, [torch.ones(2, 3, 32, 32)])["image"]
    assert blank.low_share is None and np.isnan(blank.energy_share).all()


def test_images_are_needed_and_of_one_size(identity: Any) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        measure_spectra(identity, [])
    with pytest.raises(ValueError, match=r"\(32, 32\) and \(16, 16\)"):
        measure_spectra(identity, [_wave(1), _wave(1, 16)])


def test_batches_do_not_matter(build: Any, sketches: Any) -> None:
    encoder, images = build(), sketches(3, 64, 96)
    whole, parts = (measure_spectra(encoder, images.split(count)) for count in (3, 1))
    for name, own in whole.items():
        np.testing.assert_allclose(own.log_amplitude, parts[name].log_amplitude, atol=1e-4)
        np.testing.assert_allclose(own.energy_share, parts[name].energy_share, atol=1e-5)
    assert whole["SD, stride 8"].grid == (8, 12)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two kinds of pictures: slow waves, and fast ones beside a file that is no picture."""
    from PIL import Image

    for name, periods in (("slow", 2), ("fast", 12)):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = (127 * np.roll(_wave(periods)[0].numpy(), number, 2) + 128).astype(np.uint8)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "fast" / "broken.png").write_text("no picture")
    return [tmp_path / "slow", tmp_path / "fast"]


@pytest.fixture
def study(identity: Any, folders: list[Path]) -> Study:
    problems = Problems()
    encoders = {"model": identity, "control": identity}
    found = study_pictures(
        encoders, pictures_by_kind(folders), 32, problems, model="name", batch_size=2
    )
    # Once, though it was asked for by the control too.
    assert len(problems.found) == 1 and "broken.png" in problems.found[0]
    return found


def test_kinds_are_studied_apart(study: Study) -> None:
    shares = {}
    for kind, weights, name, own in study.rows():
        assert name == "image" and own.count == 3 and own.low_share is not None
        shares[kind, weights] = own.low_share.value
    assert shares.keys() == {(k, w) for k in ("slow", "fast") for w in ("model", "control")}
    assert shares["slow", "model"] == shares["slow", "control"] > 0.99
    assert shares["fast", "model"] == shares["fast", "control"] < 0.01


def test_files_hold_what_was_measured(study: Study, tmp_path: Path) -> None:
    paths = study.write(tmp_path / "out")
    assert [path.name for path in paths] == ["spectra.csv", "spectra.png", "spectra.svg"]
    rows = list(csv.DictReader(io.StringIO(paths[0].read_text())))
    assert len(rows) == 2 * 2 * 8
    own = study.spectra["fast"]["model"]["image"]
    mine = [row for row in rows if row["kind"] == "fast" and row["weights"] == "model"]
    for number, row in enumerate(mine):
        assert float(row["energy_share"]) == pytest.approx(own.energy_share[number], abs=1e-5)
        assert float(row["band_from"]) == number / 8 and float(row["band_to"]) == (number + 1) / 8
        assert (row["rows"], row["columns"], row["n"]) == ("32", "32", "3")
    assert sum(float(row["energy_share"]) for row in mine) == pytest.approx(1, abs=1e-4)
    told = json.loads(json.dumps(study.as_json(), allow_nan=False))
    assert told["model"] == "name" and told["size"] == 32 and len(told["spectra"]) == 4
    assert told["spectra"][0]["low_share"]["value"] > 0.99


def test_what_is_not_defined_is_empty_in_files(identity: Any) -> None:
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    study = Study("name", 4, {"kind": {"model": measure_spectra(identity, [images])}})
    rows = list(csv.DictReader(io.StringIO(study.as_csv())))
    assert {row["low_frequency_share"] for row in rows} == {""}
    known = [number for number, row in enumerate(rows) if row["relative_log_amplitude"]]
    assert known == [4, 5, 7]
    told = json.loads(json.dumps(study.as_json(), allow_nan=False))
    assert told["spectra"][0]["low_share"] is None and told["spectra"][0]["radius"][0] is None
    # No panel for shares that do not exist.
    assert len(study.figure().axes) == 1


def test_folders_of_one_name_keep_their_paths(folders: list[Path], tmp_path: Path) -> None:
    twin = tmp_path / "more" / "slow"
    twin.parent.mkdir()
    folders[0].rename(twin)
    folders[0].symlink_to(twin)
    kinds = pictures_by_kind([folders[0], twin, folders[1], folders[1]])
    assert list(kinds) == [str(folders[0]), str(twin), "fast"]


def test_kinds_are_folders_with_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        pictures_by_kind([tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        pictures_by_kind([tmp_path])
