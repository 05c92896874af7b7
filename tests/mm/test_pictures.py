"""Picture files reach mmseg's models as the rest of the package reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmseg")

import torch
from mmengine.config import Config
from mmengine.fileio import get, get_text
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, VISUALIZERS
from mmseg.structures import SegDataSample
from PIL import Image, ImageDraw
from torch import Tensor

from sketchfusion_plugins import open_image
from sketchfusion_plugins.mm.pictures import PICTURES

CONFIGS = Path(__file__).parents[2] / "mmseg_configs"
NAMES = ("tiny_linear_folder_128", "tiny_linear_openmoji_128", "tiny_linear_spg_128")
ROTATED = 6


def transparent(path: Path) -> None:
    """A black line on nothing, whose colour is black too."""
    image = Image.new("RGBA", (96, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).line([(10, 10), (80, 50)], fill=(0, 0, 0, 255), width=3)
    image.save(path)


def palette_with_transparency(path: Path) -> None:
    image = Image.new("P", (96, 64), 0)
    image.putpalette([0, 0, 0, 200, 30, 10])
    ImageDraw.Draw(image).line([(10, 10), (80, 50)], fill=1, width=3)
    image.save(path, transparency=0)


def grey_of_16_bits(path: Path) -> None:
    values = np.linspace(0, 65535, 96 * 64).reshape(64, 96)
    Image.fromarray(values.astype(np.uint16)).save(path)


def rotated_photo(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(noise).resize((96, 64)).save(path, "JPEG", exif=exif)


PICTURES_OF_ALL_KINDS = (transparent, palette_with_transparency, grey_of_16_bits, rotated_photo)


def as_the_package_reads(path: Path) -> Tensor:
    """BGR, channels first."""
    return torch.from_numpy(np.array(open_image(path))[..., ::-1].copy()).permute(2, 0, 1)


@pytest.fixture(params=PICTURES_OF_ALL_KINDS, ids=lambda draw: draw.__name__)
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    request.param(path)
    return path


class Given:
    """In a model's place: keeps what it is given."""

    def __init__(self, config: Config) -> None:
        self.cfg = config

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        self.inputs: list[Tensor] = data["inputs"]
        return list(data["data_samples"])


@pytest.mark.parametrize("name", NAMES)
def test_inference_model_is_given_these_pixels(name: str, picture: Path) -> None:
    from mmseg.apis import inference_model

    config = Config.fromfile(CONFIGS / f"{name}.py")
    init_default_scope("mmseg")
    config.test_pipeline = [step for step in config.test_pipeline if step.type != "Resize"]
    model = Given(config)
    expected = as_the_package_reads(picture)
    result = inference_model(model, str(picture))
    assert torch.equal(model.inputs[0], expected)
    assert tuple(result.ori_shape) == tuple(expected.shape[1:])
    # Pictures in memory are taken as they are.
    inference_model(model, expected.permute(1, 2, 0).numpy())
    assert torch.equal(model.inputs[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_inferencer_is_given_these_pixels(name: str, tmp_path: Path) -> None:
    from mmseg.apis import MMSegInferencer

    transparent(tmp_path / "line.png")
    config = Config.fromfile(CONFIGS / f"{name}.py")
    config.model.backbone.weights = "random"
    for pipeline in (config.test_pipeline, config.test_dataloader.dataset.pipeline):
        pipeline[:] = [step for step in pipeline if step.type != "Resize"]
    inferencer = MMSegInferencer(config, device="cpu")
    expected = as_the_package_reads(tmp_path / "line.png")
    assert torch.equal(inferencer.pipeline(str(tmp_path / "line.png"))["inputs"], expected)
    labels = inferencer(str(tmp_path / "line.png"), show=False)["predictions"]
    assert labels.shape == expected.shape[1:]


def test_inferencer_draws_on_these_pixels(picture: Path, tmp_path: Path) -> None:
    from mmseg.apis import MMSegInferencer

    config = Config.fromfile(CONFIGS / "tiny_linear_folder_128.py")
    config.model.backbone.weights = "random"
    inferencer = MMSegInferencer(config, device="cpu")
    expected = np.array(open_image(picture))
    # Nothing but the picture shows through labels of no opacity.
    options = {"show": False, "return_vis": True, "opacity": 0.0, "with_labels": False}
    drawn = inferencer(str(picture), **options)["visualization"]
    assert np.array_equal(drawn, expected)
    inferencer(str(picture), show=False, out_dir=str(tmp_path / "out"), opacity=0.0)
    assert list((tmp_path / "out").rglob("*.png"))
    # Another picture in memory is drawn on as it is.
    assert np.array_equal(inferencer(255 - expected, **options)["visualization"], 255 - expected)


def test_pictures_in_other_hands_are_drawn_on_as_they_are(tmp_path: Path) -> None:
    """mmseg's hook and ours give what they have read or rendered, under a path or a mere name."""
    visualizer = VISUALIZERS.build({"type": "PictureVisualizer", "name": "others"})
    transparent(tmp_path / "line.png")
    image = np.full((64, 96, 3), 7, np.uint8)
    paths = (str(tmp_path / "line.png"), "ant_00001.png", None)
    samples = [SegDataSample(metainfo={"img_path": path}) for path in paths]
    for number, sample in enumerate((*samples, SegDataSample(), None)):
        out = tmp_path / f"{number}.png"
        visualizer.add_datasample("shown", image, sample, out_file=str(out))
        assert np.array_equal(np.array(open_image(out)), image)


@pytest.mark.parametrize("name", ["tiny_linear_folder_128", "base_linear_folder_336"])
def test_ones_own_sketches_are_given_as_these_pixels(name: str, picture: Path) -> None:
    """And masks fit the picture as it is shown: a rotated photo's are upright."""
    config = Config.fromfile(CONFIGS / f"{name}.py")
    init_default_scope("mmseg")
    root = picture.parent
    (root / "meta.json").write_text(json.dumps({"classes": ["paper", "line"]}))
    expected = as_the_package_reads(picture)
    for split in ("train", "val"):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        (root / "images" / split / "a.png").write_bytes(picture.read_bytes())
        dark = (expected.sum(0) < 300).numpy().astype(np.uint8)
        Image.fromarray(dark).save(root / "annotations" / split / "a.png")
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.dataset.data_root = str(root)
        loader.dataset.pipeline = [
            step
            for step in loader.dataset.pipeline
            if step.type in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")
        ]
        sample = DATASETS.build(loader.dataset)[0]
        assert torch.equal(sample["inputs"], expected)
        assert (sample["data_samples"].gt_sem_seg.data[0].numpy() == dark).all()


def test_backend_reads_what_mmengine_can_fetch_and_refuses_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmengine.fileio import HTTPBackend

    transparent(tmp_path / "line.png")
    content = (tmp_path / "line.png").read_bytes()
    monkeypatch.setattr(HTTPBackend, "get", lambda self, address: content)
    options = {"backend": PICTURES}
    local = get(str(tmp_path / "line.png"), backend_args=options)
    assert local == get("https://example.org/line.png", backend_args=options)
    with pytest.raises(FileNotFoundError):
        get(str(tmp_path / "none.png"), backend_args=options)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OSError, match=r"text\.png is not an image in a known format"):
        get(str(tmp_path / "text.png"), backend_args=options)
    with pytest.raises(NotImplementedError, match="as a picture, not as text"):
        get_text(str(tmp_path / "line.png"), backend_args=options)
