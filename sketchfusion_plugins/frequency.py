"""Radial frequency of feature maps: a split into bands, learned gains per band, and measures.

SketchFusion (CVPR 2025) finds that Stable Diffusion's features favour high and CLIP's low
frequencies. `BandGains` lets training rebalance a level; the measures show the difference.

Frequencies are radial: ``r = sqrt(fy^2 + fx^2) / 0.5`` with ``fy, fx`` in cycles per cell, so a
constant has ``r = 0``, the fastest wave along one axis ``r = 1`` and along both ``r = sqrt(2)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NYQUIST = 0.5
QUARTER = 0.25


def radial_frequency(
    height: int, width: int, *, half: bool = False, device: torch.device | None = None
) -> Tensor:
    """Radial frequency of every coefficient of a two-dimensional Fourier transform.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        half: Layout of ``torch.fft.rfft2`` instead of ``torch.fft.fft2``.
        device: Device of the result.

    Returns:
        ``[height, width]``, or ``[height, width // 2 + 1]`` where ``half``; 0 to sqrt(2).
    """
    rows = torch.fft.fftfreq(height, device=device)
    columns = (torch.fft.rfftfreq if half else torch.fft.fftfreq)(width, device=device)
    return torch.hypot(rows[:, None], columns[None]) / NYQUIST


def band_index(radius: Tensor, bands: int) -> Tensor:
    """Band of every frequency: ``floor(r * bands)``; ``r >= 1`` belongs to the last band.

    Args:
        radius: Radial frequencies of any shape.
        bands: Number of bands of equal width over 0..1.

    Returns:
        Integers in ``0..bands-1`` of the same shape.

    Raises:
        ValueError: ``bands`` is below 1.
    """
    _require_bands(bands)
    # Float32 frequencies such as 3/12 come out a little below the edge that they lie on.
    return (radius * bands + 1e-4).floor().long().clamp_(max=bands - 1)


def split_bands(maps: Tensor, bands: int) -> Tensor:
    """Split maps into radial frequency bands that sum to them.

    Args:
        maps: ``[..., H, W]``, real.
        bands: Number of bands; the first holds the mean.

    Returns:
        ``[bands, ..., H, W]``, float32, or float64 for such maps.

    Raises:
        ValueError: ``bands`` is below 1.
    """
    height, width = maps.shape[-2:]
    spectrum = torch.fft.rfft2(_at_least_float32(maps))
    index = band_index(radial_frequency(height, width, half=True, device=maps.device), bands)
    return torch.stack(
        [torch.fft.irfft2(spectrum * (index == band), s=(height, width)) for band in range(bands)]
    )


class BandGains(nn.Module):
    """Learned gain per radial frequency band, and per channel where asked for.

    ``maps + ifft(fft(maps) * (gain[band] - 1))``: with gains of one, as at the start, maps pass
    unchanged bit by bit. What is learned is the difference to one, so weight decay pulls towards
    the identity.

    Args:
        channels: Channels of the maps for gains of their own; None shares gains among channels.
        bands: Number of bands.

    Raises:
        ValueError: ``bands`` or ``channels`` is below 1.
    """

    def __init__(self, channels: int | None = None, bands: int = 4) -> None:
        super().__init__()
        _require_bands(bands)
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be at least 1, or None to share gains; got {channels}")
        self.channels = channels
        self.bands = bands
        self.offsets = nn.Parameter(torch.zeros(1 if channels is None else channels, bands))

    @property
    def gains(self) -> Tensor:
        """Gains ``[channels or 1, bands]``, low frequencies first."""
        return self.offsets + 1.0

    def reset_parameters(self) -> None:
        """Back to the identity."""
        nn.init.zeros_(self.offsets)

    def forward(self, maps: Tensor) -> Tensor:
        """Rebalance.

        Args:
            maps: ``[B, C, H, W]`` of any size.

        Returns:
            ``[B, C, H, W]`` in the precision of ``maps``; computed in float32.

        Raises:
            ValueError: Channels are not as declared.
        """
        if self.channels is not None and maps.shape[1] != self.channels:
            raise ValueError(
                f"expected maps with {self.channels} channels, got {list(maps.shape)}. "
                "Build BandGains with the channels of the level, or None."
            )
        height, width = maps.shape[-2:]
        # Neither Fourier transforms nor small offsets survive half precision.
        with torch.autocast(maps.device.type, enabled=False):
            precise = _at_least_float32(maps)
            radius = radial_frequency(height, width, half=True, device=maps.device)
            offsets = self.offsets.to(precise.dtype)[:, band_index(radius, self.bands)]
            change = torch.fft.irfft2(torch.fft.rfft2(precise) * offsets, s=(height, width))
            result: Tensor = (precise + change).to(maps.dtype)
            return result


def radial_log_amplitude(maps: Tensor, bands: int = 8) -> Tensor:
    """Log amplitude of every band relative to the constant.

    ``log mean |F| over the band - log mean |F(0)|``, the means taken over a map's channels and the
    band's coefficients, of which the constant is none. It falls steeply where low frequencies
    prevail. These are the relative log amplitudes of Park and Kim, "How Do Vision Transformers
    Work?" (ICLR 2022, figure 2), which SketchFusion's pilot study draws for Stable Diffusion and
    CLIP; they read them along half a diagonal and average logarithms, here all directions count
    and amplitudes are averaged, which no single small coefficient can dominate.

    Args:
        maps: ``[B, C, H, W]``.
        bands: Number of bands over ``r`` in 0..1; what lies beyond belongs to the last.

    Returns:
        ``[B, bands]``, natural logarithms. NaN for a band in which the map is too small to have a
        frequency, and for all of a map that is zero; infinite where the constant alone is zero,
        or the band.

    Raises:
        ValueError: ``bands`` is below 1.
    """
    radius, spectrum = _without_constant(maps)
    amplitude = spectrum.abs().mean(1)
    index = band_index(radius, bands)
    means = torch.stack([amplitude[:, index == band].mean(1) for band in range(bands)], 1)
    constant = _at_least_float32(maps).sum((-2, -1)).abs().mean(1)
    return means.log() - constant.log()[:, None]


def radial_energy_shares(maps: Tensor, bands: int = 8) -> Tensor:
    """Share of every band in a map's power, its constant left out.

    ``sum |F|^2 over the band / sum |F|^2 over 0 < r``, the sums taken over channels too. By
    Parseval's theorem the denominator is proportional to the variance over cells. White noise has
    the share of coefficients that lie in the band.

    Args:
        maps: ``[B, C, H, W]``.
        bands: Number of bands over ``r`` in 0..1; what lies beyond belongs to the last.

    Returns:
        ``[B, bands]`` in 0..1, summing to one; NaN for constant maps.

    Raises:
        ValueError: ``bands`` is below 1.
    """
    radius, spectrum = _without_constant(maps)
    power = spectrum.abs().square().sum(1)
    index = band_index(radius, bands)
    sums = torch.stack([power[:, index == band].sum(1) for band in range(bands)], 1)
    return sums / power.sum(1, keepdim=True)


def low_frequency_share(maps: Tensor, cutoff: float = QUARTER) -> Tensor:
    """Share of a map's power at low frequencies, its constant left out.

    ``sum |F|^2 over 0 < r <= cutoff / sum |F|^2 over 0 < r``: the share of variance over cells that
    slow waves explain. The edge counts as low: the slowest waves of a map of 8 x 8 cells lie on a
    quarter of Nyquist.

    Args:
        maps: ``[B, C, H, W]``.
        cutoff: Highest radial frequency that counts as low.

    Returns:
        ``[B]`` in 0..1; NaN for constant maps, and where a map is too small to have so low a
        frequency.

    Raises:
        ValueError: ``cutoff`` is not positive.
    """
    radius, spectrum = _without_constant(maps)
    low = _is_low(radius, cutoff)
    power = spectrum.abs().square().sum(1)
    if not low.any():
        return power.new_full((len(power),), torch.nan)
    return power[:, low].sum(1) / power.sum(1)


def white_noise_share(height: int, width: int, cutoff: float = QUARTER) -> float:
    """`low_frequency_share` that white noise has on average: the share of coefficients.

    It tells how far a share of another map is from no preference at all, which depends on the grid;
    about ``pi * cutoff^2 / 4`` on large ones.

    Returns:
        0..1; NaN where a map is too small to have so low a frequency.

    Raises:
        ValueError: ``cutoff`` is not positive.
    """
    low = _is_low(radial_frequency(height, width).flatten()[1:], cutoff)
    return float(low.double().mean()) if low.any() else math.nan


def _is_low(radius: Tensor, cutoff: float) -> Tensor:
    if not cutoff > 0:
        raise ValueError(f"cutoff must be positive, got {cutoff}. It is a radius; 1 is Nyquist's.")
    return radius <= cutoff + 1e-4


def _without_constant(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Frequencies ``[N]`` and spectrum ``[B, C, N]`` of maps, without the constant.

    The mean is subtracted first: rounding would leave a trace of a large one in other frequencies.
    """
    height, width = maps.shape[-2:]
    precise = _at_least_float32(maps)
    precise = precise - precise.mean((-2, -1), keepdim=True)
    radius = radial_frequency(height, width, device=maps.device).flatten()
    return radius[1:], torch.fft.fft2(precise).flatten(-2)[..., 1:]


def _at_least_float32(maps: Tensor) -> Tensor:
    return maps if maps.dtype == torch.float64 else maps.float()


def _require_bands(bands: int) -> None:
    if bands < 1:
        raise ValueError(f"bands must be at least 1, got {bands}")
