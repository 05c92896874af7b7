"""Stroke-level metrics for mmengine's evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from sketchfusion_plugins.stroke_metrics import (
    LabelledPoints,
    Tally,
    categories_of,
    labels_at,
    read_points,
    tally,
)


@METRICS.register_module()
class StrokeMetric(BaseMetric):  # type: ignore[misc]
    """P-metric and C-metric, in percent, over all points and strokes of a split.

    See `sketchfusion_plugins.stroke_metrics` for the definitions and their source. ``P`` and ``C``
    let the model choose among all classes; ``P_known`` and ``C_known`` among the parts of the
    drawing's category alone, as papers do that train one model per category.

    Args:
        points: File with the points of the split, which `write_spg` writes; None for samples that
            bring their points along, as `RenderStrokes` makes them.
        known_category: Report ``P_known`` and ``C_known`` too.
        collect_device: See mmengine.
        prefix: See mmengine.

    Raises:
        FileNotFoundError: No such file.
    """

    default_prefix = "stroke"

    def __init__(
        self,
        points: str | None = None,
        known_category: bool = True,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.known_category = known_category
        self.points: LabelledPoints | None = None if points is None else read_points(points)
        names = () if self.points is None else self.points.names
        self.index = {name: index for index, name in enumerate(names)}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Judge predictions of a batch.

        Raises:
            ValueError: A picture is not of this split or size, or brings no points along.
        """
        for sample in data_samples:
            points = self._points(sample)
            xy, label, stroke = points.xy, points.label, points.stroke
            predicted = sample["pred_sem_seg"]["data"].squeeze(0)
            size = points.size
            if size is not None and tuple(predicted.shape) != (size, size):
                height, width = predicted.shape
                raise ValueError(
                    f"the metric's points lie on pictures of {size} x {size} px, "
                    f"{sample['img_path']} has {width} x {height}. Give the file that was written "
                    "with these pictures."
                )
            counts = {"": tally(labels_at(predicted, xy), label, stroke)}
            if self.known_category:
                logits = sample["seg_logits"]["data"]
                category = categories_of(self.dataset_meta["classes"]).to(logits.device)
                other = category != category[int(label[0])]
                known = logits.masked_fill(other[:, None, None], float("-inf")).argmax(0)
                counts["_known"] = tally(labels_at(known, xy), label, stroke)
            self.results.append(counts)

    def compute_metrics(self, results: list[dict[str, Tally]]) -> dict[str, float]:
        """Percentages over all drawings."""
        metrics = {}
        for suffix in results[0]:
            total = reduce(add, (counts[suffix] for counts in results), Tally())
            metrics[f"P{suffix}"] = 100 * total.point_accuracy
            metrics[f"C{suffix}"] = 100 * total.stroke_accuracy
        return metrics

    def _points(self, sample: dict[str, Any]) -> LabelledPoints:
        if self.points is None:
            if "stroke_points" not in sample or sample.get("flip"):
                raise ValueError(
                    f"{sample['img_path']} has no points, or was flipped after they were made. "
                    "Start the test pipeline with RenderStrokes, do not flip, and name "
                    "stroke_points in the meta_keys of PackSegInputs."
                )
            points: LabelledPoints = sample["stroke_points"]
            return points
        name = Path(sample["img_path"]).stem
        if name not in self.index:
            raise ValueError(
                f"{name!r} has no points in the metric's file, which holds "
                f"{len(self.points.names)} drawings. Give the file of the split that is judged."
            )
        rows = self.points.rows(self.index[name])
        return LabelledPoints(
            (name,),
            self.points.xy[rows],
            self.points.stroke[rows],
            self.points.label[rows],
            torch.tensor([0, rows.stop - rows.start]),
            self.points.size,
        )
