"""Frequency bands and measures, judged on waves whose spectrum is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sketchfusion_plugins.frequency import (
    BandGains,
    band_index,
    low_frequency_share,
    radial_energy_shares,
    radial_frequency,
    radial_log_amplitude,
    split_bands,
    white_noise_share,
)


def wave(height: int, width: int, rows: int, columns: int) -> Tensor:
    """``[1, 1, H, W]``: a cosine with whole periods over the map's height and width."""
    y = torch.arange(height, dtype=torch.float64)[:, None] / height
    x = torch.arange(width, dtype=torch.float64)[None] / width
    return torch.cos(2 * math.pi * (rows * y + columns * x))[None, None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_radius_of_known_frequencies() -> None:
    radius = radial_frequency(8, 8)
    assert radius[0, 0] == 0
    assert radius[0, 4] == radius[4, 0] == 1
    assert radius[4, 4] == pytest.approx(math.sqrt(2))
    assert radius[3, 0] == radius[5, 0] == 0.75
    assert torch.equal(radial_frequency(8, 8, half=True), radius[:, :5])


@pytest.mark.parametrize("cells", [12, 20, 24, 28, 36, 44, 48, 52, 96])
def test_frequency_on_an_edge_belongs_to_the_upper_band(cells: int) -> None:
    radius = radial_frequency(cells, cells)
    assert band_index(radius[0, cells // 4], 4) == 2
    assert band_index(radius[cells // 4, 0], 4) == 2
    assert band_index(radius[0, cells // 4 - 1], 4) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4), (9, 13), (16, 16)])
@pytest.mark.parametrize("bands", [1, 3, 8])
def test_bands_sum_to_the_map(size: tuple[int, int], bands: int) -> None:
    maps = noise(2, 3, *size)
    parts = split_bands(maps, bands)
    assert parts.shape == (bands, *maps.shape)
    torch.testing.assert_close(parts.sum(0), maps, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("periods", "band"), [((0, 0), 0), ((0, 1), 0), ((5, 0), 1), ((0, -9), 2), ((16, 16), 3)]
)
def test_a_wave_lies_in_one_band(periods: tuple[int, int], band: int) -> None:
    maps = wave(32, 32, *periods)
    parts = split_bands(maps, 4)
    torch.testing.assert_close(parts[band], maps, atol=1e-12, rtol=0)
    assert parts.abs().amax((1, 2, 3, 4)).gt(1e-12).sum() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [None, 3])
def test_gains_start_as_the_identity_bit_by_bit(channels: int | None, dtype: torch.dtype) -> None:
    maps = (100 * noise(2, 3, 7, 10)).to(dtype)
    result = BandGains(channels, 5)(maps)
    assert result.dtype == dtype
    assert torch.equal(result, maps)


def test_a_gain_scales_its_band_alone() -> None:
    slow, fast = wave(24, 40, 1, 2), wave(24, 40, 9, 0)
    gains = BandGains(bands=4).double()
    with torch.no_grad():
        gains.offsets.copy_(torch.tensor([[1.5, 0.0, 0.0, -0.5]]))
    torch.testing.assert_close(gains.gains, torch.tensor([[2.5, 1.0, 1.0, 0.5]]).double())
    torch.testing.assert_close(gains(slow + fast), 2.5 * slow + 0.5 * fast, atol=1e-12, rtol=0)


def test_channels_have_gains_of_their_own() -> None:
    maps = wave(16, 16, 0, 1).expand(1, 2, -1, -1)
    gains = BandGains(2, 4).double()
    with torch.no_grad():
        gains.offsets[1, 0] = 1.0
    torch.testing.assert_close(gains(maps)[0], maps[0] * torch.tensor([1.0, 2.0])[:, None, None])


def test_gradients_are_right() -> None:
    gains = BandGains(2, 3).double()
    maps = noise(1, 2, 5, 6).double().requires_grad_()
    torch.nn.init.normal_(gains.offsets)

    def run(maps: Tensor, offsets: Tensor) -> Tensor:
        return torch.func.functional_call(gains, {"offsets": offsets}, maps)

    assert torch.autograd.gradcheck(run, (maps, gains.offsets.detach().requires_grad_()))


def test_autocast_does_not_lower_precision() -> None:
    gains, maps = BandGains(bands=2), noise(1, 1, 8, 8)
    torch.nn.init.constant_(gains.offsets, 0.001)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gains(maps), maps * 1.001, atol=1e-6, rtol=0)


def test_log_amplitude_of_known_waves() -> None:
    # 32 x 32 cells, 2 bands: coefficients are counted here one by one, by their integer periods.
    maps = 8 * wave(32, 32, 2, 0) + wave(32, 32, 0, 12) + 5
    counts = [0, 0]
    for row in range(-16, 16):
        for column in range(-16, 16):
            if (row, column) != (0, 0):
                counts[int(math.hypot(row, column) >= 8)] += 1
    # A cosine's amplitude is shared by two coefficients, the constant has its own alone.
    expected = [math.log(8 / counts[0] / 5), math.log(1 / counts[1] / 5)]
    result = radial_log_amplitude(maps, 2)
    torch.testing.assert_close(result, torch.tensor([expected]).double(), atol=1e-6, rtol=0)
    assert torch.allclose(radial_log_amplitude(1000 * maps, 2), result)


def test_log_amplitude_of_white_noise_is_that_of_theory() -> None:
    # Odd sides have no real coefficient beside the constant.
    maps = noise(1, 40000, 11, 13)
    # A coefficient's modulus follows Rayleigh's distribution, the constant's the half-normal one:
    # sqrt(pi) / 2 against sqrt(2 / pi) of the same deviation.
    ratio = math.sqrt(math.pi) / 2 / math.sqrt(2 / math.pi)
    torch.testing.assert_close(
        radial_log_amplitude(maps, 4).exp(), torch.full((1, 4), ratio), rtol=0.01, atol=0
    )


def test_log_amplitude_of_blurred_noise_falls() -> None:
    blurred = torch.nn.functional.avg_pool2d(noise(2, 16, 48, 40), 3, 1)
    logs = radial_log_amplitude(blurred)
    assert (logs[:, 5] < logs[:, 0] - 1).all()


def test_log_amplitude_where_it_is_not_defined() -> None:
    # Frequencies of 4 x 4 cells are 0, 0.5, 1 and their combinations: nothing below a half.
    result = radial_log_amplitude(noise(1, 1, 4, 4), 4)
    assert result.isnan().tolist() == [[True, True, False, False]]
    assert (radial_log_amplitude(torch.ones(1, 1, 8, 8), 4)[:, 1:] == -math.inf).all()
    assert radial_log_amplitude(torch.zeros(1, 1, 8, 8), 4).isnan().all()


@pytest.mark.parametrize(
    ("periods", "band"), [((0, 1), 0), ((3, 0), 1), ((6, 6), 4), ((0, 15), 7), ((16, 16), 7)]
)
def test_energy_of_a_wave_lies_in_its_band(periods: tuple[int, int], band: int) -> None:
    maps = wave(32, 32, *periods) + 3
    expected = torch.zeros(1, 8).double()
    expected[0, band] = 1
    torch.testing.assert_close(radial_energy_shares(maps, 8), expected, atol=1e-12, rtol=0)


def test_energy_of_waves_is_shared_by_their_squares() -> None:
    maps = torch.cat([3 * wave(20, 32, 1, 0), 4 * wave(20, 32, 0, 12)], 1)
    expected = torch.tensor([[9 / 25, 0, 0, 16 / 25]], dtype=torch.float64)
    torch.testing.assert_close(radial_energy_shares(maps, 4), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(5, 4), (9, 13), (16, 16), (1, 7)])
def test_energy_shares_sum_to_one(size: tuple[int, int]) -> None:
    shares = radial_energy_shares(noise(3, 5, *size).double(), 8)
    torch.testing.assert_close(shares.sum(1), torch.ones(3).double())
    assert (shares >= 0).all()
    assert radial_energy_shares(torch.ones(1, 1, 8, 8)).isnan().all()


def test_energy_of_white_noise_is_shared_by_area() -> None:
    size = 256
    shares = radial_energy_shares(noise(6, 8, size, size), 4).mean(0)
    # Rings in the square of all frequencies, whose side is 2; the last one has the corners too.
    rings = [math.pi * ((k + 1) ** 2 - k**2) / 16 / 4 for k in range(3)]
    expected = torch.tensor([*rings, 1 - sum(rings)])
    torch.testing.assert_close(shares, expected, rtol=0.01, atol=0)


def test_low_frequency_share_of_known_waves() -> None:
    maps = torch.cat([3 * wave(32, 32, 1, 3) + wave(32, 32, 9, 1), wave(32, 32, 4, 0)])
    torch.testing.assert_close(low_frequency_share(maps + 50), torch.tensor([0.9, 1.0]).double())
    assert low_frequency_share(torch.ones(1, 2, 8, 8)).isnan().all()


def test_low_frequency_share_of_white_noise() -> None:
    share = low_frequency_share(noise(6, 8, 256, 256)).mean()
    assert share == pytest.approx(math.pi * 0.25**2 / 4, rel=0.01)
    assert white_noise_share(256, 256) == pytest.approx(math.pi * 0.25**2 / 4, rel=0.01)
    small = low_frequency_share(noise(2, 8000, 16, 16)).mean()
    # Waves of up to two periods: 4 of one along an axis, 4 of two, 4 along diagonals.
    assert white_noise_share(16, 16) == 12 / 255
    assert small == pytest.approx(12 / 255, rel=0.01)


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (1, 1)])
def test_low_frequency_share_where_a_map_is_too_small(size: tuple[int, int]) -> None:
    assert low_frequency_share(noise(2, 3, *size)).isnan().all()
    assert math.isnan(white_noise_share(*size))
    assert not low_frequency_share(noise(2, 3, 8, 8)).isnan().any()


def test_low_frequency_share_is_parsevals() -> None:
    maps = noise(3, 4, 20, 26).double()
    low = split_bands(maps, 4)[0] - maps.mean((-2, -1), keepdim=True)
    variance = maps.var((-2, -1), unbiased=False).sum(1)
    expected = low.square().mean((-2, -1)).sum(1) / variance
    torch.testing.assert_close(low_frequency_share(maps, 0.2499), expected)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="bands must be at least 1, got 0"):
        BandGains(bands=0)
    with pytest.raises(ValueError, match="channels must be at least 1"):
        BandGains(0)
    with pytest.raises(ValueError, match=r"expected maps with 4 channels, got \[1, 3, 8, 8\]"):
        BandGains(4)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="cutoff must be positive"):
        low_frequency_share(torch.zeros(1, 1, 4, 4), 0)
    with pytest.raises(ValueError, match="cutoff must be positive, got nan"):
        white_noise_share(4, 4, math.nan)
    with pytest.raises(ValueError, match="bands must be at least 1, got 0"):
        radial_energy_shares(torch.zeros(1, 1, 4, 4), 0)
