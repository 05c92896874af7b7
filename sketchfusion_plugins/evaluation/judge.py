"""Measures of one model on a task's data.

A trained `Task` answers by itself. Plain `Features` answer without training what can be answered by
similarity; a linear probe and a threshold are fitted on the training part, of a large one on
pictures evenly spaced. Intervals take items of one ``instance``, such as sketches of one photo, for
one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from sketchfusion_plugins.data.pictures import NO_INSTANCE
from sketchfusion_plugins.data.task_data import Samples, TaskData, labelled_mask, spread
from sketchfusion_plugins.evaluation.report import Measured, Row
from sketchfusion_plugins.features import Features, pixel_similarity
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.heads.ridge import RidgeClassifier
from sketchfusion_plugins.metrics.correspondence import PROTOCOLS, Protocol, key_point_scores
from sketchfusion_plugins.metrics.query_segmentation import (
    fit_threshold,
    query_segmentation_scores,
    refuse_nan,
)
from sketchfusion_plugins.metrics.recognition import top_k_correct
from sketchfusion_plugins.metrics.retrieval import group_weights, score_by_definitions
from sketchfusion_plugins.metrics.retrieval_definitions import DEFINITIONS
from sketchfusion_plugins.tasks.base import Task
from sketchfusion_plugins.wrappers import device_of

# Pictures that a probe is fitted on: all of TU-Berlin's. More would not fit into memory.
PROBED_PICTURES = 15_000
# Pairs that a threshold is fitted on, and thresholds tried.
FITTED_PAIRS = 256


class Judge:
    """Runs models over one task's data.

    Args:
        data: The data.
        device: Where models run.
        batch_size: Images, or pairs, per step.
        workers: Processes that load data.
        progress: Show progress bars, when standard error is a terminal.
        definition: What mAP@k and P@k of retrieval are computed by, one or several names of
            `sketchfusion_plugins.metrics.retrieval_definitions.DEFINITIONS`; several are told apart
            in the names of measures. None for "standard".

    Raises:
        ValueError: Unknown task or definition, or a definition for another task than retrieval.

    Attributes:
        definitions: Names of the definitions; empty where the task has none.
        probed: What linear probes of recognition are fitted on: of ``data.fit`` as many pictures
            as `PROBED_PICTURES` at most, evenly spaced; None without a probe.
    """

    def __init__(
        self,
        data: TaskData,
        device: str | torch.device = "cpu",
        batch_size: int = 16,
        workers: int = 0,
        progress: bool = True,
        definition: str | Sequence[str] | None = None,
    ) -> None:
        self.data = data
        self.device = torch.device(device)
        self.batch_size, self.workers, self.progress = batch_size, workers, progress
        judges: dict[str, Callable[[Task | Features], Row]] = {
            "recognition": self._recognition,
            "retrieval": self._retrieval,
            "correspondence": self._correspondence,
            "query_segmentation": self._query_segmentation,
        }
        if data.task not in judges:
            raise ValueError(f"unknown task {data.task!r}; choose one of {', '.join(judges)}.")
        self._judge = judges[data.task]
        self.definitions = _definitions(data.task, definition)
        self.probed: Subset[dict[str, Any]] | None = None
        if data.task == "recognition" and data.fit is not None:
            self.probed = spread(data.fit, PROBED_PICTURES)

    def __call__(self, model: Task | Features) -> Row:
        """Measures of a model; it is left in the mode and on the device that it was in.

        Raises:
            ValueError: A task model of another task, or of other classes.
        """
        if isinstance(model, Task) and model.name != self.data.task:
            raise ValueError(
                f"this model was trained for {model.name} and cannot be judged on {self.data.task}."
            )
        mode, home = model.training, device_of(model)
        try:
            model.eval().to(self.device)
            # What is moved in inference mode can never train again.
            with torch.inference_mode():
                return self._judge(model)
        finally:
            model.train(mode).to(home)

    def _recognition(self, model: Task | Features) -> Row:
        score = self._classifier(model)
        right: dict[str, list[Tensor]] = {"Acc@1": [], "Acc@5": []}
        instances: list[Tensor] = []
        for batch in self._batches(self.data.test, "recognising"):
            scores, truth = score(batch["image"]).cpu(), batch["label"].cpu()
            instances.append(_instances(batch, len(truth)))
            for name, k in (("Acc@1", 1), ("Acc@5", 5)):
                right[name].append(top_k_correct(scores, truth, min(k, scores.shape[1])))
        groups = _groups(instances)
        return {name: Measured.of(torch.cat(parts), groups=groups) for name, parts in right.items()}

    def _classifier(self, model: Task | Features) -> Callable[[Tensor], Tensor]:
        """Images ``[B, 3, H, W]`` to scores ``[B, classes]``: the task, or a fitted probe.

        Of a large test part neither descriptors nor scores fit into memory, so that it is asked
        batch by batch.
        """
        if isinstance(model, Task):
            known = getattr(model, "classes", self.classes)
            if tuple(known) != self.classes:
                raise ValueError(
                    f"this model was trained for {len(known)} classes ({', '.join(known[:3])}...), "
                    f"the data have {len(self.classes)} ({', '.join(self.classes[:3])}...), and "
                    "labels go by their order. Judge it on the data that it was trained for, with "
                    "the same limit."
                )
            return model
        if self.probed is None:
            raise ValueError("these data have no part to fit a probe on.")
        if len(self.classes) < 2:
            raise ValueError(
                f"a probe tells at least two classes apart, got {', '.join(self.classes)} alone in "
                f"{self.data.source}. Add classes, or raise the limit."
            )
        descriptors, labels = self._descriptors(model, self.probed, "label")
        ridge = RidgeClassifier.fit(descriptors.numpy(), labels.numpy(), len(self.classes))
        describe = model.describe
        return lambda images: torch.from_numpy(ridge.scores(describe(images).float().cpu().numpy()))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.data.categories

    def _retrieval(self, model: Task | Features) -> Row:
        assert self.data.gallery is not None
        names = (self.data.label, "label") if self.data.own_category else (self.data.label,)
        instances: list[Tensor] = []
        queries, *query_labels = self._descriptors(model, self.data.test, *names, noted=instances)
        groups = _groups(instances)
        gallery, *labels = self._descriptors(model, self.data.gallery, *names)
        # Slices copy nothing of a large gallery.
        parts: list[tuple[Any, Any]] = [(slice(None), slice(None))]
        if self.data.own_category:
            categories = query_labels[-1].unique()
            parts = [(query_labels[-1] == own, labels[-1] == own) for own in categories]
            # As in a search of everything, queries without any relevant item do not count.
            parts = [
                (asking, searched)
                for asking, searched in parts
                if torch.isin(query_labels[0][asking], labels[0][searched]).any()
            ]
            if not parts:
                raise ValueError(
                    f"none of {len(queries)} queries has a relevant item among the "
                    f"{len(gallery)} of the gallery that are of its category."
                )
        scored = [
            score_by_definitions(
                queries[asking],
                gallery[searched],
                query_labels[0][asking],
                labels[0][searched],
                self.data.measures,
                self.definitions,
                self.device,
                progress=self.progress and len(parts) == 1,
            )
            for asking, searched in parts
        ]
        found: Row = {}
        for definition, scores in zip(self.definitions, zip(*scored, strict=True), strict=True):
            asked, together = (
                torch.cat(
                    [
                        numbers[asking][part.queries]
                        for (asking, _), part in zip(parts, scores, strict=True)
                    ]
                )
                for numbers in (query_labels[0], groups)
            )
            for measure in self.data.measures:
                values = torch.cat([part.values[measure] for part in scores])
                by_class = DEFINITIONS[definition].over_classes and not measure.startswith("Acc@")
                weights = group_weights(asked) if by_class else None
                found[self._name(measure, definition)] = Measured.of(values, weights, together)
        return found

    def _name(self, measure: str, definition: str) -> str:
        """A measure's name; Acc@k is the same by all definitions."""
        alone = len(self.definitions) == 1 or measure.startswith("Acc@")
        return measure if alone else f"{measure} ({definition})"

    def _correspondence(self, model: Task | Features) -> Row:
        protocol = PROTOCOLS.get(self.data.protocol) or Protocol(
            self.data.source, self.data.size, inclusive=True, alphas=(5, 10)
        )
        total, instances = None, []
        for batch in self._batches(self.data.test, "matching"):
            source, target = batch["source"], batch["target"]
            points, visible = batch["source_points"], batch["visible"]
            if isinstance(model, Task):
                found = model(source, target, points, visible=visible)
            elif isinstance(model, SamePlace):
                found = points
            else:
                source_map, target_map = model(source).float(), model(target).float()
                found = match_points(
                    source_map,
                    target_map,
                    points,
                    source_stride=model.cell_size(source, source_map),
                    target_stride=model.cell_size(target, target_map),
                    visible=visible,
                )
            size = (target.shape[-2], target.shape[-1])
            scores = key_point_scores(found, batch["target_points"], size, protocol, visible)
            instances.append(_instances(batch, len(found)))
            total = scores if total is None else total + scores
        assert total is not None
        groups = _groups(instances)[total.counted]
        return {
            f"PCK@{alpha:g}": Measured.of(total.items[:, index], groups=groups)
            for index, alpha in enumerate(protocol.alphas)
        }

    def _query_segmentation(self, model: Task | Features) -> Row:
        threshold = 0.0
        if not isinstance(model, Task):
            if self.data.fit is None:
                raise ValueError("these data have no part to fit a threshold on.")
            part = spread(self.data.fit, FITTED_PAIRS)
            threshold = fit_threshold(
                [
                    (pixel_similarity(model, batch["sketch"], batch["photo"]), labelled_mask(batch))
                    for batch in self._batches(part, "fitting")
                ]
            )
        total, instances = None, []
        for batch in self._batches(self.data.test, "segmenting"):
            if isinstance(model, Task):
                answer = model(batch["sketch"], batch["photo"])
            else:
                answer = pixel_similarity(model, batch["sketch"], batch["photo"])
            refuse_nan(answer)
            predicted = answer > threshold
            scores = query_segmentation_scores(predicted, labelled_mask(batch))
            instances.append(_instances(batch, len(predicted)))
            total = scores if total is None else total + scores
        assert total is not None
        groups = _groups(instances)[total.counted]
        return {
            "foreground IoU": Measured.of(total.foreground_iou, groups=groups),
            "mIoU": Measured.of(total.mean_iou, groups=groups),
            "pixel accuracy": Measured.of(total.pixel_accuracy, groups=groups),
        }

    def _descriptors(
        self,
        model: Task | Features,
        data: Samples,
        *labels: str,
        noted: list[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Descriptors ``[N, D]``, and labels of each name ``[N]``; instances are noted."""
        describe = model if isinstance(model, Task) else model.describe
        count, end = len(data), 0  # type: ignore[arg-type]
        found: tuple[Tensor, ...] = ()
        for batch in self._batches(data, "describing"):
            made = (describe(batch["image"]).float(), *(batch[name] for name in labels))
            if not found:
                # Not on the GPU, whose memory a gallery can exceed, and in place: a list of batches
                # would be there twice while it is joined.
                found = tuple(part.new_empty(count, *part.shape[1:], device="cpu") for part in made)
            if noted is not None:
                noted.append(_instances(batch, len(made[0])))
            begin, end = end, end + len(made[0])
            for kept, part in zip(found, made, strict=True):
                kept[begin:end] = part
        return found

    def _batches(self, data: Samples, what: str) -> Iterator[dict[str, Any]]:
        from tqdm import tqdm

        # A generator of its own: judging on the way must not change what training draws.
        generator = torch.Generator()
        loader = DataLoader(data, self.batch_size, num_workers=self.workers, generator=generator)
        for batch in tqdm(loader, desc=what, disable=None if self.progress else True, leave=False):
            yield {
                key: value.to(self.device) if isinstance(value, Tensor) else value
                for key, value in batch.items()
            }


class SamePlace(Features):
    """Answers every correspondence with the place asked for: what alignment alone gives."""

    channels = 1


def _instances(batch: Mapping[str, Any], count: int) -> Tensor:
    """Numbers of a batch's instances ``[B]``, on the CPU."""
    known: Tensor | None = batch.get("instance")
    return torch.full((count,), NO_INSTANCE) if known is None else known.cpu()


def _groups(instances: Sequence[Tensor]) -> Tensor:
    """Groups of items ``[N]`` that are not independent: those of one instance."""
    numbers = torch.cat(list(instances))
    # Instances are numbered from 0.
    return torch.where(numbers == NO_INSTANCE, -1 - torch.arange(len(numbers)), numbers)


def _definitions(task: str, definition: str | Sequence[str] | None) -> tuple[str, ...]:
    if task != "retrieval":
        if definition:
            raise ValueError(
                f"a definition is of retrieval's mAP@k and P@k, got {definition!r} for {task}. "
                "Leave it out."
            )
        return ()
    names = (definition,) if isinstance(definition, str) else tuple(definition or ("standard",))
    unknown = [name for name in names if name not in DEFINITIONS]
    if unknown:
        raise ValueError(f"unknown definition {unknown[0]!r}; known: {', '.join(DEFINITIONS)}.")
    return tuple(dict.fromkeys(names))
