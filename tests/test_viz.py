"""Figures: principal components against numpy's SVD, sheets and files by what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sketchfusion_plugins.viz import (
    draw_matches,
    feature_sheet,
    figures,
    overlay_mask,
    pca_rgb,
    save_figure,
)


def _features(batch: int, channels: int, side: int) -> np.ndarray:
    """Three hidden directions of clearly different strength and a little noise."""
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(channels, 3)))[0]
    hidden = generator.uniform(-1, 1, (batch, side, side, 3)) * (9, 3, 1)
    features = hidden @ directions.T + generator.normal(size=channels)
    features += 1e-3 * generator.normal(size=features.shape)
    return np.asarray(np.moveaxis(features, -1, 1), dtype=np.float32)


def _svd_colours(features: np.ndarray) -> np.ndarray:
    """The documented colours, by singular value decomposition."""
    pixels = np.moveaxis(features.astype(np.float64), 1, -1)
    centred = pixels.reshape(-1, pixels.shape[-1])
    centred = centred - centred.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    colours = []
    for axis in axes:
        values = centred @ (axis * np.sign(axis[np.abs(axis).argmax()]))
        low, high = np.quantile(values, [0.02, 0.98])
        colours.append((values - low) / (high - low))
    return np.stack(colours, -1).clip(0, 1).reshape(*pixels.shape[:3], 3)


@pytest.mark.parametrize(("channels", "side"), [(8, 12), (400, 8)])
def test_pca_matches_svd(channels: int, side: int) -> None:
    features = _features(2, channels, side)
    colours = pca_rgb(features)
    assert colours.shape == (2, side, side, 3)
    assert colours.min() == 0 and colours.max() == 1
    np.testing.assert_allclose(colours, _svd_colours(features), atol=1e-5)


def test_pca_basis_is_shared_by_the_batch() -> None:
    flat = np.ones((4, 5, 6, 6))
    flat[2:] *= -2.0
    colours = pca_rgb(flat)
    # Each map is constant; only a basis of its own would make all of them grey.
    np.testing.assert_array_equal(colours[:2, ..., 0], 1)
    np.testing.assert_array_equal(colours[2:, ..., 0], 0)
    np.testing.assert_array_equal(colours[..., 1:], 0.5)


def test_pca_sign_does_not_depend_on_order_or_library() -> None:
    features = _features(3, 16, 8)
    colours = pca_rgb(features)
    np.testing.assert_allclose(pca_rgb(features[::-1]), colours[::-1], atol=1e-6)
    # Same axes, opposite scores.
    np.testing.assert_allclose(pca_rgb(-features), 1 - colours, atol=1e-6)
    np.testing.assert_allclose(pca_rgb(torch.from_numpy(features)), colours, atol=1e-12)


def test_pca_takes_half_precision_and_gradients() -> None:
    features = _features(2, 16, 8)
    half = torch.from_numpy(features).bfloat16().requires_grad_()
    np.testing.assert_allclose(pca_rgb(half)[..., 0], pca_rgb(features)[..., 0], atol=0.02)


def test_pca_scaling_withstands_an_outlier() -> None:
    features = np.zeros((1, 1, 20, 20))
    features[0, 0] = np.linspace(0, 1, 400).reshape(20, 20)
    colours = pca_rgb(features)[0, ..., 0].ravel()
    features[0, 0, -1, -1] = 1000.0
    np.testing.assert_allclose(pca_rgb(features)[0, ..., 0].ravel()[:-1], colours[:-1], atol=0.02)


def test_pca_shows_a_single_spot() -> None:
    features = np.zeros((1, 4, 30, 30))
    features[0, 2, 3, 4] = 1.0
    expected = np.zeros((30, 30))
    expected[3, 4] = 1
    np.testing.assert_array_equal(pca_rgb(features)[0, ..., 0], expected)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (1, 50, 2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_constant_features_are_mid_grey(shape: tuple[int, ...], value: float) -> None:
    np.testing.assert_array_equal(pca_rgb(np.full(shape, value, dtype=np.float32)), 0.5)


@pytest.mark.parametrize("channels", [6, 200])
def test_missing_components_are_mid_grey(channels: int) -> None:
    direction = np.random.default_rng(0).normal(size=(1, channels, 1, 1))
    colours = pca_rgb(direction * np.linspace(0, 1, 49).reshape(1, 1, 7, 7))
    assert np.ptp(colours[..., 0]) == 1
    np.testing.assert_array_equal(colours[..., 1:], 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pca_refuses_values_that_are_not_finite(bad: float) -> None:
    features = _features(1, 4, 4)
    features[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        pca_rgb(features)


@pytest.mark.parametrize("shape", [(4, 4, 4), (0, 4, 4, 4), (1, 4, 0, 4)])
def test_pca_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, C, h, w\]"):
        pca_rgb(np.zeros(shape))


def _columns() -> dict[str, np.ndarray]:
    drawings = np.full((2, 400, 400, 3), 255, dtype=np.uint8)
    maps = np.zeros((2, 2, 2, 3))
    maps[:, 0, 0] = (1, 0, 0)
    maps[1, 1, 1] = (0, 0, 1)
    return {"drawing": drawings, "fused": maps}


def _shown(figure: object) -> np.ndarray:
    """Pixels of the drawn figure."""
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_sheet_has_a_row_per_image_and_a_column_per_title() -> None:
    pytest.importorskip("matplotlib")
    figure = feature_sheet(_columns(), row_labels=["cat", "dog"])
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["drawing", "fused"]
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["cat", "dog"]
    positions = {
        title: axes.get_position() for title, axes in zip("abcd", figure.axes, strict=True)
    }
    assert positions["a"].x0 == positions["b"].x0 < positions["c"].x0
    assert positions["a"].y0 == positions["c"].y0 > positions["b"].y0


def test_sheet_shows_sharp_map_pixels_on_white() -> None:
    pytest.importorskip("matplotlib")
    figure = feature_sheet(_columns())
    pixels = _shown(figure)
    assert (pixels[0] == 255).all()
    # Middle of each quadrant of the lower right cell; 1 pixel from the seam in the first one.
    box = figure.axes[3].get_window_extent()
    top, left = pixels.shape[0] - box.y1, box.x0

    def at(down: float, right: float) -> object:
        return pixels[int(top + down * box.height), int(left + right * box.width)].tolist()

    assert at(0.25, 0.25) == at(0.49, 0.49) == [255, 0, 0]
    assert at(0.75, 0.75) == at(0.51, 0.51) == [0, 0, 255]
    assert at(0.25, 0.75) == at(0.75, 0.25) == [0, 0, 0]


def test_sheet_keeps_thin_lines_of_large_drawings() -> None:
    pytest.importorskip("matplotlib")
    for column in (1200, 1203, 1206):
        drawing = np.full((1, 2400, 2400, 3), 255, dtype=np.uint8)
        drawing[:, :, column] = 0
        figure = feature_sheet({"drawing": drawing})
        box = figure.axes[0].get_window_extent()
        pixels = _shown(figure)
        row = pixels[int(pixels.shape[0] - box.y0 - box.height / 2)]
        # Inside the frame, away from its border.
        assert row[int(box.x0) + 5 : int(box.x1) - 5].min() < 250


def test_sheet_takes_tensors_and_leaves_pyplot_alone() -> None:
    pytest.importorskip("matplotlib")
    import matplotlib._pylab_helpers as managers

    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    maps = torch.rand(1, 4, 4, 3, requires_grad=True)
    figure = feature_sheet({"image": images, "map": maps})
    assert len(figure.axes) == 2
    assert managers.Gcf.get_num_fig_managers() == 0


@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        ({}, None, "equally many"),
        ({"a": np.zeros((1, 2, 2, 3)), "b": np.zeros((2, 2, 2, 3))}, None, "'b': 2"),
        ({"a": np.zeros((1, 3, 2, 2))}, None, "'a' must be"),
        ({"a": np.zeros((0, 2, 2, 3))}, None, "'a' must be"),
        ({"a": np.zeros((1, 2, 2, 3), dtype=int)}, None, "uint8 or float"),
        ({"a": np.full((1, 2, 2, 3), 1.5)}, None, "outside"),
        ({"a": np.full((1, 2, 2, 3), np.nan)}, None, "NaN"),
        ({"a": np.zeros((1, 2, 2, 3))}, ["x", "y"], "2 row labels for 1"),
    ],
)
def test_sheet_refuses_bad_columns(
    columns: dict[str, np.ndarray], labels: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        feature_sheet(columns, labels)


def test_figures_are_saved_by_suffix_and_reproducibly(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    png, svg = tmp_path / "new" / "sheet.png", tmp_path / "sheet.SVG"
    save_figure(feature_sheet(_columns()), png, dpi=50)
    assert image.open(png).size == (160, 175)
    save_figure(feature_sheet(_columns()), str(svg))
    first = svg.read_bytes()
    assert b"<svg" in first
    save_figure(feature_sheet(_columns()), svg)
    assert svg.read_bytes() == first
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["sheet.SVG", "sheet.png"]


def test_dollars_are_no_formula(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = "$x^{$ and $y$"
    figure = feature_sheet({name: np.zeros((1, 8, 8, 3))}, [name])
    save_figure(figure, tmp_path / "name.svg")
    assert (tmp_path / "name.svg").read_text().count(name) >= 2
    # A figure of the user's own keeps its formulas.
    own = figures.new_figure((2, 1))
    formula = own.text(0.1, 0.5, r"$\alpha$")
    save_figure(own, tmp_path / "own.svg")
    assert formula.get_parse_math()


@pytest.mark.parametrize("name", ["sheet.jpg", "sheet"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"valid suffixes: \.png, \.svg"):
        save_figure(feature_sheet(_columns()), tmp_path / name)


def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = feature_sheet(_columns())
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def fail(*args: object, **kwargs: object) -> None:
        Path(str(args[0])).write_bytes(b"half")
        raise OSError("disk full")

    figure.savefig = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_matches_are_drawn_at_their_pixels() -> None:
    from matplotlib import colormaps

    source = np.full((50, 100, 3), 255, dtype=np.uint8)
    target = torch.ones(25, 25, 3)
    figure = draw_matches(
        source, target, torch.tensor([[25.0, 25.0], [5.0, 45.0]]), np.array([[20, 5], [20.0, 20.0]])
    )
    shown = _shown(figure)[..., :3].astype(int)
    # 4 inches high at 150 dpi: 12 px per pixel of the source, 24 of the target.
    assert shown.shape == (600, 1800, 3)
    first = (np.array(colormaps["turbo"](0.1)[:3]) * 255).round()
    last = (np.array(colormaps["turbo"](0.9)[:3]) * 255).round()
    places = {(300, 300): first, (1680, 120): first, (60, 540): last, (1680, 480): last}
    places[990, 210] = first  # half way on the line between them
    for (x, y), colour in places.items():
        near = shown[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)
        assert np.abs(near - colour).max(1).min() < 60, (x, y)
    for x, y in ((300, 60), (1500, 560), (1000, 400)):
        assert (shown[y, x] == 255).all()


@pytest.mark.parametrize(
    ("points", "targets"),
    [((2, 2), (3, 2)), ((2, 3), (2, 3)), ((2,), (2,)), ((1, 2, 2), (1, 2, 2))],
)
def test_matches_need_points(points: tuple[int, ...], targets: tuple[int, ...]) -> None:
    picture = np.ones((9, 9, 3))
    with pytest.raises(ValueError, match=r"points must be \[N, 2\]"):
        draw_matches(picture, picture, np.zeros(points), np.zeros(targets))


def test_overlay_tints_the_part_alone() -> None:
    picture = np.array([[[200, 100, 51]] * 3] * 2, dtype=np.uint8)
    mask = torch.tensor([[True, False, False], [False, False, True]])
    # Half the picture and half red, rounded to even.
    expected = picture.copy()
    expected[0, 0] = expected[1, 2] = (228, 50, 26)
    np.testing.assert_array_equal(overlay_mask(picture, mask), expected)
    np.testing.assert_allclose(overlay_mask(picture / 255.0, mask), expected, atol=1)


@pytest.mark.parametrize("mask", [np.zeros((2, 2), bool), np.zeros((2, 3), np.uint8)])
def test_overlay_refuses_other_masks(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"mask must be bool \[2, 3\]"):
        overlay_mask(np.ones((2, 3, 3)), mask)
