"""Every task: what it computes, where gradient goes, and how it is saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sketchfusion_plugins.adapter_file import CheckpointError, read_image_size, read_task
from sketchfusion_plugins.checkpoint import save_adapters
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.features import pixel_similarity
from sketchfusion_plugins.heads import cells
from sketchfusion_plugins.heads.matching import match_points
from sketchfusion_plugins.heads.query import ink_cells
from sketchfusion_plugins.heads.ridge import RidgeClassifier
from sketchfusion_plugins.losses.contrast import CrossDomainInfoNCE, CrossDomainTriplet
from sketchfusion_plugins.losses.correspondence import (
    CorrespondenceLoss,
    CorrespondenceLossConfig,
)
from sketchfusion_plugins.losses.query import query_segmentation_loss
from sketchfusion_plugins.metrics.query_segmentation import query_segmentation_scores
from sketchfusion_plugins.tasks.base import Task
from sketchfusion_plugins.tasks.load import TASKS, build_task, load_task

CLASSES = ("cat", "dog", "owl")
SETTINGS: dict[str, dict[str, Any]] = {
    "recognition": {"classes": CLASSES, "label_smoothing": 0.2, "grid": 2},
    "retrieval": {"dim": 12, "grid": 3, "loss": "triplet", "by": "category"},
    "query_segmentation": {"pooling": "ink"},
    "correspondence": {"loss": {"end_point": 2.0, "contrastive": 0.5, "noise": 0.0}},
}
FOUNDATIONS = ("features.encoder.diffusion.", "features.encoder.semantic.")


@pytest.fixture
def make(build: Any) -> Callable[..., Task]:
    """A task on the small folders, its head drawn from a seed."""

    def make_task(name: str, **changes: Any) -> Task:
        torch.manual_seed(0)
        settings = {**SETTINGS[name], **changes.pop("settings", {})}
        return build_task(name, build(**changes), **settings)

    return make_task


@pytest.fixture
def batch(sketches: Any) -> dict[str, Any]:
    """A batch that holds what any of the tasks trains on."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(4, 5, 2, generator=generator) * 56 + 4
    images, photos = sketches(4, 64), sketches(4, 64, seed=9)
    return {
        "image": images,
        "sketch": images,
        "photo": photos,
        "source": images,
        "target": photos,
        "label": torch.tensor([0, 1, 0, 2]),
        "instance": torch.tensor([5, 6, 7, 8]),
        "mask": torch.rand(4, 64, 64, generator=generator) > 0.6,
        "valid": torch.rand(4, 64, 64, generator=generator) > 0.2,
        "source_points": points,
        "target_points": points.flip(1),
        "visible": torch.rand(4, 5, generator=generator) > 0.2,
    }


def change_description(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a checkpoint says about itself."""
    path = folder / "adapters.safetensors"
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()["sketchfusion"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(description)
    save_file(tensors, path, {"sketchfusion": json.dumps(description)})


INPUTS = {
    "recognition": ("image",),
    "retrieval": ("sketch",),
    "query_segmentation": ("sketch", "photo"),
    "correspondence": ("source", "target", "source_points"),
}


def run(task: Task, batch: dict[str, Any]) -> Tensor:
    """A task's answer to a batch."""
    result: Tensor = task(*(batch[key] for key in INPUTS[task.name]))
    return result


def total(losses: dict[str, Tensor]) -> Tensor:
    """What mmengine minimises."""
    return torch.stack([value for name, value in losses.items() if "loss" in name]).sum()


def test_recognition_by_hand(make: Callable[..., Any], batch: dict[str, Any]) -> None:
    task = make("recognition").eval()
    # Four quarters of a map of 8 x 8 cells.
    cells = task.encoder(batch["image"]).unflatten(2, (2, 4)).unflatten(4, (2, 4))
    pooled = cells.mean((3, 5)).flatten(1)
    norm, linear = task.head.norm, task.head.linear
    pooled = (pooled - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    logits = pooled @ linear.weight.T + linear.bias
    torch.testing.assert_close(task(batch["image"]), logits)
    losses = task.loss(batch)
    log_probabilities = logits.log_softmax(1)
    target = torch.full((4, 3), 0.2 / 3).scatter(1, batch["label"][:, None], 0.8 + 0.2 / 3)
    torch.testing.assert_close(losses["loss"], -(target * log_probabilities).sum(1).mean())
    right = (logits.argmax(1) == batch["label"]).float().mean()
    assert losses["accuracy"] == right and set(losses) == {"loss", "accuracy"}


def test_recognition_fits_its_head_to_its_present_features(
    make: Callable[..., Any], batch: dict[str, Any]
) -> None:
    task = make("recognition")
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    assert task.fit_head([batch, {**batch, "image": batch["image"].flip(3)}])
    assert task.training
    task.eval()
    with torch.no_grad():
        # In the same batches: so few images are told apart by the last digits.
        images = batch["image"], batch["image"].flip(3)
        maps = torch.cat([task.encoder(each) for each in images])
    pooled = F.adaptive_avg_pool2d(maps, 2).flatten(1).double().numpy()
    scores = RidgeClassifier.fit(pooled, batch["label"].repeat(2).numpy(), 3).scores(pooled[:4])
    expected = 5 * torch.from_numpy(scores).float()
    torch.testing.assert_close(task(batch["image"]), expected, rtol=1e-3, atol=1e-4)
    for name, value in task.encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_query_segmentation_fits_its_threshold_to_its_present_features(
    make: Callable[..., Any], batch: dict[str, Any]
) -> None:
    task = make("query_segmentation", settings={"pooling": "ink"})
    before = {name: value.clone() for name, value in task.state_dict().items()}
    assert task.fit_head([batch, {**batch, "photo": batch["photo"].flip(3)}])
    assert task.training
    task.eval()
    masks = batch["mask"].long().where(batch["valid"], 255)
    with torch.no_grad():
        similarity = torch.cat(
            [
                pixel_similarity(task.features, batch["sketch"], photo)
                for photo in (batch["photo"], batch["photo"].flip(3))
            ]
        )

    def foreground_iou(threshold: float) -> float:
        found = similarity > threshold
        return query_segmentation_scores(found, masks.repeat(2, 1, 1)).foreground_iou.mean().item()

    reached = foreground_iou(task.head.threshold.item())
    # Quantiles are tried, which another threshold can be better than, but not by much.
    assert reached > max(foreground_iou(t) for t in torch.linspace(-1, 1, 201).tolist()) - 0.005
    for name, value in task.state_dict().items():
        if name != "head.threshold":
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_query_segmentation_keeps_a_threshold_that_is_better_than_those_it_tries(
    make: Callable[..., Any], batch: dict[str, Any]
) -> None:
    task = make("query_segmentation", settings={"pooling": "ink"})
    with torch.no_grad():
        task.head.threshold.fill_(-1.5)
    # All is asked for: whatever a threshold among the similarities misses is missed.
    assert task.fit_head([{**batch, "mask": torch.ones_like(batch["mask"])}])
    assert task.head.threshold.item() == -1.5


@pytest.mark.parametrize("name", ["retrieval", "correspondence"])
def test_other_heads_have_nothing_to_fit(make: Callable[..., Any], name: str) -> None:
    def unread() -> Any:
        raise AssertionError("nothing is to be read")
        yield

    assert not make(name).fit_head(unread())


@pytest.mark.parametrize(
    ("loss", "oracle"), [("contrast", CrossDomainInfoNCE), ("triplet", CrossDomainTriplet)]
)
@pytest.mark.parametrize(("by", "key"), [("instance", "instance"), ("category", "label")])
def test_retrieval_by_hand(
    make: Callable[..., Any], batch: dict[str, Any], loss: str, oracle: Any, by: str, key: str
) -> None:
    task = make("retrieval", settings={"loss": loss, "by": by}).eval()

    def embed(image: Tensor) -> Tensor:
        cells = F.adaptive_avg_pool2d(task.encoder(image), 3).flatten(2).mT
        cells = F.layer_norm(cells, (64,), task.head.norm.weight, task.head.norm.bias)
        projection = task.head.projection
        return F.normalize(cells.flatten(1) @ projection.weight.T + projection.bias, dim=1)

    sketch, photo = embed(batch["sketch"]), embed(batch["photo"])
    assert task(batch["sketch"]).shape == (4, 12)
    torch.testing.assert_close(task(batch["sketch"]), sketch)
    expected = oracle()(sketch, photo, batch[key])
    losses = task.loss(batch)
    assert set(losses) == {"loss"}
    torch.testing.assert_close(losses["loss"], expected)


@pytest.mark.parametrize("pooling", ["all", "ink"])
def test_query_segmentation_by_hand(
    make: Callable[..., Any], batch: dict[str, Any], pooling: str
) -> None:
    task = make("query_segmentation", settings={"pooling": pooling}).eval()
    sketch, photo = task.encoder(batch["sketch"]), task.encoder(batch["photo"])
    kept = torch.ones(4, 8, 8, dtype=torch.bool)
    if pooling == "ink":
        kept = ink_cells(batch["sketch"], (8, 8), 8)
    descriptor = F.normalize((sketch * kept[:, None]).sum((2, 3)), dim=1)
    cosine = torch.einsum("bc,bchw->bhw", descriptor, F.normalize(photo, dim=1))
    cells = task.head.log_scale.exp() * (cosine - task.head.threshold)
    logits = F.interpolate(cells[:, None], scale_factor=8, mode="bilinear")[:, 0]
    torch.testing.assert_close(task(batch["sketch"], batch["photo"]), logits)
    labelled = torch.where(batch["valid"], batch["mask"].long(), 255)
    expected = query_segmentation_loss(logits, labelled)
    losses = task.loss(batch)
    assert losses.keys() == expected.keys()
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name])
    # Without a mask of validity every pixel counts.
    rest = {key: value for key, value in batch.items() if key != "valid"}
    everywhere = query_segmentation_loss(logits, batch["mask"].long())
    torch.testing.assert_close(task.loss(rest)["loss_bce"], everywhere["loss_bce"])


def test_correspondence_asks_for_kornia_where_it_needs_it(
    make: Callable[..., Any], batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "find_spec", lambda name: None)
    task = make("correspondence")
    assert task.features(batch["source"]).shape[0] == 4
    for call in (lambda: run(task, batch), lambda: task.loss(batch)):
        with pytest.raises(ModuleNotFoundError, match=r"kornia is needed .*\[tasks\]"):
            call()
    contrast = make("correspondence", settings={"loss": {"end_point": 0, "contrastive": 1}})
    assert set(contrast.loss(batch)) == {"loss_contrastive"}


def test_losses_of_query_segmentation_have_weights(
    make: Callable[..., Any], batch: dict[str, Any], tmp_path: Path
) -> None:
    plain = make("query_segmentation").eval().loss(batch)
    settings = {"loss": {"bce": 0.25, "dice": 2.0}}
    task = make("query_segmentation", settings=settings).eval()
    for name, weight in (("loss_bce", 0.25), ("loss_dice", 2.0)):
        torch.testing.assert_close(task.loss(batch)[name], weight * plain[name])
    task.save_pretrained(tmp_path)
    again = load_task(tmp_path).eval()
    assert again.loss(batch) == task.loss(batch)
    alone = make("query_segmentation", settings={"loss": {"bce": 0}})
    assert set(alone.loss(batch)) == {"loss_dice"}
    with pytest.raises(ValueError, match=r"not judged with 255, got ignore_index -1"):
        make("query_segmentation", settings={"loss": {"ignore_index": -1}})


def test_correspondence_by_hand(make: Callable[..., Any], batch: dict[str, Any]) -> None:
    task = make("correspondence").eval()
    source, target = task.encoder(batch["source"]), task.encoder(batch["target"])
    strides = {"source_stride": 8, "target_stride": 8}
    found = match_points(source, target, batch["source_points"], **strides)
    torch.testing.assert_close(
        task(batch["source"], batch["target"], batch["source_points"]), found
    )
    config = CorrespondenceLossConfig(end_point=2.0, contrastive=0.5, noise=0.0)
    points = (batch["source_points"], batch["target_points"])
    expected = CorrespondenceLoss(config)(
        source, target, *points, **strides, visible=batch["visible"]
    )
    losses = task.loss(batch)
    assert losses.keys() == expected.keys() and len(losses) == 2
    for name in losses:
        torch.testing.assert_close(losses[name], expected[name])


def test_the_two_images_may_differ_in_size(make: Callable[..., Any], sketches: Any) -> None:
    sketch, photo = sketches(2, 64), sketches(2, 45, 99, seed=3)
    task = make("query_segmentation").eval()
    logits = task(sketch, photo)
    assert logits.shape == (2, 45, 99)
    # The last cells reach beyond the photo: 6 x 13 of them cover 48 x 104 px.
    maps = task.encoder(sketch), task.encoder(photo)
    whole = task.head(*maps, (48, 104), ink=ink_cells(sketch, (8, 8), 8))
    torch.testing.assert_close(logits, whole[:, :45, :99])
    # Each pair by itself: a batch changes nothing.
    alone = torch.cat([task(sketch[i : i + 1], photo[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(alone, logits, atol=1e-3, rtol=1e-4)
    task = make("correspondence").eval()
    points = torch.tensor([[[3.0, 60.0], [31.5, 2.0]]]).expand(2, -1, -1)
    found = task(sketch, photo, points)
    source, target = task.encoder(sketch), task.encoder(photo)
    expected = match_points(source, target, points, source_stride=8, target_stride=8)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, 2, 2)


def test_coarse_maps_span_their_padded_images(make: Callable[..., Any], sketches: Any) -> None:
    sketch, photo = sketches(1, 64), sketches(1, 75, 72, seed=3)
    task = make("correspondence", aggregation__stride=32).eval()
    points = torch.tensor([[[3.0, 60.0], [31.5, 2.0]]])
    # 80 px in 3 rows, 72 px in 3 columns.
    cells = {"source_stride": 32, "target_stride": (80 / 3, 24)}
    expected = match_points(task.encoder(sketch), task.encoder(photo), points, **cells)
    torch.testing.assert_close(task(sketch, photo, points), expected)
    task = make("query_segmentation", aggregation__stride=32).eval()
    maps = task.encoder(sketch), task.encoder(photo)
    whole = task.head(*maps, (80, 72), ink=ink_cells(sketch, (2, 2), 32))
    torch.testing.assert_close(task(sketch, photo), whole[:, :75])


def test_an_image_matches_itself(make: Callable[..., Any], sketches: Any) -> None:
    image = sketches(1, 72, 56)
    centres = torch.tensor([[[4.0, 4.0], [28.0, 36.0], [52.0, 68.0]]])
    found = make("correspondence").eval()(image, image, centres, temperature=1e-4)
    torch.testing.assert_close(found, centres, atol=0.5, rtol=0)


@pytest.mark.parametrize("name", TASKS)
def test_gradient_reaches_all_that_trains_and_nothing_else(
    make: Callable[..., Any], batch: dict[str, Any], name: str
) -> None:
    task = make(name).train()
    assert not task.encoder.diffusion.training
    total(task.loss(batch)).backward()
    for key, parameter in task.named_parameters():
        if key.startswith(FOUNDATIONS):
            assert not parameter.requires_grad and parameter.grad is None, key
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    trained = [key for key, parameter in task.named_parameters() if parameter.requires_grad]
    assert sum("injector" in key for key in trained) == 14
    assert any("aggregator" in key for key in trained)


@pytest.mark.parametrize("name", TASKS)
def test_bfloat16_autocast_is_finite_and_near(
    make: Callable[..., Any], batch: dict[str, Any], name: str
) -> None:
    task = make(name).eval()
    with torch.no_grad():
        exact, loss = run(task, batch), total(task.loss(batch))
        with torch.autocast("cpu", torch.bfloat16):
            rough, rough_loss = run(task, batch), total(task.loss(batch))
    assert rough.isfinite().all() and rough.dtype == torch.float32
    torch.testing.assert_close(rough_loss, loss, rtol=0.2, atol=0.05)
    assert (rough - exact).abs().mean() < 0.5 * exact.abs().mean()


@pytest.mark.parametrize("name", TASKS)
def test_saved_tasks_come_back_equal(
    make: Callable[..., Any], batch: dict[str, Any], name: str, tmp_path: Path
) -> None:
    task = make(name)
    if name == "recognition":
        task.train()(batch["image"])
        assert task.head.norm.running_mean.abs().sum() > 0
    task.eval().save_pretrained(tmp_path / "saved")
    loaded = load_task(tmp_path / "saved")
    assert type(loaded) is TASKS[name] and not loaded.training
    assert loaded.settings == json.loads(json.dumps(task.settings))
    assert torch.equal(run(loaded, batch), run(task, batch))
    torch.testing.assert_close(total(loaded.loss(batch)), total(task.loss(batch)))
    described = json.loads((tmp_path / "saved" / "config.json").read_text())["task"]
    unknown = {"image_size": None, "split": None}
    assert described == {"name": name, "settings": loaded.settings, **unknown}
    with safe_open(tmp_path / "saved" / "adapters.safetensors", "pt") as file:
        assert not any(key.startswith(FOUNDATIONS) for key in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("wrapped", ["encoder", "task", "parallel"])
def test_compiled_and_parallel_tasks_come_back(
    make: Callable[..., Any], batch: dict[str, Any], wrapped: str, tmp_path: Path
) -> None:
    task = make("query_segmentation").eval()
    expected = run(task, batch)
    task.image_size = 72
    if wrapped == "encoder":
        task.features.encoder = torch.compile(task.features.encoder, backend="eager")
        task.save_pretrained(tmp_path)
    elif wrapped == "task":
        save_adapters(torch.compile(task, backend="eager"), tmp_path)
    else:
        save_adapters(torch.nn.DataParallel(task), tmp_path)
    loaded = load_task(tmp_path)
    assert (loaded.settings, loaded.image_size) == (task.settings, 72)
    torch.testing.assert_close(run(loaded, batch), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", TASKS)
def test_exported_tasks_take_other_batches(
    make: Callable[..., Any], batch: dict[str, Any], name: str
) -> None:
    task = make(name).eval()
    given = [batch[key] for key in INPUTS[name]]
    # Both pictures of a pair of one size go through the encoder together.
    varying = {0: torch.export.Dim("batch", max=31)}
    shapes = (varying,) * len(given)
    program = torch.export.export(task, tuple(part[:2] for part in given), dynamic_shapes=shapes)
    for count in (1, 4):
        parts = [part[:count] for part in given]
        torch.testing.assert_close(program.module()(*parts), task(*parts))


@pytest.mark.parametrize("name", TASKS)
def test_an_encoder_loads_from_a_tasks_checkpoint(
    make: Callable[..., Any], sketches: Any, name: str, tmp_path: Path
) -> None:
    task = make(name).eval()
    task.save_pretrained(tmp_path)
    encoder = SketchFusionEncoder.from_pretrained(tmp_path).eval()
    image = sketches(2, 40, 72)
    assert torch.equal(encoder(image), task.features(image))


def test_loading_may_change_the_encoder(make: Callable[..., Any], tmp_path: Path) -> None:
    make("retrieval").save_pretrained(tmp_path)
    loaded = load_task(tmp_path, diffusion__timestep=7)
    assert loaded.encoder.config.diffusion.timestep == 7
    with pytest.raises(CheckpointError, match="trained on other foundations"):
        load_task(tmp_path, weights="random")


def test_image_size_stays_with_the_task(make: Callable[..., Any], tmp_path: Path) -> None:
    task = make("retrieval")
    task.save_pretrained(tmp_path / "unknown")
    assert read_image_size(tmp_path / "unknown") is None
    assert load_task(tmp_path / "unknown").image_size is None
    task.image_size = 72
    task.save_pretrained(tmp_path / "first")
    loaded = load_task(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "again")
    assert loaded.image_size == read_image_size(tmp_path / "again") == 72
    assert loaded.settings == task.settings


def test_an_encoders_adapters_are_no_task(build: Any, tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    assert read_task(tmp_path) is None
    assert read_image_size(tmp_path) is None
    with pytest.raises(CheckpointError, match="holds an encoder's adapters and no task"):
        load_task(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "retrieval"}, "unreadable task"),
        ("retrieval", "unreadable task"),
        ({"name": "retrieval", "settings": 3}, "unreadable task"),
        ({"name": "juggling", "settings": {}}, "unknown task 'juggling'"),
        ({"name": "retrieval", "settings": {"width": 3}}, "cannot be built with.*width"),
        ({"name": "retrieval", "settings": {"by": "smell"}}, "by must be 'instance' or"),
        ({"name": "recognition", "settings": {}}, "cannot be built with.*classes"),
        ({"name": "retrieval", "settings": {"dim": 9, "grid": 3}}, "does not fit this model"),
    ],
)
def test_damaged_task_entries_are_refused(
    make: Callable[..., Any], tmp_path: Path, entry: Any, message: str
) -> None:
    make("retrieval").save_pretrained(tmp_path)
    change_description(tmp_path, lambda description: description.update(task=entry))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_task(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("size", ["72", 72.0, 0, -1, True, [72]])
def test_damaged_image_sizes_are_refused(
    make: Callable[..., Any], tmp_path: Path, size: Any
) -> None:
    make("retrieval").save_pretrained(tmp_path)
    change_description(tmp_path, lambda description: description["task"].update(image_size=size))
    for read in (read_image_size, load_task):
        with pytest.raises(CheckpointError, match="unreadable image size") as caught:
            read(tmp_path)
        assert str(tmp_path) in str(caught.value) and repr(size) in str(caught.value)


def test_checkpoints_from_before_image_sizes_still_load(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    make("retrieval").save_pretrained(tmp_path)
    change_description(tmp_path, lambda description: description["task"].pop("image_size"))
    assert read_image_size(tmp_path) is None
    assert load_task(tmp_path).image_size is None


def test_other_modules_with_settings_are_no_task(build: Any, tmp_path: Path) -> None:
    model = torch.nn.Sequential(build())
    model.settings = object()  # type: ignore[assignment]
    save_adapters(model, tmp_path)
    assert read_task(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("juggling", {}, "unknown task 'juggling'; choose one of recognition, retrieval"),
        ("recognition", {}, "recognition cannot be built with .*classes"),
        ("recognition", {"classes": ["cat"]}, r"at least two classes, got \['cat'\]"),
        ("retrieval", {"width": 3}, "retrieval cannot be built with .*width"),
        ("retrieval", {"loss": "hinge"}, "loss must be 'contrast' or 'triplet', got 'hinge'"),
        ("retrieval", {"by": "label"}, "by must be 'instance' or 'category', got 'label'"),
        ("query_segmentation", {"pooling": "max"}, "pooling must be one of .*got 'max'"),
        ("correspondence", {"loss": {"radius": 0}}, "radius must be at least 1 cell"),
        ("correspondence", {"loss": {"weight": 1}}, "cannot be built with .*weight"),
    ],
)
def test_wrong_settings_are_refused(
    build: Any, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(name, build(), **settings)


@pytest.mark.parametrize("changes", [{"aggregation": None}, {"aggregation__stride": (8, 16)}])
def test_encoders_without_one_map_are_refused(build: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected an encoder that aggregates to one map"):
        build_task("correspondence", build(untouched=True, **changes))


def test_settings_default_to_what_is_saved(build: Any) -> None:
    task = build_task("correspondence", build())
    assert task.settings == {"loss": {"contrastive": 1.0}}
    assert task.criterion.config.end_point == task.criterion.config.contrastive == 1.0
