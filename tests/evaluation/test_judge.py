"""The judge on cases worked out by hand, with models that know all, nothing, or a given answer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset, Subset

from sketchfusion_plugins.data.pictures import NO_INSTANCE
from sketchfusion_plugins.data.task_data import TaskData
from sketchfusion_plugins.evaluation.judge import Judge, SamePlace
from sketchfusion_plugins.evaluation.report import Measured
from sketchfusion_plugins.features import Features, PixelFeatures
from sketchfusion_plugins.heads.ridge import RidgeClassifier
from sketchfusion_plugins.metrics.correspondence import key_point_scores
from sketchfusion_plugins.metrics.intervals import wilson
from sketchfusion_plugins.tasks.base import Task
from sketchfusion_plugins.tasks.correspondence import Correspondence

SIDE = 16


class Listed(Dataset[dict[str, Any]]):
    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


class Answers(Task):
    """A task that answers by a function, without an encoder."""

    def __init__(self, name: str, answer: Callable[..., Tensor]) -> None:
        nn.Module.__init__(self)
        self.name = name  # type: ignore[misc]
        self.answer = answer
        self.weight = nn.Parameter(torch.zeros(1))
        self.modes: list[bool] = []
        self.places: list[str] = []

    def forward(self, *inputs: Tensor, **options: Any) -> Tensor:
        self.modes.append(self.training)
        return self.answer(*inputs, **options)

    def to(self, *places: Any, **options: Any) -> Any:
        self.places.append(str(places[0]))
        return self


class Maps(Features):
    """A map by a function of the image."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(image)


def image(value: float) -> Tensor:
    return torch.full((3, SIDE, SIDE), value)


def value(images: Tensor) -> Tensor:
    """What `image` was made of."""
    return images[:, 0, 0, 0]


def judge(data: TaskData, **options: Any) -> Judge:
    return Judge(data, progress=False, **{"batch_size": 3, **options})


LABELS = [0, 1, 2, 2, 1, 2, 2]


@pytest.fixture
def recognition() -> TaskData:
    items = [{"image": image(label / 10), "label": label} for label in LABELS]
    return TaskData("recognition", "here", SIDE, None, Listed(items), categories=("a", "b", "c"))


def classify(images: Tensor) -> Tensor:
    return F.one_hot((value(images) * 10).round().long(), 3).float()


def test_who_knows_all_scores_one(recognition: TaskData) -> None:
    row = judge(recognition)(Answers("recognition", classify))
    assert row == {"Acc@1": Measured.of([1] * 7), "Acc@5": Measured.of([1] * 7)}
    assert row["Acc@1"].value == 1 and row["Acc@1"].count == 7


def test_who_always_says_the_same_scores_its_share(recognition: TaskData) -> None:
    model = Answers(
        "recognition", lambda images: torch.tensor([[0.0, 0, 1]]).expand(len(images), 3)
    )
    row = judge(recognition)(model)
    assert row["Acc@1"].value == pytest.approx(4 / 7)
    assert (row["Acc@1"].low, row["Acc@1"].high) == tuple(wilson(4 / 7, 7))
    assert row["Acc@5"].value == 1, "there are but three classes"


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_models_are_left_as_they_were(recognition: TaskData, mode: bool, fails: bool) -> None:
    def answer(images: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        if fails:
            raise RuntimeError("out of memory")
        return classify(images)

    model = Answers("recognition", answer).train(mode)
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            judge(recognition)(model)
    else:
        judge(recognition)(model)
    assert model.modes and not any(model.modes)
    assert model.training == mode
    assert model.places == ["cpu", "cpu"]


def test_models_are_moved_and_moved_back(recognition: TaskData) -> None:
    model = Answers("recognition", classify)
    with pytest.raises(NotImplementedError):
        judge(recognition, device="meta")(model)
    assert model.places == ["meta", "cpu"]


def test_workers_and_batches_change_nothing(recognition: TaskData) -> None:
    model = Answers("recognition", lambda images: classify(images).flip(1))
    row = judge(recognition)(model)
    assert row["Acc@1"].value == pytest.approx(2 / 7)
    assert judge(recognition, batch_size=1)(model) == row
    assert judge(recognition, workers=2)(model) == row


def test_judging_leaves_the_random_state_to_training(recognition: TaskData) -> None:
    state = torch.get_rng_state()
    judge(recognition)(Answers("recognition", classify))
    assert torch.equal(torch.get_rng_state(), state)


def test_models_of_other_tasks_are_refused(recognition: TaskData) -> None:
    with pytest.raises(ValueError, match="trained for retrieval and cannot be judged on recog"):
        judge(recognition)(Answers("retrieval", classify))
    with pytest.raises(ValueError, match="unknown task 'juggling'; choose one of recognition"):
        Judge(replace(recognition, task="juggling"))


@pytest.mark.parametrize("classes", [("a", "c", "b"), ("a", "b"), ("a", "b", "c", "d")])
def test_models_of_other_classes_are_refused(
    recognition: TaskData, classes: tuple[str, ...]
) -> None:
    model = Answers("recognition", classify)
    model.classes = classes  # type: ignore[assignment]
    message = rf"trained for {len(classes)} classes .*the data have 3 \(a, b, c"
    with pytest.raises(ValueError, match=message):
        judge(recognition)(model)
    model.classes = ("a", "b", "c")  # type: ignore[assignment]
    assert judge(recognition)(model)["Acc@1"].value == 1


def test_features_need_a_part_to_fit_on(recognition: TaskData) -> None:
    with pytest.raises(ValueError, match="no part to fit a probe on"):
        judge(recognition)(PixelFeatures())


def noisy(*counts: int) -> list[Listed]:
    """Parts of noise, a little brighter on the left with each of four classes."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Listed:
        labels = torch.randint(4, (count,), generator=generator)
        images = torch.rand(count, 3, SIDE, SIDE, generator=generator) * 2 - 1
        images[..., :8] += 0.1 * labels[:, None, None, None]
        return Listed(
            [{"image": i, "label": int(label)} for i, label in zip(images, labels, strict=True)]
        )

    return [part(count) for count in counts]


def describe(items: Listed) -> tuple[Any, Any]:
    """Descriptors ``[N, D]`` and labels ``[N]`` of a whole part at once."""
    images = torch.stack([item["image"] for item in items.items])
    labels = np.array([item["label"] for item in items.items])
    return PixelFeatures().describe(images).double().numpy(), labels


def test_features_are_probed_by_ridge_regression() -> None:
    fit, test = noisy(40, 30)
    data = TaskData("recognition", "here", SIDE, None, test, fit, categories=tuple("abcd"))
    row = judge(data)(PixelFeatures())
    train_x, train_y = describe(fit)
    test_x, test_y = describe(test)
    scaler = StandardScaler().fit(train_x)
    oracle = RidgeClassifierCV(alphas=10 ** np.arange(0, 5.5, 0.5))
    oracle.fit(scaler.transform(train_x), train_y)
    right = oracle.predict(scaler.transform(test_x)) == test_y
    assert 0.3 < right.mean() < 1
    assert row["Acc@1"] == Measured.of(right)


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_batches_score_as_the_whole_part_does(batch_size: int) -> None:
    fit, test = noisy(60, 101)
    data = TaskData("recognition", "here", SIDE, None, test, fit, categories=tuple("abcdefg"))
    row = judge(data, batch_size=batch_size)(PixelFeatures())
    train_x, train_y = describe(fit)
    test_x, test_y = describe(test)
    scores = RidgeClassifier.fit(train_x, train_y, 7).scores(test_x)
    # Rank of the right class; of equal ones the first comes first.
    rank = (np.argsort(-scores, axis=1, kind="stable") == test_y[:, None]).argmax(1)
    assert 0 < (rank < 1).mean() < (rank < 5).mean()
    assert row == {"Acc@1": Measured.of(rank < 1), "Acc@5": Measured.of(rank < 5)}


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made


def test_a_larger_part_to_recognise_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    scores = RidgeClassifier.scores

    def spy(self: RidgeClassifier, descriptors: Any) -> Any:
        scored.append(len(descriptors))
        return scores(self, descriptors)

    monkeypatch.setattr(RidgeClassifier, "scores", spy)
    largest = []
    for count in (9, 900):
        fit, test = noisy(20, count)
        data = TaskData("recognition", "here", SIDE, None, test, fit, categories=tuple("abcd"))
        with Largest() as seen:
            judge(data)(PixelFeatures())
        largest.append(seen.numbers)
    assert largest[0] == largest[1]
    assert sum(scored) == 909 and max(scored) == 3, "batches of three"


@pytest.mark.parametrize("task", ["recognition", "retrieval"])
def test_batches_of_descriptors_are_let_go(task: str, retrieval: TaskData) -> None:
    """Kept in a list, a large gallery's would be there twice when they are joined."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Watched(PixelFeatures):
        def describe(self, image: Tensor) -> Tensor:
            alive.append(sum(reference() is not None for reference in made))
            descriptors = super().describe(image)
            made.append(weakref.ref(descriptors))
            return descriptors

    if task == "recognition":
        fit, test = noisy(20, 30)
        data = TaskData(task, "here", SIDE, None, test, fit, categories=tuple("abcd"))
    else:
        data = retrieval
    judge(data, batch_size=1)(Watched())
    assert len(alive) == (50 if task == "recognition" else 9) and max(alive) <= 1


@pytest.mark.parametrize(
    ("most", "probed"),
    [(4, [0, 2, 5, 7]), (7, [0, 1, 2, 4, 5, 7, 8]), (10, [*range(10)]), (11, [*range(10)])],
)
def test_a_probe_sees_a_part_evenly_spaced(
    recognition: TaskData, monkeypatch: pytest.MonkeyPatch, most: int, probed: list[int]
) -> None:
    monkeypatch.setattr("sketchfusion_plugins.evaluation.judge.PROBED_PICTURES", most)
    fit = Listed([{"image": image(i / 10), "label": i % 3} for i in range(10)])
    seen: list[int] = []

    def answer(images: Tensor) -> Tensor:
        seen.extend((value(images) * 10).round().int().tolist())
        return images

    row = judge(replace(recognition, fit=fit))(Maps(answer))
    assert seen == [*probed, *LABELS] and row["Acc@1"].count == len(LABELS)


@pytest.fixture
def retrieval() -> TaskData:
    def items(instances: list[int]) -> Listed:
        return Listed([{"image": image(i / 10), "instance": i, "label": i // 2} for i in instances])

    return TaskData(
        "retrieval",
        "here",
        SIDE,
        None,
        items([0, 1, 2, 3]),
        gallery=items([3, 2, 1, 0, 5]),
        measures=("Acc@1", "mAP@all"),
    )


def embed(images: Tensor) -> Tensor:
    return F.one_hot((value(images) * 10).round().long(), 6).float()


def embed_neighbour(images: Tensor) -> Tensor:
    """Instance i comes out as i, and a little less as the other one of its category."""
    own = (value(images) * 10).round().long()
    return F.one_hot(own, 6) + 0.5 * F.one_hot(own ^ 1, 6)


def test_retrieval_by_instance_and_by_label(retrieval: TaskData) -> None:
    row = judge(retrieval)(Answers("retrieval", embed))
    assert {name: m.value for name, m in row.items()} == {"Acc@1": 1, "mAP@all": 1}
    # By label both of a category are right: 0 and 1 in ranks 1 and 2, or 4 alone.
    by_label = replace(retrieval, label="label")
    row = judge(by_label)(Answers("retrieval", embed_neighbour))
    assert row["mAP@all"].value == 1 and row["mAP@all"].count == 4
    # All alike: the order is the gallery's, 3, 2, 1, 0, 5.
    row = judge(retrieval)(Answers("retrieval", lambda images: torch.ones(len(images), 2)))
    assert row["Acc@1"].value == 0.25
    assert row["mAP@all"].value == pytest.approx((1 / 4 + 1 / 3 + 1 / 2 + 1) / 4)


def test_retrieval_describes_plain_features(retrieval: TaskData) -> None:
    model = Maps(lambda images: embed(images)[:, :, None, None].expand(-1, -1, 4, 4))
    assert judge(retrieval)(model)["Acc@1"].value == 1
    # A mean over parts of the image, not over all of it, is compared.
    places = Maps(lambda images: embed(images)[:, :4].reshape(-1, 1, 2, 2))
    assert judge(retrieval)(places)["Acc@1"].value == 1


def test_definitions_of_average_precision(retrieval: TaskData) -> None:
    """All alike, so that the gallery's order counts: labels 1, 1, 0, 0, 2."""
    data = replace(retrieval, label="label", measures=("Acc@1", "mAP@3", "P@3"))
    same = Answers("retrieval", lambda images: torch.ones(len(images), 2))
    # Of two relevant pictures, queries of label 0 find one at rank 3, those of label 1 both.
    standard, found = [1 / 6, 1 / 6, 1, 1], [1 / 3, 1 / 3, 1, 1]
    row = judge(data)(same)
    assert list(row) == ["Acc@1", "mAP@3", "P@3"]
    assert row["mAP@3"] == Measured.of(standard)
    assert judge(data, definition="torchmetrics")(same)["mAP@3"] == Measured.of(found)
    both = judge(data, definition=["standard", "torchmetrics"])(same)
    assert list(both) == [
        "Acc@1",
        "mAP@3 (standard)",
        "P@3 (standard)",
        "mAP@3 (torchmetrics)",
        "P@3 (torchmetrics)",
    ]
    assert both["mAP@3 (standard)"] == Measured.of(standard)
    assert both["mAP@3 (torchmetrics)"] == Measured.of(found)
    assert both["Acc@1"] == row["Acc@1"] == Measured.of([0, 0, 1, 1])


def test_sakes_definition_averages_over_classes(retrieval: TaskData) -> None:
    # Queries of labels 0, 0 and 1.
    data = replace(
        retrieval,
        label="label",
        measures=("Acc@1", "P@3"),
        test=Subset(retrieval.test, [0, 1, 2]),
    )
    same = Answers("retrieval", lambda images: torch.ones(len(images), 2))
    by_query = [1 / 3, 1 / 3, 2 / 3]
    assert judge(data)(same)["P@3"] == Measured.of(by_query)
    row = judge(data, definition="sake")(same)
    assert row["P@3"].value == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert row["P@3"] == Measured.of(by_query, [0.5, 0.5, 1])
    assert row["Acc@1"] == Measured.of([0, 0, 1])


def test_how_many_queries_a_class_has_is_no_spread(retrieval: TaskData) -> None:
    # Queries of labels 0, 0 and 1, all answered right.
    data = replace(
        retrieval,
        label="label",
        measures=("mAP@all",),
        test=Subset(retrieval.test, [0, 1, 2]),
    )
    row = judge(data, definition="sake")(Answers("retrieval", embed_neighbour))
    assert row == {"mAP@all": Measured(1.0, *wilson(1.0, 3), 3)}


def test_a_model_from_another_device_can_train_afterwards(retrieval: TaskData) -> None:
    class Elsewhere(Answers):
        def to(self, *places: Any, **options: Any) -> Any:
            """Copies, as there is no other device here."""
            return self._apply(lambda tensor: tensor.clone())

    model = Elsewhere("retrieval", embed)
    judge(retrieval)(model)
    assert not model.weight.is_inference()


def test_definitions_that_there_are_not(retrieval: TaskData, recognition: TaskData) -> None:
    with pytest.raises(ValueError, match="unknown definition 'voc'; known: standard, sake"):
        judge(retrieval, definition=["standard", "voc"])
    with pytest.raises(ValueError, match=r"retrieval's mAP@k and P@k, got 'sake' for recognition"):
        judge(recognition, definition="sake")
    assert judge(retrieval).definitions == ("standard",)
    assert judge(recognition).definitions == ()


def test_search_within_the_querys_own_category(retrieval: TaskData) -> None:
    """Embeddings tell a picture's place in its category, not the category itself."""

    def embed_place(images: Tensor) -> Tensor:
        return F.one_hot((value(images) * 10).round().long() % 2, 2).float()

    model = Answers("retrieval", embed_place)
    # Among all, in the gallery's order 3, 2, 1, 0, 5: the first of its place is another category's
    # for 0 and 1.
    assert judge(retrieval)(model)["Acc@1"] == Measured.of([0, 0, 1, 1])
    within = replace(retrieval, own_category=True)
    assert judge(within)(model)["Acc@1"] == Measured.of([1, 1, 1, 1])
    same = Answers("retrieval", lambda images: torch.ones(len(images), 2))
    # Categories 0 and 1, whose galleries are 1, 0 and 3, 2.
    assert judge(within)(same)["mAP@all"] == Measured.of([1 / 2, 1, 1 / 2, 1])
    # A category without an answer counts as little as in a search of everything.
    assert isinstance(within.gallery, Listed)
    fewer = replace(within, gallery=Listed(within.gallery.items[2:]))
    assert judge(fewer)(Answers("retrieval", embed))["Acc@1"] == Measured.of([1, 1])
    none = replace(within, gallery=Listed(within.gallery.items[4:]))
    with pytest.raises(ValueError, match=r"none of 4 queries has a relevant item among the 1 of"):
        judge(none)(same)


@pytest.fixture
def correspondence() -> TaskData:
    size = 100
    source = torch.tensor([[10.0, 10], [50, 50], [90, 20]])
    # Moved by 0, 5 and 12 px; the last point of the second pair is hidden.
    target = source + torch.tensor([[0.0, 0], [3, 4], [0, 12]])
    shown = torch.tensor([True, True, True])
    pair = {"source": torch.zeros(3, size, size), "target": torch.zeros(3, size, size)}
    points = {"source_points": source, "target_points": target}
    items = [
        {**pair, **points, "visible": shown},
        {**pair, **points, "visible": torch.tensor([True, True, False])},
        {**pair, **points, "visible": ~shown},
    ]
    return TaskData("correspondence", "here", size, None, Listed(items))


def test_correspondence_by_hand(correspondence: TaskData) -> None:
    row = judge(correspondence)(SamePlace())
    # 5 px are 5 % of 100 px: right, the limit included. Pairs without a point do not count.
    assert row == {"PCK@5": Measured.of([2 / 3, 1]), "PCK@10": Measured.of([2 / 3, 1])}
    shift = torch.tensor([[0.0, 0], [3, 4], [0, 12]])

    def find(source: Tensor, target: Tensor, points: Tensor, visible: Tensor) -> Tensor:
        assert visible.shape == points.shape[:2]
        return points + shift

    row = judge(correspondence)(Answers("correspondence", find))
    assert row["PCK@5"] == Measured.of([1, 1])


def in_groups(data: TaskData, *instances: int) -> TaskData:
    """The same data, of whose items some are of one instance."""
    assert isinstance(data.test, Listed)
    items = zip(data.test.items, instances, strict=True)
    return replace(data, test=Listed([{**item, "instance": number} for item, number in items]))


def test_items_of_an_instance_are_not_independent(
    recognition: TaskData, correspondence: TaskData, query_segmentation: TaskData
) -> None:
    """Both directions of a pair, sketches of a photo; what has no instance stands alone."""
    model = Answers("recognition", lambda images: F.one_hot(0 * images[:, 0, 0, 0].long(), 3))
    groups = [4, 4, 7, 7, 7, 9, -10]
    row = judge(in_groups(recognition, 4, 4, 7, 7, 7, 9, NO_INSTANCE))(model)
    assert row["Acc@1"] == Measured.of([1, 0, 0, 0, 0, 0, 0], groups=groups)
    assert row["Acc@1"] != Measured.of([1, 0, 0, 0, 0, 0, 0])
    none = judge(in_groups(recognition, *[NO_INSTANCE] * 7))(model)
    assert none == judge(recognition)(model)
    # The third pair has no point that counts, and no group then.
    row = judge(in_groups(correspondence, 3, 3, 8))(SamePlace())
    assert row["PCK@5"] == Measured.of([2 / 3, 1], groups=[3, 3])
    assert row["PCK@5"] == Measured(pytest.approx(5 / 6), 0.0, 1.0, 2)
    nothing = Answers("query_segmentation", lambda sketch, photo: 0 * photo[:, 0])
    row = judge(in_groups(query_segmentation, 5, 5))(nothing)
    assert row["mIoU"] == Measured.of([1 / 4, 1 / 4], groups=[5, 5])
    assert row["mIoU"] == Measured(1 / 4, 0.0, 1.0, 2)


def test_sketches_of_a_photo_are_not_independent(retrieval: TaskData) -> None:
    """By class, as by the very photo; queries without an answer are of no group."""
    assert isinstance(retrieval.test, Listed)
    queries = [retrieval.test.items[i] for i in (0, 0, 1, 2)]
    # Nothing of its class is searched.
    queries.append({"image": image(0.9), "instance": 0, "label": 8})
    data = replace(retrieval, test=Listed(queries), label="label", measures=("mAP@all",))
    same = Answers("retrieval", lambda images: torch.ones(len(images), 2))
    # The gallery's labels are 1, 1, 0, 0, 2 in this order.
    expected = [5 / 12, 5 / 12, 5 / 12, 1]
    row = judge(data)(same)
    assert vars(row["mAP@all"]) == pytest.approx(vars(Measured.of(expected, groups=[0, 0, 1, 2])))
    assert row["mAP@all"] != Measured.of(expected)


@pytest.mark.parametrize(
    ("protocol", "limit"), [("pscnet", 1.0), ("sketchfusion", 0.0), ("", None)]
)
def test_protocols_differ_at_their_limit(
    correspondence: TaskData, protocol: str, limit: float | None
) -> None:
    points = torch.tensor([[20.0, 20.0]])
    item = {
        **correspondence.test[0],
        "source_points": points,
        # 1 % of the image, exactly.
        "target_points": points + torch.tensor([1.0, 0.0]),
        "visible": torch.tensor([True]),
    }
    data = replace(correspondence, test=Listed([item, item]), protocol=protocol)
    row = judge(data)(SamePlace())
    if limit is None:
        assert tuple(row) == ("PCK@5", "PCK@10")
    else:
        assert row["PCK@1"].value == limit and tuple(row) == ("PCK@1", "PCK@5", "PCK@10")


def test_plain_features_match_by_similarity(correspondence: TaskData) -> None:
    """A map that says where it is finds every place where it was."""

    def where(images: Tensor) -> Tensor:
        cells = torch.eye(20 * 20).reshape(1, 400, 20, 20)
        return cells.expand(len(images), -1, -1, -1)

    centres = torch.tensor([[12.5, 12.5], [52.5, 52.5], [92.5, 22.5]])
    item = {**correspondence.test[0], "source_points": centres, "target_points": centres}
    data = replace(correspondence, test=Listed([item, item]))
    assert judge(data)(Maps(where))["PCK@5"].value == 1


def test_cells_that_reach_beyond_the_image_are_placed_by_their_stride(
    correspondence: TaskData,
) -> None:
    """13 cells of 8 px at 100 px; what is in a cell of the source is 3 cells further right."""

    def moved(images: Tensor) -> Tensor:
        cells = torch.eye(13 * 13).reshape(169, 13, 13)
        shift = (images[:, 0, 0, 0] * 3).round().int().tolist()
        return torch.stack([cells.roll(columns, dims=2) for columns in shift])

    start = torch.tensor([[4.0, 4.0], [12.0, 92.0], [68.0, 52.0]])
    item = {
        "source": torch.zeros(3, 100, 100),
        "target": torch.ones(3, 100, 100),
        "source_points": start,
        "target_points": start + torch.tensor([24.0, 0.0]),
        "visible": torch.tensor([True, True, True]),
    }
    # To 1 % of the image, which is 1 px.
    data = replace(correspondence, test=Listed([item, item]), protocol="pscnet")
    strided = Maps(moved)
    strided.stride = 8
    assert judge(data)(strided)["PCK@1"].value == 1
    assert judge(data)(Maps(moved))["PCK@1"].value < 1, "as if 13 cells spanned 100 px"


def test_plain_features_and_a_task_on_them_place_points_alike(build: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    items = [
        {
            "source": torch.rand(3, 100, 100, generator=generator) * 2 - 1,
            "target": torch.rand(3, 100, 100, generator=generator) * 2 - 1,
            "source_points": torch.rand(6, 2, generator=generator) * 100,
            "target_points": torch.rand(6, 2, generator=generator) * 100,
            "visible": torch.ones(6, dtype=torch.bool),
        }
        for _ in range(4)
    ]
    data = TaskData("correspondence", "here", 100, None, Listed(items))
    task = Correspondence(build()).eval()
    judged = judge(data)
    places: list[Tensor] = []

    def keep(found: Tensor, *arguments: Any) -> Any:
        places.append(found)
        return key_point_scores(found, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sketchfusion_plugins.evaluation.judge.key_point_scores", keep)
        judged(task)
        judged(task.features)
    by_task, by_features = torch.cat(places[:2]), torch.cat(places[2:])
    torch.testing.assert_close(by_features, by_task, atol=1e-3, rtol=0)


@pytest.fixture
def query_segmentation() -> TaskData:
    """The left half is meant; in the second item its upper half is not labelled."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[:, : SIDE // 2] = True
    valid = torch.ones(SIDE, SIDE, dtype=torch.bool)
    half = valid.clone()
    half[: SIDE // 2] = False
    photo = image(-1.0)
    photo[:, :, : SIDE // 2] = 1.0
    items = [
        {"sketch": image(1.0), "photo": photo, "mask": mask, "valid": valid},
        {"sketch": image(1.0), "photo": photo, "mask": mask, "valid": half},
    ]
    return TaskData("query_segmentation", "here", SIDE, None, Listed(items), Listed(items))


def test_query_segmentation_by_hand(query_segmentation: TaskData) -> None:
    perfect = Answers("query_segmentation", lambda sketch, photo: photo[:, 0])
    row = judge(query_segmentation)(perfect)
    assert {name: measured.value for name, measured in row.items()} == {
        "foreground IoU": 1,
        "mIoU": 1,
        "pixel accuracy": 1,
    }

    def upper(sketch: Tensor, photo: Tensor) -> Tensor:
        logits = torch.full((len(photo), SIDE, SIDE), -1.0)
        logits[:, : SIDE // 2] = 1.0
        return logits

    row = judge(query_segmentation)(Answers("query_segmentation", upper))
    # First: a quarter of the picture is right, of three quarters; second: nothing is found, and
    # half of the labelled part is taken for background, rightly in half of it.
    assert row["foreground IoU"] == Measured.of([1 / 3, 0])
    assert row["mIoU"] == Measured.of([1 / 3, 1 / 4])
    assert row["pixel accuracy"] == Measured.of([1 / 2, 1 / 2])


def test_answers_that_are_no_numbers_are_refused(query_segmentation: TaskData) -> None:
    broken = Answers("query_segmentation", lambda sketch, photo: photo[:, 0] * torch.nan)
    with pytest.raises(ValueError, match=r"pixels are NaN: the model's weights are damaged"):
        judge(query_segmentation)(broken)


def test_plain_features_segment_above_a_fitted_threshold(query_segmentation: TaskData) -> None:
    def sign(images: Tensor) -> Tensor:
        return torch.cat([F.avg_pool2d(images[:, :1], 2), torch.ones(len(images), 1, 8, 8)], 1)

    row = judge(query_segmentation)(Maps(sign))
    assert row["foreground IoU"].value == row["mIoU"].value == 1
    with pytest.raises(ValueError, match="no part to fit a threshold on"):
        judge(replace(query_segmentation, fit=None))(Maps(sign))
