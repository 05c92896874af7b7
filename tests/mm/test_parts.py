"""Data set, linear head and stroke metric inside mmseg."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmseg")

import torch
from mmengine.registry import METRICS as ROOT_METRICS
from mmseg.registry import DATASETS, METRICS, MODELS
from PIL import Image
from torch import nn

from sketchfusion_plugins.data.layout import begin, write_pair
from sketchfusion_plugins.files import write_safetensors
from sketchfusion_plugins.mm import LinearHead, SketchParts, StrokeMetric

CLASSES = ["ant: head", "ant: legs", "pig: ear"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "data"
    begin(out, CLASSES, {})
    for split in ("train", "val"):
        mask = np.full((40, 48), 255, np.uint8)
        mask[:20] = 2
        write_pair(out, split, "ant_1", np.full((40, 48, 3), 255, np.uint8), mask)
    return out


def data_config(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "type": "SketchParts",
        "data_root": str(folder),
        "num_classes": 3,
        "data_prefix": {"img_path": "images/val", "seg_map_path": "annotations/val"},
        "pipeline": [
            {"type": "mmseg.LoadImageFromFile"},
            {"type": "mmseg.LoadAnnotations"},
            {"type": "mmseg.PackSegInputs"},
        ],
        **changes,
    }


def test_dataset(folder: Path) -> None:
    data = DATASETS.build(data_config(folder))
    assert isinstance(data, SketchParts)
    assert data.metainfo["classes"] == CLASSES
    assert len(data.metainfo["palette"]) == 3
    sample = data[0]
    assert sample["inputs"].shape == (3, 40, 48)
    assert sample["data_samples"].gt_sem_seg.data.unique().tolist() == [2, 255]


def test_dataset_of_ones_own(folder: Path) -> None:
    (folder / "meta.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    assert len(DATASETS.build(data_config(folder)).metainfo["palette"]) == 3


def test_pictures_that_the_suffix_leaves_out_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    # Masks beside pictures are none, and a folder may be named in more than one way.
    together = {"img_path": "", "seg_map_path": "annotations"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for place in ("./data", ".//data/", str(folder)):
            assert len(DATASETS.build(data_config(folder, data_root=place))) == 1
        DATASETS.build(data_config(folder, data_prefix=together))
    for name in ("B.PNG", "c.jpg", ".hidden.jpg", "notes.txt"):
        (folder / "images/val" / name).write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"^2 picture\(s\) in .*val do not end in \.png .*: B\.PNG"
    ):
        assert len(DATASETS.build(data_config(folder))) == 1


def test_dataset_without_masks(folder: Path) -> None:
    pipeline = [{"type": "mmseg.LoadImageFromFile"}, {"type": "mmseg.PackSegInputs"}]
    prefix = {"img_path": "images/val"}
    built = DATASETS.build(data_config(folder, pipeline=pipeline, data_prefix=prefix))
    assert built[0]["inputs"].shape == (3, 40, 48)


def test_dataset_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"meta\.json is missing. Write OpenMoji or SPG"):
        DATASETS.build(data_config(tmp_path / "none"))
    with pytest.raises(ValueError, match="names 3 classes, the config has num_classes=5"):
        DATASETS.build(data_config(folder, num_classes=5))
    with pytest.raises(FileNotFoundError, match=r"no file \*\.jpg in .*Set img_suffix"):
        DATASETS.build(data_config(folder, img_suffix=".jpg"))
    prefix = {"img_path": "images/test", "seg_map_path": "annotations/test"}
    with pytest.raises(FileNotFoundError, match=r"images/test is missing; expected images/"):
        DATASETS.build(data_config(folder, data_prefix=prefix))
    data = DATASETS.build(data_config(folder))
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save(folder / "annotations/val/ant_1.png")
    with pytest.raises(ValueError, match=r"ant_1\.png holds label 7, expected 0\.\.2, or 255"):
        data[0]
    Image.fromarray(np.zeros((48, 40), np.uint8)).save(folder / "annotations/val/ant_1.png")
    with pytest.raises(ValueError, match=r"ant_1\.png does not fit .* has 48 x 40 px \(after"):
        data[0]
    with pytest.raises(ValueError, match=r"got metainfo=.* are those of meta\.json"):
        DATASETS.build(data_config(folder, metainfo={"classes": ["a", "b", "c"]}))


@pytest.mark.parametrize("mode", ["RGB", "LA"])
@pytest.mark.filterwarnings("ignore:Please pay attention your ground truth")
def test_masks_in_colour_are_told(mode: str, folder: Path) -> None:
    data = DATASETS.build(data_config(folder))
    path = folder / "annotations/val/ant_1.png"
    Image.open(path).convert(mode).save(path)
    with pytest.raises(ValueError, match=r"ant_1\.png holds colours, expected a class's index"):
        data[0]


@pytest.mark.parametrize(
    "text",
    ['["a"]', '{"CLASSES": ["a"]}', '{"classes": {"a": 0}}', '{"classes": ["a", "a"]}', "{"],
)
def test_unreadable_names_of_classes(text: str, folder: Path) -> None:
    (folder / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta\.json(: expected distinct names| is not JSON)"):
        DATASETS.build(data_config(folder))


def test_names_of_classes_from_windows_editors(folder: Path) -> None:
    (folder / "meta.json").write_text('{"classes": ["a", "b", "c"]}', encoding="utf-8-sig")
    assert DATASETS.build(data_config(folder)).metainfo["classes"] == ["a", "b", "c"]


def test_linear_head_is_a_norm_and_a_convolution() -> None:
    torch.manual_seed(0)
    head = MODELS.build(
        {"type": "LinearHead", "in_channels": 8, "num_classes": 5, "align_corners": False}
    )
    assert isinstance(head, LinearHead)
    maps = torch.randn(2, 8, 6, 7)
    norm, layer = nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)
    layer.load_state_dict(head.conv_seg.state_dict())
    torch.testing.assert_close(head((maps,)), layer(norm(maps)))
    assert {name.split(".")[0] for name in head.state_dict()} == {"norm", "conv_seg"}


def test_linear_head_on_several_levels() -> None:
    head = LinearHead([8, 4], in_index=[0, 1], num_classes=5, align_corners=False)
    assert head((torch.randn(1, 8, 6, 6), torch.randn(1, 4, 3, 3))).shape == (1, 5, 6, 6)
    assert head.conv_seg.in_channels == 12


@pytest.fixture
def points_file(tmp_path: Path) -> Path:
    """Two drawings of 4 x 4 pixels: an ant of two strokes, a pig of one."""
    path = tmp_path / "points.safetensors"
    write_safetensors(
        {
            "xy": torch.tensor(
                [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [3.5, 0.5], [0.5, 2.5], [1, 1]]
            ),
            "stroke": torch.tensor([0, 0, 0, 0, 1, 0]),
            "label": torch.tensor([0, 0, 0, 0, 1, 2]),
            "offset": torch.tensor([0, 5, 6]),
        },
        path,
        {"names": json.dumps(["ant_1", "pig_2"])},
    )
    return path


def sample(name: str, logits: torch.Tensor) -> dict[str, Any]:
    return {
        "img_path": f"anywhere/{name}.png",
        "pred_sem_seg": {"data": logits.argmax(0, keepdim=True)},
        "seg_logits": {"data": logits},
    }


def test_stroke_metric_by_hand(points_file: Path) -> None:
    assert ROOT_METRICS.get("StrokeMetric") is METRICS.get("StrokeMetric") is StrokeMetric
    metric = METRICS.build({"type": "StrokeMetric", "points": str(points_file)})
    metric.dataset_meta = {"classes": CLASSES}
    ant = torch.zeros(3, 4, 4)
    # All heads, but the third point a pig's ear before legs, and the fourth legs.
    ant[0] = 1.0
    ant[2, 0, 2], ant[1, 0, 2], ant[0, 0, 2] = 3.0, 2.0, 1.0
    ant[1, 0, 3] = 3.0
    pig = torch.zeros(3, 4, 4)
    pig[0] = 1.0
    metric.process(None, [sample("ant_1", ant), sample("pig_2", pig)])
    result = metric.evaluate(2)
    # Ant: 2 of 4 points of stroke 0, 0 of 1 of stroke 1. Pig: wrong, unless it is known a pig.
    assert result["stroke/P"] == pytest.approx(100 * 2 / 6)
    assert result["stroke/C"] == 0
    assert result["stroke/P_known"] == pytest.approx(100 * 3 / 6)
    assert result["stroke/C_known"] == pytest.approx(100 * 1 / 3)


def test_stroke_metric_refuses_strangers(points_file: Path) -> None:
    metric = StrokeMetric(str(points_file))
    with pytest.raises(ValueError, match=r"'cow_1' has no points .* 2 drawings"):
        metric.process(None, [sample("cow_1", torch.zeros(3, 4, 4))])
