"""SPG's vector sketches inside mmseg, rendered as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness
from mmengine.registry import DATASETS, HOOKS, TRANSFORMS
from mmseg.datasets import BaseSegDataset
from mmseg.engine.hooks import SegVisualizationHook

from sketchfusion_plugins.data.layout import palette
from sketchfusion_plugins.data.spg import SPLITS, load_spg
from sketchfusion_plugins.data.strokes import StrokeStyle, render_labels
from sketchfusion_plugins.mm.datasets import refuse_metainfo
from sketchfusion_plugins.stroke_metrics import LabelledPoints

LOADERS = ("LoadImageFromFile", "LoadAnnotations")


@DATASETS.register_module()
class SPGStrokesDataset(BaseSegDataset):  # type: ignore[misc]
    """SPG as vector sketches, read from its own files; see `sketchfusion_plugins.data.spg`.

    Args:
        data_root: Folder with ``spg.csv``, ``spg_strokes.npz`` and ``parts.json``.
        split: ``"train"`` or ``"val"``.
        num_classes: Classes of the model's head; SPG has 86.
        pipeline: Transforms, `RenderStrokes` first.
        renderer: A `RenderStrokes` that takes the place of ``LoadImageFromFile`` and
            ``LoadAnnotations`` in ``pipeline``. mmseg's inferencer wants these two in the
            pipeline of the test data, which it uses for pictures.
        options: See `mmseg.datasets.BaseSegDataset`; all but ``metainfo``.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: Unknown split, the files do not agree with each other, or they name another
            number of classes; or ``metainfo`` is given.
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        num_classes: int,
        pipeline: Sequence[Any],
        renderer: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        refuse_metainfo(options, data_root)
        if split not in SPLITS.values():
            raise ValueError(f"split must be one of {', '.join(SPLITS.values())}, got {split!r}.")
        classes, self.drawings = load_spg(data_root)
        if len(classes) != num_classes:
            raise ValueError(
                f"{data_root} names {len(classes)} classes, the config has "
                f"num_classes={num_classes}. Set num_classes of the data set and of every head to "
                "the former."
            )
        self.drawings = [drawing for drawing in self.drawings if drawing.split == split]
        if renderer is not None:
            rest = [t for t in pipeline if not (isinstance(t, dict) and t["type"] in LOADERS)]
            pipeline = [renderer, *rest]
        metainfo = {"classes": classes, "palette": palette(len(classes))}
        super().__init__(data_root=data_root, metainfo=metainfo, pipeline=pipeline, **options)

    def load_data_list(self) -> list[dict[str, Any]]:
        """A drawing per sample. ``img_path`` is the file that `write_spg` would write."""
        drawings, self.drawings = self.drawings, []
        return [
            {
                "img_path": f"{drawing.name}.png",
                "drawing": drawing,
                "seg_fields": [],
                "label_map": self.label_map,
                "reduce_zero_label": self.reduce_zero_label,
            }
            for drawing in drawings
        ]


@TRANSFORMS.register_module()
class RenderStrokes(BaseTransform):  # type: ignore[misc]
    """Draw a vector sketch and the labels of its strokes; see `StrokeStyle`.

    Dropout and perturbation follow numpy's global random numbers, as mmcv's transforms do: every
    visit differs, and mmengine seeds every worker.

    Required keys: ``drawing``. Added keys: ``img`` [size, size, 3], the same in BGR as in RGB;
    ``gt_seg_map`` [size, size]; ``img_shape``, ``ori_shape``; ``stroke_points``, the points that
    were drawn, in pixels of this picture, for `StrokeMetric`.

    Args:
        size: Side of the picture in pixels.
        width: Width of a stroke in pixels.
        margin: Blank border as a share of the side.
        stroke_dropout: Probability that a stroke is left out.
        perturbation: Strength of hand-drawn variation, 0..1.
        keep: Share of the strokes that is drawn, the first ones.
    """

    def __init__(
        self,
        size: int,
        width: float = 2.0,
        margin: float = StrokeStyle.margin,
        stroke_dropout: float = 0.0,
        perturbation: float = 0.0,
        keep: float = 1.0,
    ) -> None:
        self.style = StrokeStyle(size, width, margin, stroke_dropout, perturbation, keep)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Draw one sketch."""
        drawing = results.pop("drawing")
        seed = self._seed() if self.style.varies else 0
        picture = render_labels(drawing.strokes, drawing.label, self.style, seed)
        results["img"] = picture.image
        results["gt_seg_map"] = picture.mask
        results["seg_fields"].append("gt_seg_map")
        results["img_shape"] = results["ori_shape"] = picture.mask.shape
        results["stroke_points"] = LabelledPoints(
            (drawing.name,),
            torch.from_numpy(picture.strokes.points),
            torch.from_numpy(picture.strokes.stroke),
            torch.from_numpy(picture.label),
            torch.tensor([0, len(picture.label)]),
        )
        return results

    @cache_randomness
    def _seed(self) -> int:
        return int(np.random.randint(2**31))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.style})"


@HOOKS.register_module()
class RenderedVisualizationHook(SegVisualizationHook):  # type: ignore[misc]
    """mmseg's hook for samples without a picture file, such as ``test.py --show-dir`` needs.

    It shows what the model was given, at its original size, not what ``img_path`` names.
    """

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: dict[str, Any], outputs: Sequence[Any]
    ) -> None:
        """Show the first sample of a batch, every ``interval`` batches."""
        step = runner.iter + batch_idx
        if self.draw and step % self.interval == 0:
            self._show("val", _pictures(data_batch)[0], outputs[0], step)

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: dict[str, Any], outputs: Sequence[Any]
    ) -> None:
        """Show every sample."""
        if not self.draw:
            return
        for pixels, sample in zip(_pictures(data_batch), outputs, strict=True):
            # OpenMMLab's own hook does not count.
            self._test_index = getattr(self, "_test_index", 0) + 1
            self._show("test", pixels, sample, self._test_index)

    def _show(self, stage: str, pixels: torch.Tensor, sample: Any, step: int) -> None:
        # Inputs are BGR; OpenCV draws on contiguous rows only.
        image = pixels.flip(0).permute(1, 2, 0).contiguous().cpu().numpy()
        height, width = sample.ori_shape[:2]
        if image.shape[:2] != (height, width):
            # Predictions and labels are of the size before the pipeline's.
            image = mmcv.imresize(image, (width, height))
        self._visualizer.add_datasample(
            f"{stage}_{Path(sample.img_path).name}",
            image,
            data_sample=sample,
            show=self.show,
            wait_time=self.wait_time,
            step=step,
        )


def _pictures(data_batch: Mapping[str, Any]) -> Sequence[torch.Tensor]:
    """Inputs by sample; of test-time augmentation, which has them by view, the first view's."""
    inputs: Sequence[Any] = data_batch["inputs"]
    return inputs if isinstance(inputs[0], torch.Tensor) else inputs[0]
