"""Matching between maps of different, odd sizes, against brute force and kornia's own matcher."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sketchfusion_plugins.heads.cells import cell_centres
from sketchfusion_plugins.heads.matching import (
    SketchFusionDescriptor,
    match_mutually,
    match_points,
    soft_argmax,
)


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected_position(
    similarity: np.ndarray, temperature: float, radius: int | None
) -> list[float]:
    """Soft-argmax of one similarity map in plain loops."""
    height, width = similarity.shape
    row, column = np.unravel_index(similarity.argmax(), similarity.shape)
    weight = x = y = 0.0
    for i in range(height):
        for j in range(width):
            if radius is not None and max(abs(i - row), abs(j - column)) > radius:
                continue
            share = math.exp((float(similarity[i, j]) - float(similarity.max())) / temperature)
            weight, x, y = weight + share, x + share * (j + 0.5), y + share * (i + 0.5)
    return [x / weight, y / weight]


@pytest.mark.parametrize("radius", [None, 0, 1, 2, 30])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_soft_argmax_by_brute_force(radius: int | None, temperature: float) -> None:
    similarity = random_map(2, 3, 5, 8).clamp(-1, 1).double()
    similarity[0, 0, 0, 7] = similarity[0, 1, 4, 0] = 2  # Maxima in corners cut the window.
    found = soft_argmax(similarity, temperature, radius)
    expected = [
        [expected_position(cells.numpy(), temperature, radius) for cells in image]
        for image in similarity
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_cells_outside_the_window_weigh_nothing() -> None:
    # Masked by a factor of 0 they would outweigh a negative maximum.
    similarity = torch.full((1, 1, 3, 20), -0.9)
    similarity[..., 1, 2] = -0.8
    changed = similarity.clone()
    changed[..., 5:] = -0.81
    # All weights lie in columns 0 to 4, symmetric about the maximum.
    torch.testing.assert_close(soft_argmax(similarity, 0.02, 2), torch.tensor([[[2.5, 1.5]]]))
    assert torch.equal(soft_argmax(similarity, 0.02, 2), soft_argmax(changed, 0.02, 2))


def test_coordinates_are_constants_and_gradient_is_exact() -> None:
    similarity = random_map(1, 2, 3, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: soft_argmax(values, 0.5), similarity)
    assert torch.autograd.gradcheck(lambda values: soft_argmax(values, 0.5, 1), similarity)
    (gradient,) = torch.autograd.grad(soft_argmax(similarity, 0.5).sum(), similarity)
    # Adding a constant to all similarities moves nothing.
    torch.testing.assert_close(gradient.sum((2, 3)), torch.zeros(1, 2, dtype=torch.float64))


@pytest.mark.parametrize("radius", [None, 2, 0])
@pytest.mark.parametrize("stride", [8, (6, 10)])
def test_a_map_matches_itself_at_its_centres(
    radius: int | None, stride: int | tuple[int, int]
) -> None:
    features = torch.eye(35).reshape(1, 35, 5, 7)
    points = cell_centres(features, stride)[None]
    found = match_points(
        features, features, points, source_stride=stride, target_stride=stride, radius=radius
    )
    torch.testing.assert_close(found, points)


@pytest.mark.parametrize(("side", "radius"), [(5, 1), (16, 2), (42, 5), (60, 7)])
def test_the_window_is_an_eighth_of_the_map(side: int, radius: int) -> None:
    source, target = random_map(1, 8, 4, 4), random_map(1, 8, 3, side, seed=1)
    points = cell_centres(source, 8)[None]
    options: dict[str, Any] = {"source_stride": 8, "target_stride": 8, "temperature": 0.3}
    expected = match_points(source, target, points, **options, radius=radius)
    assert torch.equal(match_points(source, target, points, **options), expected)


def test_maps_of_different_sizes_by_brute_force() -> None:
    source, target = random_map(2, 16, 5, 7), random_map(2, 16, 9, 4, seed=1)
    points = cell_centres(source, (8, 6))[None, [3, 17, 30]].expand(2, -1, -1)
    found = match_points(
        source, target, points, source_stride=(8, 6), target_stride=(4, 12), radius=2
    )
    for image in range(2):
        for number, cell in enumerate((3, 17, 30)):
            query = source[image].flatten(1)[:, cell]
            similarity = F.cosine_similarity(target[image], query[:, None, None], dim=0)
            x, y = expected_position(similarity.double().numpy(), 0.02, 2)
            torch.testing.assert_close(
                found[image, number], torch.tensor([x * 12, y * 4]), atol=1e-3, rtol=0
            )


def test_a_shifted_map_is_found_where_it_went() -> None:
    canvas = random_map(1, 32, 12, 15)
    source, target = canvas[..., 2:11, 1:12], canvas[..., 0:10, 3:15]
    points = torch.tensor([[[60.0, 44.0], [36.0, 20.0]]])  # Centres of cells.
    found = match_points(source, target, points, source_stride=8, target_stride=8)
    # Two columns to the left, two rows down.
    torch.testing.assert_close(found, points + torch.tensor([-16.0, 16.0]), atol=0.01, rtol=0)


@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_chunks_change_nothing(chunk: int) -> None:
    source, target = random_map(2, 8, 5, 7), random_map(2, 8, 6, 3, seed=1)
    points = torch.rand(2, 7, 2, generator=torch.Generator().manual_seed(2)) * 40
    options: dict[str, Any] = {"source_stride": 8, "target_stride": 8, "radius": None}
    whole = match_points(source, target, points, **options)
    torch.testing.assert_close(match_points(source, target, points, **options, chunk=chunk), whole)


def test_invisible_points_influence_nothing() -> None:
    source = random_map(1, 8, 5, 7).requires_grad_()
    target = random_map(1, 8, 6, 3, seed=1).requires_grad_()
    points = torch.tensor([[[20.0, 12.0], [float("nan"), 3.0]]])
    options: dict[str, Any] = {"source_stride": 8, "target_stride": 8, "radius": None}
    found = match_points(source, target, points, visible=torch.tensor([[True, False]]), **options)
    assert found[0, 1].isnan().all()
    alone = match_points(source, target, points[:, :1], **options)
    assert torch.equal(found[:, :1], alone)
    got = torch.autograd.grad(found.nan_to_num().sum(), (source, target))
    expected = torch.autograd.grad(alone.sum(), (source, target))
    for one, other in zip(got, expected, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shown", [None, "cpu", "cuda"])
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_points_of_another_device_than_the_maps(
    place: str, shown: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values, which refuse to be mixed as real ones do."""
    # They have no values to look at either, as while a model is compiled.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode():
        source = torch.zeros(1, 8, 5, 7, device="cuda")
        target = torch.zeros(1, 8, 6, 3, device="cuda")
        points = torch.zeros(1, 4, 2, device=place)
        visible = None if shown is None else torch.ones(1, 4, dtype=torch.bool, device=shown)
        found = match_points(
            source, target, points, source_stride=8, target_stride=8, visible=visible
        )
        assert found.shape == (1, 4, 2) and found.device.type == "cuda"


def test_no_points() -> None:
    features = random_map(2, 8, 5, 7)
    found = match_points(features, features, torch.zeros(2, 0, 2), source_stride=8, target_stride=8)
    assert found.shape == (2, 0, 2)


def test_autocast_computes_in_float32() -> None:
    source, target = random_map(1, 64, 5, 7), random_map(1, 64, 6, 3, seed=1)
    points = cell_centres(source, 8)[None]
    options: dict[str, Any] = {"source_stride": 8, "target_stride": 8}
    expected = match_points(source, target, points, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match_points(source, target, points, **options)
        matches = match_mutually(source, target, **options)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.equal(matches[0].score, match_mutually(source, target, **options)[0].score)
    half = match_points(source.bfloat16(), target.bfloat16(), points, **options)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": -1}, r"radius must be 0 cells or more.*-1"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
        ({"chunk": 0}, r"chunk must be at least 1 point"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    features = random_map(1, 8, 5, 7)
    with pytest.raises(ValueError, match=message):
        match_points(
            features, features, torch.zeros(1, 1, 2), source_stride=8, target_stride=8, **options
        )


def test_mutual_matches_by_brute_force() -> None:
    source, target = random_map(2, 6, 5, 7), random_map(2, 6, 4, 9, seed=1)
    pairs = match_mutually(source, target, source_stride=(8, 4), target_stride=10)
    assert len(pairs) == 2
    for image, matches in enumerate(pairs):
        first = F.normalize(source[image].flatten(1).T, dim=1).double().numpy()
        second = F.normalize(target[image].flatten(1).T, dim=1).double().numpy()
        similarity = first @ second.T
        expected = {}
        for row in range(len(first)):
            column = int(similarity[row].argmax())
            if similarity[:, column].argmax() == row:
                place = (row % 7 * 4 + 2.0, row // 7 * 8 + 4.0)
                expected[place] = (
                    column % 9 * 10 + 5.0,
                    column // 9 * 10 + 5.0,
                    similarity[row, column],
                )
        assert 0 < len(expected) < 35
        assert matches.source.shape == matches.target.shape == (len(expected), 2)
        for place, found, score in zip(
            matches.source.tolist(), matches.target.tolist(), matches.score.tolist(), strict=True
        ):
            x, y, value = expected[place[0], place[1]]
            assert found == [x, y]
            assert score == pytest.approx(value, abs=1e-6)
        assert matches.score.tolist() == sorted(matches.score.tolist(), reverse=True)


class Patches(torch.nn.Module):
    """Stands in for an encoder: every cell is described by its own 4 x 4 pixels."""

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % 4, 0, -height % 4))
        return F.pixel_unshuffle(padded, 4)


def test_kornia_matches_an_image_with_its_shifted_copy() -> None:
    from kornia.feature import DescriptorMatcher, LocalFeatureMatcher

    canvas = random_map(1, 3, 60, 72)
    first, second = canvas[..., 8:49, 4:70], canvas[..., 0:43, 16:72]
    matcher = LocalFeatureMatcher(
        SketchFusionDescriptor(Patches(), stride=4), DescriptorMatcher("mnn")
    )
    result = matcher({"image0": first, "image1": second})
    moved = result["keypoints1"] - result["keypoints0"]
    right = (moved == torch.tensor([-12.0, 8.0])).all(1)
    certain = result["confidence"] > 0.99
    # Both images show rows 8 to 40 and columns 16 to 68 of the canvas in whole cells.
    assert certain.sum() == 8 * 13
    assert right[certain].all()
    # kornia's first pixel is centred at 0.
    assert result["keypoints0"].min() == 1.5


def test_frames_span_their_cells() -> None:
    from kornia.feature.laf import extract_patches_simple, get_laf_center

    image = random_map(2, 3, 20, 28)
    frames, responses, descriptors = SketchFusionDescriptor(Patches())(image)
    assert frames.shape == (2, 35, 2, 3)
    assert torch.equal(responses, torch.ones(2, 35))
    torch.testing.assert_close(descriptors.norm(dim=2), torch.ones(2, 35))
    torch.testing.assert_close(get_laf_center(frames)[0] + 0.5, cell_centres(torch.zeros(5, 7), 4))
    patches = extract_patches_simple(image, frames, 4)
    cells = image.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    torch.testing.assert_close(patches, cells, atol=1e-4, rtol=0)


def test_masked_cells_are_no_key_points() -> None:
    from kornia.feature import laf_is_filled

    image = random_map(1, 3, 18, 26)
    mask = torch.zeros(1, 1, 18, 26)
    mask[..., 4:12, 8:] = 1
    frames, responses, _ = SketchFusionDescriptor(Patches(), stride=4)(image, mask)
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[1:3, 2:] = True
    assert torch.equal(laf_is_filled(frames)[0], expected.flatten())
    assert torch.equal(responses[0], expected.flatten().float())
    with pytest.raises(ValueError, match=r"mask \[1, 1, 18, 26\].*\[1, 1, 9, 26\]"):
        SketchFusionDescriptor(Patches(), stride=4)(image, mask[:, :, :9])


def test_an_encoder_of_many_maps_is_refused() -> None:
    image = torch.zeros(1, 3, 16, 16)
    descriptor = SketchFusionDescriptor(lambda image: (image, image))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"one map \[B, C, h, w\], got tuple"):
        descriptor(image)
    with pytest.raises(ValueError, match=r"one map \[B, C, h, w\], got \[1, 3\]"):
        SketchFusionDescriptor(lambda image: image.mean((2, 3)))(image)


def test_encoder_trains_through_the_descriptor(build: Any, sketches: Any) -> None:
    encoder = build(aggregation__stride=8)
    descriptor = SketchFusionDescriptor(encoder, stride=8)
    assert list(descriptor.parameters())
    frames, _, descriptors = descriptor(sketches(1, 64, 48))
    assert frames.shape == (1, 8 * 6, 2, 3)
    descriptors[0, :, 0].sum().backward()
    gradients = [parameter.grad for parameter in encoder.injector.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
