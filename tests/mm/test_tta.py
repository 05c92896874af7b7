"""Test-time augmentation: mmseg's script runs it with our configs, and views are averaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

pytest.importorskip("mmseg")

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import save_checkpoint
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

from sketchfusion_plugins import mmseg_scripts
from sketchfusion_plugins.mm import AveragedTTAModel
from sketchfusion_plugins.mm.export import export_merged

CONFIGS = Path(__file__).parents[2] / "mmseg_configs"
NAMES = (
    "tiny_linear_folder_128",
    "tiny_linear_openmoji_128",
    "tiny_linear_spg_128",
    "base_linear_ade20k_512",
)


@pytest.fixture
def checkpoint(
    shrink: Callable[[str, Path], dict[str, Any]], tmp_path: Path
) -> Callable[[str], str]:
    def write(name: str) -> str:
        config = Config.fromfile(CONFIGS / f"{name}.py")
        if name.startswith("base"):
            options = shrink(name, tmp_path)
            config.model.backbone.variant = options["model.backbone.variant"]
            config.model.backbone.foundation_dtype = options["model.backbone.foundation_dtype"]
            config.model.neck.in_channels = json.loads(options["model.neck.in_channels"])
        config.model.backbone.weights = "random"
        init_default_scope("mmseg")
        torch.manual_seed(0)
        model = MODELS.build(config.model)
        with torch.no_grad():
            model.decode_head.conv_seg.weight.normal_(std=0.1)
        path = str(tmp_path / "model.pth")
        save_checkpoint({"meta": {}, "state_dict": model.state_dict()}, path)
        return path

    return write


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("augmented", [False, True])
def test_mmsegs_script_judges_and_shows(
    run_tool: Callable[..., str],
    miniature: Callable[[str], Path],
    checkpoint: Callable[[str], str],
    name: str,
    augmented: bool,
    tmp_path: Path,
) -> None:
    data, shown = miniature(name), tmp_path / "shown"
    changes = {}
    resized = "folder" in name or "ade20k" in name
    if resized and not augmented:
        # Another size than the pictures': what the model is given is not what it is judged by.
        changes["test_dataloader__dataset__pipeline__1__scale"] = "(96,48)"
    arguments = [checkpoint(name), "--show-dir", str(shown), *(["--tta"] if augmented else [])]
    log = run_tool(name, data, tmp_path / "work", *arguments, tool="test.py", **changes)
    assert re.search(r"mIoU: +\d", log)
    assert ("stroke/P_known: " in log) == ("spg" in name)
    pictures = [cv2.imread(str(path)) for path in shown.rglob("*.png")]
    # Labels beside predictions.
    assert [picture.shape for picture in pictures] == [(64, 160 if "ade" in name else 128, 3)] * 3


@pytest.mark.parametrize("path", ["name", "file"])
def test_testing_leaves_the_trained_config(
    miniature: Callable[[str], Path], checkpoint: Callable[[str], str], path: str, tmp_path: Path
) -> None:
    name = "tiny_linear_openmoji_128"
    weights = checkpoint(name)
    config = Config.fromfile(CONFIGS / f"{name}.py")
    config.model.backbone.weights = "random"
    config.test_dataloader.dataset.data_root = str(miniature(name))
    config.work_dir = str(tmp_path)
    trained = tmp_path / f"{name}.py"
    config.dump(trained)
    before = trained.read_bytes()
    options = [f"test_dataloader.dataset.data_root={miniature(name)}"]
    options += ["test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False"]
    options += ["model.backbone.weights=random"]
    arguments = [weights, "--tta", "--cfg-options", *options]
    assert mmseg_scripts.run_tool("test", name if path == "name" else str(trained), arguments) == 0
    assert trained.read_bytes() == before
    assert "AveragedTTAModel" in (tmp_path / "test" / trained.name).read_text()
    assert not Path("work_dirs").exists()
    export_merged(trained, Path(weights), tmp_path / "merged")


@pytest.mark.parametrize("name", NAMES)
def test_the_first_view_is_the_picture_as_it_is(name: str) -> None:
    config = Config.fromfile(CONFIGS / f"{name}.py")
    sizes, flips = config.tta_pipeline[1].transforms[:2]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    resize = next((s for s in config.test_pipeline if s.type == "Resize"), None)
    if "folder" in name:
        assert tuple(sizes[0].scale) == tuple(resize.scale)
    else:
        assert sizes[0].scale_factor == 1.0


class Segmentor(nn.Module):
    """Gives each view the logits that it brings along."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.decode_head = nn.Module()
        self.decode_head.threshold = 0.5

    def test_step(self, data: dict[str, Any]) -> list[SegDataSample]:
        for logits, sample in zip(data["inputs"], data["data_samples"], strict=True):
            sample.seg_logits = PixelData(data=logits)
        return list(data["data_samples"])


def view(picture: int, flip: bool) -> SegDataSample:
    sample = SegDataSample(metainfo={"img_path": f"{picture}.png", "flip": flip})
    sample.gt_sem_seg = PixelData(data=torch.full((1, 4, 5), int(flip)))
    return sample


@pytest.mark.parametrize("channels", [3, 1])
def test_views_are_averaged_into_the_first(channels: int) -> None:
    torch.manual_seed(0)
    model = MODELS.build({"type": "AveragedTTAModel", "module": Segmentor(channels)})
    assert isinstance(model, AveragedTTAModel)
    # By view, then by picture. Of one channel mmseg's segmentors return shares.
    inputs = [[torch.rand(channels, 4, 5) for _ in range(3)] for _ in range(2)]
    samples = [[view(index, flip) for index in range(3)] for flip in (False, True)]
    merged = model.test_step({"inputs": inputs, "data_samples": samples})
    assert [sample.img_path for sample in merged] == ["0.png", "1.png", "2.png"]
    for sample, *views in zip(merged, *inputs, strict=True):
        shares = torch.stack([v.softmax(0) if channels > 1 else v for v in views]).mean(0)
        torch.testing.assert_close(sample.seg_logits.data, shares)
        expected = shares.argmax(0, keepdim=True) if channels > 1 else (shares > 0.5).float()
        assert torch.equal(sample.pred_sem_seg.data, expected)
        assert not sample.flip
        assert not sample.gt_sem_seg.data.any()
