"""Features against what they are made of: the encoder's parts, timm, scikit-image, pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from skimage.feature import hog
from torch import Tensor

from sketchfusion_plugins.baselines import hog_features, pixel_features
from sketchfusion_plugins.encoder import FeatureLevels
from sketchfusion_plugins.features import (
    ClipFeatures,
    ConcatenatedFeatures,
    DiffusionFeatures,
    Features,
    FusedFeatures,
    HogFeatures,
    PixelFeatures,
    RandomFeatures,
    TimmFeatures,
    join,
    pixel_similarity,
)
from sketchfusion_plugins.tasks.query_segmentation import QuerySegmentation

SIZES = [(64, 64), (45, 99), (72, 40)]
MODELS: dict[str, Callable[[Any], Features]] = {
    "clip": lambda build: ClipFeatures(build()),
    "concatenated": lambda build: ConcatenatedFeatures(build()),
    "diffusion": lambda build: DiffusionFeatures(build()),
    "fused": lambda build: FusedFeatures(build()),
    "hog": lambda _: HogFeatures(),
    "pixels": lambda _: PixelFeatures(),
    "timm": lambda _: TimmFeatures("resnet10t", pretrained=False),
}


def unit(maps: Tensor) -> Tensor:
    return maps / maps.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_its_images(name: str, size: tuple[int, int], build: Any, sketches: Any) -> None:
    model = MODELS[name](build).eval()
    images = sketches(3, *size)
    maps, described = model(images), model.describe(images)
    assert maps.ndim == 4 and maps.shape[:2] == (3, model.channels)
    alone = [images[i : i + 1] for i in range(3)]
    torch.testing.assert_close(
        torch.cat([model(image) for image in alone]), maps, atol=1e-4, rtol=1e-3
    )
    torch.testing.assert_close(
        torch.cat([model.describe(image) for image in alone]), described, atol=2e-5, rtol=1e-3
    )
    torch.testing.assert_close(described.norm(dim=1), torch.ones(3))
    assert (described[0] - described[1]).abs().max() > 5e-4


@pytest.mark.parametrize("size", SIZES)
def test_fused_is_the_encoders_map(build: Any, sketches: Any, size: tuple[int, int]) -> None:
    encoder = build()
    model, images = FusedFeatures(encoder), sketches(2, *size)
    assert (model.channels, model.stride) == (64, 8)
    assert torch.equal(model(images), encoder(images))


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("size", [(328, 320), (64, 100)])
def test_fused_cells_are_as_large_as_what_they_show(
    stride: int, size: tuple[int, int], build: Any
) -> None:
    """Levels that hold where their own pixels lie."""
    encoder = build(aggregation__stride=stride)
    model = FusedFeatures(encoder)

    class Finest(torch.nn.Module):
        def forward(self, maps: Any, grid: tuple[int, int]) -> torch.Tensor:
            return F.interpolate(maps[0], grid, mode="bilinear")

    encoder.aggregator = Finest()
    rows, columns = (-(-side // 8) for side in size)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    levels = FeatureLevels((torch.stack([y, x])[None] * 8.0 + 4,), (8,), ("up2",))
    shown = encoder.aggregate(levels, size)
    assert shown.shape[-2:] == tuple(-(-side // stride) for side in size)
    sizes = model.cell_size(torch.zeros(1, 3, *size), shown)
    for axis, (cell, count) in enumerate(zip(sizes, shown.shape[-2:], strict=True)):
        lies = shown[0, axis].select(1 - axis, 0)
        centres = (torch.arange(count) + 0.5) * cell
        # Beyond the outermost centres of the finest cells there is nothing to interpolate.
        torch.testing.assert_close(lies[1:-1], centres[1:-1], rtol=1e-5, atol=1e-3)


def test_descriptors_are_unit_means_over_sixteen_parts(build: Any, sketches: Any) -> None:
    encoder = build()
    images = sketches(2, 64)
    parts = encoder(images).unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    flat = parts.flatten(1)
    expected = flat / flat.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(FusedFeatures(encoder).describe(images), expected)


@pytest.mark.parametrize("changes", [{"aggregation": None}, {"aggregation__stride": (8, 16)}])
def test_encoders_without_one_map_are_refused(build: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"aggregates to one map .*got aggregation"):
        FusedFeatures(build(untouched=True, **changes))


@pytest.mark.parametrize("size", SIZES)
def test_diffusion_joins_its_own_levels(build: Any, sketches: Any, size: tuple[int, int]) -> None:
    encoder = build()
    model, images = DiffusionFeatures(encoder), sketches(2, *size)
    levels = encoder.forward_levels(images, fuse=False)
    assert levels.strides == (8, 16, 32)
    grid = levels.maps[0].shape[-2:]
    expected = [F.interpolate(unit(level), grid, mode="bilinear") for level in levels.maps]
    torch.testing.assert_close(model(images), torch.cat(expected, 1))
    assert model.channels == sum(level.shape[1] for level in levels.maps)
    # Whatever was injected, Stable Diffusion alone stays as it is.
    torch.testing.assert_close(DiffusionFeatures(build(seed=8))(images), model(images))


def test_clip_is_its_tokens(build: Any, sketches: Any) -> None:
    encoder = build()
    model, images = ClipFeatures(encoder), sketches(2, 64, 48)
    assert torch.equal(model(images), encoder.forward_tokens(images))
    assert model.channels == 48


def test_concatenation_weighs_both_parts_the_same(build: Any, sketches: Any) -> None:
    encoder = build()
    images = sketches(2, 64, 48)
    result = ConcatenatedFeatures(encoder)(images)
    split = DiffusionFeatures(encoder).channels
    diffusion, clip = result[:, :split], result[:, split:]
    torch.testing.assert_close(diffusion, unit(DiffusionFeatures(encoder)(images)))
    tokens = unit(encoder.forward_tokens(images))
    grid = diffusion.shape[-2:]
    torch.testing.assert_close(clip, F.interpolate(tokens, grid, mode="bilinear"))


def test_join_by_hand() -> None:
    fine = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 4) * torch.arange(1.0, 9.0)[
        None, None
    ].reshape(1, 1, 2, 4)
    coarse = torch.tensor([[[[2.0, -5.0]]]])
    joined = join((fine, coarse.half()))
    assert joined.shape == (1, 3, 2, 4) and joined.dtype == torch.float32
    torch.testing.assert_close(joined[0, 0], torch.full((2, 4), 0.6))
    torch.testing.assert_close(joined[0, 1], torch.full((2, 4), 0.8))
    # Bilinear between cells' centres: 1, 3/4 1 - 1/4, ..., -1.
    row = torch.tensor([1.0, 0.5, -0.5, -1.0])
    torch.testing.assert_close(joined[0, 2], row.expand(2, 4))


CHANNELS_LAST: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)},
    "mambaout_femto": {"depths": (1, 1), "dims": (24, 48)},
}


@pytest.mark.parametrize("name", CHANNELS_LAST)
def test_maps_that_timm_makes_with_channels_last_have_them_first(
    name: str, sketches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(timm.create_model, **CHANNELS_LAST[name])
    monkeypatch.setattr(timm, "create_model", small)
    torch.manual_seed(0)
    model = TimmFeatures(name, pretrained=False, size=64).eval()
    # The same through timm's other door, which puts them first by itself.
    torch.manual_seed(0)
    sizing = {"img_size": 64} if name.startswith("swin") else {}
    oracle = small(name, pretrained=False, **sizing).eval()
    images = sketches(2, 64)
    (expected,) = oracle.forward_intermediates(
        model.normalise(images * 0.5 + 0.5), indices=1, intermediates_only=True, output_fmt="NCHW"
    )
    assert expected.shape == (2, 48, 8, 8) and model.channels == 48
    torch.testing.assert_close(model(images), expected)


def test_timm_is_timms_last_map(sketches: Any) -> None:
    torch.manual_seed(0)
    model = TimmFeatures("resnet10t", pretrained=False)
    images = sketches(2, 45, 99)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    # The same architecture through timm's other door.
    torch.manual_seed(0)
    oracle = timm.create_model("resnet10t", pretrained=False).eval()
    oracle.load_state_dict(model.model.state_dict(), strict=False)
    expected = oracle.forward_features(((images + 1) / 2 - mean) / deviation)
    torch.testing.assert_close(model(images), expected)
    assert model.channels == 512
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_timm_reads_safetensors_alone_from_a_folder(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t")
    timm.models.save_for_hf(model, tmp_path, safe_serialization="both")
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    pickled = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save(pickled, tmp_path / "pytorch_model.bin")
    read = TimmFeatures(f"local-dir:{tmp_path}").model.state_dict()
    assert read and all(
        torch.equal(value, model.state_dict()[name]) for name, value in read.items()
    )
    (tmp_path / "other.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \.safetensors file\. Write one with timm"):
        TimmFeatures(f"local-dir:{tmp_path}")


def test_a_transformer_in_a_folder_takes_the_size_that_is_asked_for(
    sketches: Any, tmp_path: Path
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True, model_args={"depth": 1})
    features = TimmFeatures(f"local-dir:{tmp_path}", size=64)
    assert features(sketches(1, 90, 70)).shape == (1, 192, 4, 4)


def test_timm_stays_frozen_in_training(sketches: Any) -> None:
    model = TimmFeatures("resnet10t", pretrained=False)
    images = sketches(2, 64)
    expected = model(images)
    around = torch.nn.Sequential(model)
    for mode in (True, False, True):
        assert around.train(mode) is around
        assert model.training == mode
        assert not any(module.training for module in model.model.modules())
        assert model.train(mode) is model
    # Statistics of the batch would be others, and change those that are kept.
    assert torch.equal(model(images), expected)


def test_timm_resizes_to_the_size_asked_for(sketches: Any) -> None:
    torch.manual_seed(0)
    model = TimmFeatures("vit_tiny_patch16_224", pretrained=False, size=64).eval()
    images = sketches(2, 45, 99)
    resized = F.interpolate(images, (64, 64), mode="bicubic", antialias=True)
    # This model's own statistics: 0.5 and 0.5.
    expected = model.model(resized)[0]
    torch.testing.assert_close(model(images), expected)
    assert expected.shape == (2, 192, 4, 4) and model.channels == 192


def test_timm_resizes_for_convolutions_too(sketches: Any) -> None:
    model = TimmFeatures("resnet10t", pretrained=False, size=64).eval()
    images = sketches(2, 45, 99)
    resized = F.interpolate(images, (64, 64), mode="bicubic", antialias=True)
    expected = model.model(model.normalise(resized * 0.5 + 0.5))[0]
    torch.testing.assert_close(model(images), expected)
    assert expected.shape[2:] == (2, 2)


@pytest.mark.parametrize("size", [(64, 64), (48, 72)])
def test_hog_is_scikit_images(sketches: Any, size: tuple[int, int]) -> None:
    images = sketches(2, *size)
    model = HogFeatures()
    for image, cells in zip(images, model(images), strict=True):
        blocks = hog(
            image.mean(0).numpy(),
            orientations=9,
            pixels_per_cell=(8, 8),
            cells_per_block=(2, 2),
            block_norm="L2-Hys",
            feature_vector=False,
        ).reshape(size[0] // 8 - 1, size[1] // 8 - 1, 36)
        assert cells.shape == (36, size[0] // 8, size[1] // 8)
        inner = (blocks[:-1, :-1] + blocks[1:, :-1] + blocks[:-1, 1:] + blocks[1:, 1:]) / 4
        np.testing.assert_allclose(
            cells[:, 1:-1, 1:-1].permute(1, 2, 0), inner, rtol=1e-5, atol=1e-6
        )
        # A corner is part of one block alone.
        np.testing.assert_allclose(cells[:, 0, 0], blocks[0, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(cells[:, -1, 0], blocks[-1, 0], rtol=1e-5, atol=1e-6)
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    expected = torch.from_numpy(hog_features(pixels))
    torch.testing.assert_close(model.describe(images), F.normalize(expected, dim=1))


def test_pixels_by_hand(sketches: Any) -> None:
    images = sketches(2, 40, 64)
    model = PixelFeatures()
    maps = model(images)
    assert maps.shape == (2, 64, 5, 8)
    dark = (1 - images.mean(1)) / 2
    torch.testing.assert_close(maps[1, :, 3, 2].reshape(8, 8), dark[1, 24:32, 16:24])
    pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    expected = torch.from_numpy(pixel_features(pixels))
    torch.testing.assert_close(model.describe(images), F.normalize(expected, dim=1))


def test_odd_sides_are_padded_with_white(sketches: Any) -> None:
    images = sketches(1, 45, 99)
    white = torch.ones(1, 3, 48, 104)
    white[..., :45, :99] = images
    for model in (PixelFeatures(), HogFeatures()):
        maps = model(images)
        assert maps.shape[-2:] == (6, 13)
        assert torch.equal(maps, model(white))


@pytest.mark.parametrize("model", [PixelFeatures(), HogFeatures()])
def test_grey_and_transparent_images_are_taken_as_rgb(model: Features, sketches: Any) -> None:
    grey = sketches(2, 64)[:, :1]
    expected = model(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model(grey), expected)
    torch.testing.assert_close(model.describe(grey), model.describe(grey.expand(-1, 3, -1, -1)))
    clear = torch.cat([torch.zeros(2, 3, 64, 64), -torch.ones(2, 1, 64, 64)], 1)
    torch.testing.assert_close(model(clear), model(torch.ones(2, 3, 64, 64)))


def test_noise_is_seeded_and_never_repeats() -> None:
    images = torch.zeros(2, 3, 45, 99)
    model, same, other = RandomFeatures(3), RandomFeatures(3), RandomFeatures(4)
    first, second = model(images), model(images)
    assert first.shape == (2, 64, 6, 13)
    assert torch.equal(same(images), first) and torch.equal(same(images), second)
    assert not torch.equal(first, second) and not torch.equal(other(images), first)
    assert abs(float(first.mean())) < 0.05 and abs(float(first.std()) - 1) < 0.05
    state = torch.get_rng_state()
    model(images)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


@pytest.mark.parametrize("size", [(100, 100), (45, 99)])
@pytest.mark.parametrize("name", ["concatenated", "diffusion", "fused", "hog", "pixels", "random"])
def test_cells_of_8_px_stay_so_at_any_size(
    name: str, size: tuple[int, int], build: Any, sketches: Any
) -> None:
    model = RandomFeatures() if name == "random" else MODELS[name](build)
    images = sketches(1, *size)
    cells = model.eval()(images)
    assert cells.shape[-2:] == (-(-size[0] // 8), -(-size[1] // 8))
    assert model.cell_size(images, cells) == (8, 8)


def test_clips_grid_spans_the_padded_image(build: Any, sketches: Any) -> None:
    encoder, images = build(), sketches(1, 100, 45)
    model = ClipFeatures(encoder)
    cells = model(images)
    assert torch.equal(cells, model(F.pad(images, (0, 3, 0, 4), mode="replicate")))
    rows, columns = cells.shape[-2:]
    assert model.cell_size(images, cells) == (104 / rows, 48 / columns)


def test_maps_without_a_stride_span_their_image(sketches: Any) -> None:
    model, images = TimmFeatures("resnet10t", pretrained=False), sketches(1, 64, 96)
    assert model.cell_size(images, model.eval()(images)) == (32, 32)
    assert model.cell_size(sketches(1, 50, 90), torch.zeros(1, 512, 2, 3)) == (25, 30)


def test_similarity_of_pixels_is_placed_by_the_stride() -> None:
    """At 100 px the sketch is like the first 6 of 13 columns of cells, 48 columns of pixels."""

    class Halves(Features):
        channels, stride = 2, 8

        def forward(self, image: Tensor) -> Tensor:
            cells = torch.zeros(len(image), 2, 13, 13)
            cells[:, 0, :, :6] = cells[:, 1, :, 6:] = 1.0
            # A white image is of one kind all over.
            cells[(image == 1).flatten(1).all(1)] = torch.tensor([2.0, 0.0])[:, None, None]
            return cells

    drawing = torch.ones(1, 3, 100, 100)
    similarity = pixel_similarity(Halves(), drawing, torch.zeros(1, 3, 100, 100))
    assert similarity.shape == (1, 100, 100)
    # Bilinear between the centres of cells, 44 and 52 px.
    torch.testing.assert_close(
        similarity[0, 3, 40:56], 1 - (torch.arange(40.5, 56) - 44).clamp(0, 8) / 8
    )
    assert torch.equal(similarity[0] > 0.5, (torch.arange(100) < 48).expand(100, 100))
    # Ink on the right alone is like the right, however much paper is on the left.
    drawing[..., 90:] = -1
    similarity = pixel_similarity(Halves(), drawing, torch.zeros(1, 3, 100, 100))
    assert torch.equal(similarity[0] > 0.5, (torch.arange(100) >= 48).expand(100, 100))


def test_similarity_of_pixels_is_what_query_segmentation_learns_from(
    build: Any, sketches: Any
) -> None:
    task = QuerySegmentation(build()).eval()
    sketch, photo = sketches(1, 100), sketches(2, 100)[1:]
    with torch.no_grad():
        task.head.log_scale.zero_()
        task.head.threshold.zero_()
        torch.testing.assert_close(
            pixel_similarity(task.features, sketch, photo), task(sketch, photo)
        )
