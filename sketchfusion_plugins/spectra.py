"""SketchFusion's pilot study over folders of pictures: at which frequencies do features live?

The paper finds that Stable Diffusion's features favour high and CLIP's low frequencies.
Measures are those of `sketchfusion_plugins.frequency`: log amplitudes relative to the constant,
after Park and Kim, "How Do Vision Transformers Work?" (ICLR 2022), and the share of energy below a
quarter of Nyquist's frequency. Every map is measured at its own grid, so its Nyquist frequency is
half a wave per cell of that map: compare maps of one stride, or each with white noise on its grid.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.evaluation.report import Measured
from sketchfusion_plugins.files import write_text
from sketchfusion_plugins.frequency import (
    band_index,
    low_frequency_share,
    radial_energy_shares,
    radial_frequency,
    radial_log_amplitude,
    white_noise_share,
)
from sketchfusion_plugins.inference.picture_files import list_pictures, read_batches
from sketchfusion_plugins.maps import all_maps
from sketchfusion_plugins.problems import Problems
from sketchfusion_plugins.wrappers import device_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BANDS = 8
FILES = ("spectra.csv", "spectra.png", "spectra.svg")


@dataclass(frozen=True)
class Spectrum:
    """Where the energy of one kind of map lies; means over pictures.

    Attributes:
        grid: Rows and columns of the map.
        count: Pictures.
        low_share: Share of energy below a quarter of Nyquist, with a 95 % interval over pictures;
            None where the grid is too small for such frequencies, or every map was constant.
        white_noise: What white noise on this grid has; NaN where the grid is too small.
        radius: Mean radial frequency of every band's coefficients; NaN where there are none.
        log_amplitude: Of every band, relative to the constant, natural logarithm; NaN as above.
        energy_share: Of every band, summing to one; NaN where every map was constant.
    """

    grid: tuple[int, int]
    count: int
    low_share: Measured | None
    white_noise: float
    radius: tuple[float, ...]
    log_amplitude: tuple[float, ...]
    energy_share: tuple[float, ...]


@dataclass(frozen=True)
class Study:
    """Spectra of a model's maps for several kinds of pictures.

    Attributes:
        model: Name of the model.
        size: Side of the square that pictures were padded to, in pixels.
        spectra: By kind of picture, then by weights ("model" or "control"), then by map.
    """

    model: str
    size: int
    spectra: Mapping[str, Mapping[str, Mapping[str, Spectrum]]]

    def rows(self) -> list[tuple[str, str, str, Spectrum]]:
        """Kind, weights, name of the map and its spectrum, one after the other."""
        return [
            (kind, weights, name, spectrum)
            for kind, own in self.spectra.items()
            for weights, maps in own.items()
            for name, spectrum in maps.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """JSON values; None stands for NaN."""
        rows = [
            {"kind": kind, "weights": weights, "features": name, **_without_nan(asdict(spectrum))}
            for kind, weights, name, spectrum in self.rows()
        ]
        return {"model": self.model, "size": self.size, "spectra": rows}

    def as_csv(self) -> str:
        """A line per kind, weights, map and band; what is not defined is empty."""
        heads = (
            "kind,weights,features,rows,columns,n,low_frequency_share,low,high,white_noise_share,"
            "band_from,band_to,radius,relative_log_amplitude,energy_share"
        )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(heads.split(","))
        for kind, weights, name, own in self.rows():
            share = own.low_share
            measured = (math.nan,) * 3 if share is None else (share.value, share.low, share.high)
            bands = len(own.radius)
            for band, values in enumerate(
                zip(own.radius, own.log_amplitude, own.energy_share, strict=True)
            ):
                figures = (*measured, own.white_noise, band / bands, (band + 1) / bands, *values)
                cells = ("" if math.isnan(figure) else f"{figure:.6g}" for figure in figures)
                writer.writerow((kind, weights, name, *own.grid, own.count, *cells))
        return text.getvalue()

    def figure(self) -> Figure:
        """Log amplitudes by kind and weights, and shares of energy at low frequencies."""
        from sketchfusion_plugins.viz import draw_spectra

        panels: dict[str, Any] = {}
        shares: dict[str, dict[str, tuple[float, float, float]]] = {}
        noise = {name: spectrum.white_noise for _, _, name, spectrum in self.rows()}
        for weights in dict.fromkeys(weights for _, weights, _, _ in self.rows()):
            for kind, own in self.spectra.items():
                title = kind if weights == "model" else f"{kind}, {weights}"
                panels[title] = {n: (s.radius, s.log_amplitude) for n, s in own[weights].items()}
                shares[title] = {
                    name: (s.low_share.value, s.low_share.low, s.low_share.high)
                    for name, s in own[weights].items()
                    if s.low_share is not None
                }
        return draw_spectra(panels, shares, white_noise=noise, columns=len(self.spectra))

    def write(self, folder: Path) -> list[Path]:
        """Write table and figure.

        Returns:
            ``spectra.csv``, ``spectra.png`` and ``spectra.svg``.

        Raises:
            OSError: The folder cannot be written.
        """
        from sketchfusion_plugins.viz import save_figure

        paths = [folder / name for name in FILES]
        write_text(self.as_csv(), paths[0])
        figure = self.figure()
        for path in paths[1:]:
            save_figure(figure, path)
        return paths


def pictures_by_kind(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Pictures of every folder, by the folder's name, or by its path where names are the same.

    Raises:
        FileNotFoundError: No folder was named, there is none, or it holds no picture.
    """
    paths = list(dict.fromkeys(folder.expanduser() for folder in folders))
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is no folder. Give a folder per kind of picture.")
    names = [path.resolve().name for path in paths]
    return {
        name if names.count(name) == 1 else str(path): list_pictures([path])
        for name, path in zip(names, paths, strict=True)
    }


def study_pictures(
    encoders: Mapping[str, SketchFusionEncoder],
    kinds: Mapping[str, Sequence[Path]],
    size: int,
    problems: Problems,
    *,
    model: str = "",
    batch_size: int = 16,
    progress: bool = True,
) -> Study:
    """Spectra of picture files.

    Args:
        encoders: "model", and "control" if there is one.
        kinds: Files of every kind of picture, such as "sketches" and "photos".
        size: Side, in pixels, of the square that pictures are padded to with white.
        problems: Collects files that are no pictures.
        model: Name of the model, for the record.
        batch_size: Pictures per step.
        progress: Show a progress bar, when standard error is a terminal.

    Raises:
        ValueError: No file of a kind can be read.
    """
    found: dict[str, dict[str, dict[str, Spectrum]]] = {}
    for kind, paths in kinds.items():
        readable = list(paths)
        for weights, encoder in encoders.items():
            batches = read_batches(
                readable, size, problems, batch_size, f"{kind}, {weights}", progress
            )
            # A bad file is told once, not once per encoder.
            readable = []
            found.setdefault(kind, {})[weights] = measure_spectra(
                encoder, _images(batches, readable)
            )
    return Study(model, size, found)


@torch.inference_mode()
def measure_spectra(
    encoder: SketchFusionEncoder, batches: Iterable[Tensor], bands: int = BANDS
) -> dict[str, Spectrum]:
    """Spectra of all of an encoder's maps.

    Args:
        encoder: The encoder; it is left on its device.
        batches: Images ``[B, in_channels, H, W]`` in -1..1, all of one size.
        bands: Bands of radial frequency over 0..1.

    Returns:
        By name of the map; see `sketchfusion_plugins.maps.all_maps`.

    Raises:
        ValueError: There is no image, or sizes differ.
    """
    gathered: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    grids: dict[str, tuple[int, int]] = {}
    for batch in batches:
        for name, maps in all_maps(encoder, batch.to(device_of(encoder))).items():
            grid = (maps.shape[-2], maps.shape[-1])
            if grids.setdefault(name, grid) != grid:
                raise ValueError(
                    f"expected images of one size, got maps {name!r} of {grids[name]} and {grid} "
                    "cells. Resize or pad the images."
                )
            measured = (
                low_frequency_share(maps),
                radial_log_amplitude(maps, bands),
                radial_energy_shares(maps, bands),
            )
            low, amplitude, energy = (values.cpu().double() for values in measured)
            gathered.setdefault(name, []).append((low, amplitude, energy))
    if not gathered:
        raise ValueError("expected at least one image, got none that can be read.")
    return {
        name: _spectrum(grids[name], *(torch.cat(own).numpy() for own in zip(*parts, strict=True)))
        for name, parts in gathered.items()
    }


def _images(batches: Iterable[tuple[list[Path], Tensor]], readable: list[Path]) -> Iterator[Tensor]:
    """Images of batches; collects the files that could be read."""
    for paths, images in batches:
        readable += paths
        yield images


def _spectrum(
    grid: tuple[int, int],
    low: NDArray[np.float64],
    amplitude: NDArray[np.float64],
    energy: NDArray[np.float64],
) -> Spectrum:
    """Means over pictures of shares ``[N]`` and of bands ``[N, bands]``, the finite ones."""
    bands = amplitude.shape[1]
    radius = radial_frequency(*grid).flatten()[1:]
    index = band_index(radius, bands)
    known = low[np.isfinite(low)]
    return Spectrum(
        grid,
        len(low),
        # Rounding may leave 0..1 by a hair.
        Measured.of(known.clip(0, 1)) if len(known) else None,
        white_noise_share(*grid),
        tuple(float(radius[index == band].mean()) for band in range(bands)),
        _finite_means(amplitude),
        _finite_means(energy),
    )


def _finite_means(values: NDArray[np.float64]) -> tuple[float, ...]:
    finite = [column[np.isfinite(column)] for column in values.T]
    return tuple(float(column.mean()) if len(column) else math.nan for column in finite)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(own) for key, own in value.items()}
    return [_without_nan(own) for own in value] if isinstance(value, list | tuple) else value
