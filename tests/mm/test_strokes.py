"""SPG's vectors inside mmseg: the same pixels as files, new ones in training, and the metric."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mmseg")

import torch
from mmcv.transforms.utils import cache_random_params
from mmengine.config import Config
from mmengine.dataset import worker_init_fn
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmengine.visualization import Visualizer
from mmseg.registry import DATASETS, HOOKS, METRICS, TRANSFORMS
from mmseg.structures import SegDataSample
from torch.utils.data import DataLoader

from sketchfusion_plugins.data.spg import write_spg
from sketchfusion_plugins.mm import RenderStrokes, SPGStrokesDataset

CLASSES = ["ant: head", "ant: legs", "pig: ear", "pig: body", "pig: tail"]
META_KEYS = ("img_path", "ori_shape", "img_shape", "stroke_points")
PICTURES = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
PACK = {"type": "PackSegInputs", "meta_keys": META_KEYS}


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


@pytest.fixture(scope="module")
def spg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawings of random strokes, in both splits and categories."""
    folder = tmp_path_factory.mktemp("spg")
    generator = np.random.default_rng(0)
    counts = generator.integers(6, 12, (8, 3))
    np.savez(
        folder / "spg_strokes.npz",
        xy=generator.integers(0, 256, (counts.sum(), 2)).astype(np.int16),
        stroke=np.concatenate([np.repeat(np.arange(3), row) for row in counts]).astype(np.int16),
        part=np.concatenate([np.repeat([1, 0, 1], row) for row in counts]).astype(np.uint8),
        offset=np.array([0, *np.cumsum(counts.sum(1))]),
    )
    lines = ["index,class,split"]
    for index in range(8):
        category, split = ("ant", "pig")[index % 2], ("train", "valid")[index // 4]
        lines.append(f"{index},{category},{split}")
    (folder / "spg.csv").write_text("\n".join(lines) + "\n")
    parts = {"ant": ["head", "legs"], "pig": ["ear", "body", "tail"]}
    (folder / "parts.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture
def build(spg: Path) -> Callable[..., Any]:
    def make(split: str = "val", **changes: Any) -> Any:
        renderer = {"type": "RenderStrokes", "size": 72, **changes.pop("style", {})}
        config = {
            "type": "SPGStrokesDataset",
            "data_root": str(spg),
            "split": split,
            "num_classes": 5,
            "pipeline": [renderer, PACK],
            **changes,
        }
        return DATASETS.build(config)

    return make


@pytest.fixture
def written(spg: Path, tmp_path: Path) -> Path:
    write_spg(spg, tmp_path / "files", size=72, progress=False)
    return tmp_path / "files"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("as_renderer", [False, True])
def test_pixels_equal_those_of_the_files(
    split: str, as_renderer: bool, build: Callable[..., Any], written: Path
) -> None:
    changes: dict[str, Any] = {}
    if as_renderer:
        changes = {
            "renderer": {"type": "RenderStrokes", "size": 72},
            "pipeline": [*PICTURES, PACK],
        }
    rendered = build(split, **changes)
    files = DATASETS.build(
        {
            "type": "SketchParts",
            "data_root": str(written),
            "num_classes": 5,
            "data_prefix": {
                "img_path": f"images/{split}",
                "seg_map_path": f"annotations/{split}",
            },
            "pipeline": [*PICTURES, PACK],
        }
    )
    assert isinstance(rendered, SPGStrokesDataset)
    assert rendered.metainfo["classes"] == files.metainfo["classes"] == CLASSES
    assert rendered.metainfo["palette"] == files.metainfo["palette"]
    assert len(rendered) == len(files) == 4
    by_name = {Path(sample["data_samples"].img_path).name: sample for sample in files}
    for sample in rendered:
        meta = sample["data_samples"]
        other = by_name.pop(meta.img_path)
        assert torch.equal(sample["inputs"], other["inputs"])
        assert sample["inputs"].dtype == torch.uint8
        assert torch.equal(meta.gt_sem_seg.data, other["data_samples"].gt_sem_seg.data)
        assert meta.ori_shape == meta.img_shape == other["data_samples"].ori_shape == (72, 72)
    assert not by_name


def test_every_visit_of_a_varying_style_differs(build: Callable[..., Any]) -> None:
    data = build("train", style={"stroke_dropout": 0.2, "perturbation": 0.3})
    np.random.seed(0)
    visits = [data[1]["inputs"] for _ in range(4)]
    assert len({visit.numpy().tobytes() for visit in visits}) == 4
    np.random.seed(0)
    assert torch.equal(data[1]["inputs"], visits[0])
    state = np.random.get_state()[1].copy()
    plain = build("train")
    assert torch.equal(plain[1]["inputs"], plain[1]["inputs"])
    # What does not vary takes no random numbers from others.
    assert (np.random.get_state()[1] == state).all()


def test_workers_that_mmengine_seeds_draw_differently(build: Callable[..., Any]) -> None:
    data = build("train", style={"perturbation": 0.5}, indices=[0, 0, 0, 0])

    def epoch(seed: int) -> list[bytes]:
        loader = DataLoader(
            data,
            batch_size=1,
            num_workers=2,
            collate_fn=_inputs,
            worker_init_fn=lambda worker: worker_init_fn(worker, 2, 0, seed),
        )
        return list(loader)

    first = epoch(5)
    assert len(set(first)) == 4
    assert epoch(5) == first
    assert not set(epoch(50)) & set(first)


def _inputs(samples: list[dict[str, Any]]) -> bytes:
    return bytes(samples[0]["inputs"].numpy().tobytes())


def test_chance_can_be_cached_as_mmcv_does(build: Callable[..., Any]) -> None:
    data = build("train", style={"perturbation": 0.5})
    transform = data.pipeline.transforms[0]
    assert isinstance(transform, RenderStrokes)
    with cache_random_params(transform):
        assert torch.equal(data[0]["inputs"], data[0]["inputs"])
    assert not torch.equal(data[0]["inputs"], data[0]["inputs"])
    assert "perturbation=0.5" in repr(transform)


@pytest.mark.parametrize("style", [{}, {"stroke_dropout": 0.5, "perturbation": 0.5}])
def test_points_lie_on_their_labels(style: dict[str, float], build: Callable[..., Any]) -> None:
    for sample in build(style=style):
        points = sample["data_samples"].stroke_points
        columns, rows = points.xy.floor().long().T
        under = sample["data_samples"].gt_sem_seg.data[0][rows, columns]
        assert (under != 255).all()
        assert (under == points.label).float().mean() > 0.6
        assert len(points.label) == points.offset[1]


def predictions(data: Any, seed: int) -> list[dict[str, Any]]:
    """Samples as an evaluator sees them, with logits at random."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for item in data:
        sample: SegDataSample = item["data_samples"]
        coarse = torch.randn(1, 5, 4, 4, generator=generator)
        logits = torch.nn.functional.interpolate(coarse, size=(72, 72))[0]
        sample.seg_logits = PixelData(data=logits)
        sample.pred_sem_seg = PixelData(data=logits.argmax(0, keepdim=True))
        samples.append(sample.to_dict())
    return samples


@pytest.mark.parametrize("known", [True, False])
def test_metric_equals_that_of_the_written_points(
    known: bool, build: Callable[..., Any], written: Path
) -> None:
    points = str(written / "points/val.safetensors")
    metrics = [
        METRICS.build({"type": "StrokeMetric", "known_category": known}),
        METRICS.build({"type": "StrokeMetric", "points": points, "known_category": known}),
    ]
    samples = predictions(build(), seed=1)
    results = []
    for metric in metrics:
        metric.dataset_meta = {"classes": CLASSES}
        metric.process(None, samples[:3])
        metric.process(None, samples[3:])
        results.append(metric.evaluate(4))
    assert results[0] == results[1]
    assert set(results[0]) >= {"stroke/P", "stroke/C"}
    assert ("stroke/P_known" in results[0]) == known
    assert 0 < results[0]["stroke/P"] < 100


def test_metric_refuses_points_of_another_size(
    spg: Path, build: Callable[..., Any], tmp_path: Path
) -> None:
    write_spg(spg, tmp_path / "large", size=96, progress=False)
    points = str(tmp_path / "large" / "points/val.safetensors")
    metric = METRICS.build({"type": "StrokeMetric", "points": points})
    metric.dataset_meta = {"classes": CLASSES}
    with pytest.raises(ValueError, match=r"pictures of 96 x 96 px, .*\.png has 72 x 72\. Give"):
        metric.process(None, predictions(build(), seed=1))


def test_metric_refuses_samples_whose_points_it_cannot_trust(build: Callable[..., Any]) -> None:
    metric = METRICS.build({"type": "StrokeMetric"})
    metric.dataset_meta = {"classes": CLASSES}
    without = build(pipeline=[{"type": "RenderStrokes", "size": 72}, {"type": "PackSegInputs"}])
    with pytest.raises(ValueError, match=r"has no points, or was flipped after .* meta_keys"):
        metric.process(None, predictions(without, 0))
    flip = {"type": "RandomFlip", "prob": 1.0}
    pack = {**PACK, "meta_keys": (*META_KEYS, "flip")}
    flipped = build(pipeline=[{"type": "RenderStrokes", "size": 72}, flip, pack])
    with pytest.raises(ValueError, match="was flipped"):
        metric.process(None, predictions(flipped, 0))


def test_refusals(build: Callable[..., Any], spg: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split must be one of train, val, got 'valid'"):
        build("valid")
    with pytest.raises(ValueError, match=r"got metainfo=\{'classes': \[\]\}; classes and palette"):
        SPGStrokesDataset(str(spg), "train", 5, pipeline=[], metainfo={"classes": []})
    with pytest.raises(ValueError, match="names 5 classes, the config has num_classes=86"):
        build(num_classes=86)
    with pytest.raises(FileNotFoundError, match=r"spg\.csv is missing; SPG needs"):
        build(data_root=str(tmp_path))
    with pytest.raises(ValueError, match="perturbation must be"):
        TRANSFORMS.build({"type": "RenderStrokes", "size": 72, "perturbation": 2.0})


@pytest.mark.parametrize("size", [128, 336])
def test_shipped_data_configs(size: int) -> None:
    folder = Path(__file__).parents[2] / "mmseg_configs/_base_/datasets"
    config = Config.fromfile(folder / f"spg_{size}.py")
    loaders = [config[f"{name}_dataloader"].dataset for name in ("train", "val", "test")]
    assert {loader.data_root for loader in loaders} == {"data/spg"}
    assert [loader.split for loader in loaders] == ["train", "val", "val"]
    train, *judged = [
        TRANSFORMS.build(render)
        for render in (loaders[0].pipeline[0], loaders[1].renderer, loaders[2].renderer)
    ]
    assert train.style.varies
    assert train.style.size == size
    for transform in judged:
        assert not transform.style.varies
        assert transform.style == type(train.style)(size, 2.0)
    # mmseg's inference takes pictures by these.
    assert loaders[2].pipeline[0].type == config.test_pipeline[0].type == "LoadImageFromFile"


class Recorder:
    def __init__(self) -> None:
        self.shown: list[tuple[str, np.ndarray, int]] = []

    def add_datasample(self, name: str, image: np.ndarray, step: int, **options: Any) -> None:
        assert options["data_sample"] is not None
        self.shown.append((name, image, step))


def test_hook_shows_what_the_model_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(Visualizer, "get_current_instance", lambda: recorder)
    hook = HOOKS.build({"type": "RenderedVisualizationHook", "draw": True, "interval": 2})
    bgr = torch.zeros(3, 4, 6, dtype=torch.uint8)
    bgr[0], bgr[2, 0] = 10, 200
    sample = SegDataSample(metainfo={"img_path": "ant_00001.png", "ori_shape": (4, 6)})
    batch = {"inputs": [bgr, bgr + 1]}
    hook.after_test_iter(None, 0, batch, [sample, sample])
    assert [(name, step) for name, _, step in recorder.shown] == [
        ("test_ant_00001.png", 1),
        ("test_ant_00001.png", 2),
    ]
    image = recorder.shown[0][1]
    assert image.shape == (4, 6, 3)
    assert image[0, 0].tolist() == [200, 0, 10]
    runner = type("Runner", (), {"iter": 3})()
    for index in range(4):
        hook.after_val_iter(runner, index, batch, [sample, sample])
    assert [step for _, _, step in recorder.shown[2:]] == [4, 6]
    hook.draw = False
    hook.after_test_iter(None, 0, batch, [sample, sample])
    hook.after_val_iter(runner, 1, batch, [sample, sample])
    assert len(recorder.shown) == 4


def test_hook_shows_the_original_size_and_the_first_view(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(Visualizer, "get_current_instance", lambda: recorder)
    hook = HOOKS.build({"type": "RenderedVisualizationHook", "draw": True, "interval": 1})
    samples = [
        SegDataSample(metainfo={"img_path": f"{side}.png", "ori_shape": (side, 2 * side)})
        for side in (8, 16)
    ]
    pixels = [torch.full((3, 4, 8), value, dtype=torch.uint8) for value in (10, 20)]
    views = [pixels, [picture + 100 for picture in pixels]]
    runner = type("Runner", (), {"iter": 0})()
    for inputs in (pixels, torch.stack(pixels), views):
        hook.after_test_iter(runner, 0, {"inputs": inputs}, samples)
        hook.after_val_iter(runner, 0, {"inputs": inputs}, samples)
        shown, recorder.shown = recorder.shown, []
        assert [name for name, _, _ in shown] == ["test_8.png", "test_16.png", "val_8.png"]
        assert [image.shape for _, image, _ in shown] == [(8, 16, 3), (16, 32, 3), (8, 16, 3)]
        assert [int(image.mean()) for _, image, _ in shown] == [10, 20, 10]
    hook.draw = False
    hook.after_test_iter(runner, 0, {"inputs": [*views, views[0]]}, samples)
    assert not recorder.shown
