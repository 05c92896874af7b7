"""The pretraining of sketchfusion_tiny, from pictures to features, in seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.data.openmoji import Concept
from sketchfusion_plugins.tasks.load import load_task

Load = Callable[[str], ModuleType]


@pytest.fixture
def work(tmp_path: Path, load: Load) -> Path:
    """Twelve pictures to train on, four held out: discs and squares in several colours."""
    data = load("data")
    rows, columns = np.mgrid[:128, :128]
    shapes = {
        "disc": (rows - 64) ** 2 + (columns - 64) ** 2 < 1600,
        "square": (abs(rows - 64) < 40) & (abs(columns - 64) < 40),
    }
    for source in ("noto", "twemoji"):
        pictures, labels = [], []
        for number in range(8):
            shape = ("disc", "square")[number % 2]
            picture = np.full((128, 128, 3), 255, np.uint8)
            picture[shapes[shape]] = (40 * number % 256, 90, 200 if source == "noto" else 30)
            pictures.append(picture)
            labels.append(data.Row(source, f"{shape} {number}", ("toy",), f"C{number}", number > 5))
        data.save_shard(tmp_path / "pictures" / f"{source}-000.safetensors", pictures, labels)
    (tmp_path / "sources.json").write_text("{}")
    return tmp_path


def test_whole_chain(work: Path, load: Load) -> None:
    for stage in ("vae", "clip", "unet"):
        load(stage).main(["--work", str(work), "--steps", "2", "--batch", "4"])
    size = load("export").export(work, work / "out")
    assert 20e6 < size <= 25e6
    assert not list((work / "out").rglob("*.bin"))

    config = preset("tiny").replace(
        weights="pretrained",
        diffusion__source=str(work / "out" / "diffusion"),
        semantic__source=str(work / "out" / "semantic"),
    )
    encoder = SketchFusionEncoder(config).eval()
    latents = encoder.diffusion.encode(load("data").load_pictures(work)[0].pixels / 127.5 - 1, 0)
    assert latents.std().item() == pytest.approx(1.0, abs=0.1)
    image = torch.rand(1, 3, 70, 131) * 2 - 1
    with torch.no_grad():
        levels = encoder.forward_levels(image)
        features = encoder(image)
    assert features.shape == (1, 192, 9, 17)
    assert [level.shape[1] for level in levels.maps] == [96, 144, 144]
    assert features.isfinite().all() and features.std() > 0
    # The weights are the trained ones, not fresh ones.
    trained = torch.load(work / "clip.pt", weights_only=True)["model"]
    kept = encoder.semantic.model.state_dict()
    name = "blocks.0.attn.qkv.weight"
    torch.testing.assert_close(kept[name], trained[f"clip.image.{name}"], atol=1e-3, rtol=1e-3)

    # What is fused on them ships twice, with its embedding head and without it.
    models = load("fusion_models")
    about = {
        **{"kind": "fused", "seed": 0, "changes": {}, "subgroups": 3, "sketches": 4},
        **{"foundations": str(work / "out"), "work": str(work)},
    }
    fused = models.build(
        "fused", models.FrozenMaps(encoder), work, foundations=work / "out", changes={}
    )
    for parameter in fused.encoder.injector.parameters():
        nn.init.normal_(parameter, std=0.02)
    model = models.GeneralModel(fused, 3, 4).eval()
    models.save(model, work / "fusion", about)
    assert size < load("export").export_fusion(work / "fusion", work / "out") <= 25e6
    places = {
        "diffusion__source": config.diffusion.source,
        "semantic__source": config.semantic.source,
    }
    task = load_task(work / "out" / "retrieval", **places)
    alone = SketchFusionEncoder.from_pretrained(work / "out" / "adapters", **places).eval()
    assert task.image_size == 128
    with torch.no_grad():
        torch.testing.assert_close(alone(image), fused(image), atol=2e-2, rtol=2e-2)
        embedding = model.head(fused(image))
        torch.testing.assert_close(task(image), embedding, atol=5e-3, rtol=0)


def _regression(training: ModuleType, work: Path, steps: int, stop: int | None = None) -> nn.Module:
    """Fit a line; ``stop`` breaks off inside that step, after a checkpoint of the step before."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def step(generator: torch.Generator, spent: float) -> dict[str, torch.Tensor]:
        if stop is not None and len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(1)
        x = torch.randn(16, 3, generator=generator)
        return {"loss": F.mse_loss(model(x), x.sum(1, keepdim=True))}

    seen: list[int] = []
    budget = training.Budget(steps=steps)
    training.train("line", work, {"model": model}, step, dict, budget, 0.1, ema_decay=0.5)
    return model


def test_killed_run_ends_like_an_undisturbed_one(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = load("training")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    whole = _regression(training, tmp_path / "a", 12)
    with pytest.raises(KeyboardInterrupt):
        _regression(training, tmp_path / "b", 12, stop=5)
    resumed = _regression(training, tmp_path / "b", 12)
    for expected, got in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, got)
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "line.jsonl").open()]
    assert steps == sorted(steps) and steps[-1] == 12


def test_run_that_goes_on_has_the_frozen_parts_it_is_given(tmp_path: Path, load: Load) -> None:
    training = load("training")

    def run(frozen: float, steps: int) -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        nn.init.constant_(model[0].requires_grad_(False).weight, frozen)

        def step(generator: torch.Generator, spent: float) -> dict[str, Tensor]:
            x = torch.randn(16, 3, generator=generator)
            return {"loss": F.mse_loss(model(x), x.sum(1, keepdim=True))}

        arguments = ({"model": model}, step, dict, training.Budget(steps=steps), 0.1)
        training.train("line", tmp_path, *arguments, frozen=("model.0.",))
        return model

    first = run(frozen=1.0, steps=3)
    saved = torch.load(tmp_path / "line.pt", weights_only=True)["model"]
    assert set(saved) == {"model.1.weight", "model.1.bias"}
    # No step is left: what trained is the first run's, what is frozen is this run's.
    second = run(frozen=2.0, steps=3)
    assert torch.equal(second[1].weight, first[1].weight)
    assert torch.equal(second[0].weight, torch.full((3, 3), 2.0))


@pytest.mark.parametrize(("minutes", "steps"), [(None, None), (1.0, 5), (-1.0, None), (None, 0)])
def test_budget_is_one_positive_number(
    minutes: float | None, steps: int | None, load: Load
) -> None:
    with pytest.raises(ValueError, match="--minutes or --steps"):
        load("training").Budget(minutes, steps)


def test_random_affine_keeps_white_and_moves_each_image(load: Load) -> None:
    affine = load("training").random_affine
    generator = torch.Generator().manual_seed(0)
    white = torch.ones(2, 3, 33, 47)
    torch.testing.assert_close(affine(white, generator), white)
    image = torch.ones(2, 3, 64, 64)
    image[:, :, 20:30, 20:30] = -1
    moved = affine(image, generator)
    assert moved.shape == image.shape and not torch.equal(moved[0], moved[1])
    # A scale of 2 about the centre makes four times the ink.
    fixed = affine(image, generator, degrees=0, scale=(2.0, 2.0), shift=0.0)
    assert (1 - fixed).sum() == pytest.approx(4 * (1 - image).sum().item(), rel=0.05)


def test_soft_cross_entropy_by_hand(load: Load) -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    positives = torch.tensor([[True, False], [True, True]])
    expected = (-math.log(1 / 4) + math.log(2)) / 2
    got = load("clip").soft_cross_entropy(logits, positives)
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_contrast_equals_cross_entropy_without_twins(load: Load) -> None:
    image, text = F.normalize(torch.randn(2, 5, 8), dim=-1)
    losses = load("clip").contrastive_losses(image, text, torch.arange(5), torch.tensor(7.0))
    logits = 7 * image @ text.T
    expected = (
        F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))
    ) / 2
    torch.testing.assert_close(losses["captions"], expected)
    assert losses["artists"] == 0


def test_batches_hold_pairs_across_artists(work: Path, load: Load) -> None:
    pictures, _ = load("data").load_pictures(work)
    chosen = load("clip").Batches(pictures)(8, np.random.default_rng(0))
    concepts = [pictures.rows[i].concept for i in chosen]
    assert len(set(chosen)) == 8
    assert sum(concepts.count(name) == 2 for name in set(concepts)) >= 2


@pytest.mark.parametrize(
    ("name", "leaks"),
    [
        ("hot dog", True),
        ("Dogs of war", True),
        ("dogma", False),
        ("red apple", False),
        ("apples, green", True),
    ],
)
def test_names_that_hold_a_held_out_name(name: str, leaks: bool, load: Load) -> None:
    assert load("data").Leaks(["dog", "green apple"])(name) is leaks


def test_held_out_concepts_go_by_all_their_names(load: Load, tmp_path: Path) -> None:
    data = load("data")
    concepts = [
        Concept(code, name, "g", "s", tmp_path)
        for code, name in (("2702", "black scissors"), ("1F369", "doughnut"))
    ]
    folder = tmp_path / "packages" / "noto"
    folder.mkdir(parents=True)
    named = {"2702": "scissors", "1f369": "doughnut", "1f436": "dog-face"}
    (folder / "chars.json").write_text(json.dumps(named))
    names = data.names_of(concepts, tmp_path)
    assert set(names) == {"black scissors", "scissors", "doughnut", "donut"}
    leaks = data.Leaks(names)
    assert leaks("scissors one") and leaks("donut") and not leaks("dog face")


def test_held_out_families_are_whole(load: Load) -> None:
    from sketchfusion_plugins.data.openmoji import Concept

    concepts = [Concept(f"{i:04X}", f"n{i}", "g", f"s{i % 3}", Path()) for i in range(120)]
    family = [f"f{i // 2}" for i in range(100)] + ["large"] * 20
    chosen = set(load("split").choose(concepts, family))
    sides: dict[str, set[bool]] = {}
    for concept, name in zip(concepts, family, strict=True):
        sides.setdefault(name, set()).add(concept.hexcode in chosen)
    assert all(len(side) == 1 for side in sides.values())
    assert sides["large"] == {False}
    assert 0.15 < len(chosen) / 100 < 0.3


def test_held_out_list_is_of_this_openmoji() -> None:
    from sketchfusion_plugins.data.openmoji import held_out_concepts, load_concepts

    known = {concept.hexcode for concept in load_concepts()}
    assert held_out_concepts() < known
    assert 0.18 < len(held_out_concepts()) / len(known) < 0.22


def test_missing_stage_names_what_to_run(tmp_path: Path, load: Load) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.py --work"):
        load("vae").main(["--work", str(tmp_path), "--steps", "1"])
    with pytest.raises(FileNotFoundError, match="train that stage first"):
        load("export").export(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def tiny_encoder() -> SketchFusionEncoder:
    return SketchFusionEncoder(preset("tiny").replace(weights="random")).eval()


def test_controls_train_nothing_but_their_bottlenecks(
    tiny_encoder: SketchFusionEncoder, load: Load
) -> None:
    models = load("fusion_models")
    frozen = models.FrozenMaps(tiny_encoder)
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    levels = tiny_encoder.forward_levels(image, fuse=False).maps
    tokens = tiny_encoder.forward_tokens(image)
    for kind, maps in (
        ("clip", [tokens]),
        ("sd", list(levels)),
        ("concatenated", [*levels, tokens]),
    ):
        features = models.build(kind, frozen, Path())
        expected = features.aggregator(maps, (8, 8))
        torch.testing.assert_close(features(image), expected)
        features(image).sum().backward()
        trained = {n for n, p in features.named_parameters() if p.grad is not None}
        assert trained and all(name.startswith("aggregator.") for name in trained)
        kept = models.trained_state(models.GeneralModel(features, 5, 7))
        assert not any("encoder" in name for name in kept)
        assert {"features." + name for name in trained} <= set(kept)
    with pytest.raises(ValueError, match="choose one of clip, sd"):
        models.build("cilp", frozen, Path())


def test_levels_alone(tiny_encoder: SketchFusionEncoder, load: Load) -> None:
    models = load("fusion_models")
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    levels = tiny_encoder.forward_levels(image, fuse=False)
    assert levels.strides == (8, 16, 32)
    for level, stride in zip(levels.maps, levels.strides, strict=True):
        features = models.LevelFeatures(tiny_encoder, stride)
        maps = features(image)
        torch.testing.assert_close(maps, level / level.norm(dim=1, keepdim=True))
        assert features.channels == level.shape[1]
        assert features.cell_size(image, maps) == (stride, stride)
        assert f"SD, stride {stride}" in load("table_rows").UNTRAINED
    assert set(load("table_rows").UNTRAINED) == set(models.UNTRAINED)


def test_models_side_by_side_share_a_pass(tiny_encoder: SketchFusionEncoder, load: Load) -> None:
    frozen = load("fusion_models").FrozenMaps(tiny_encoder)
    image, other = torch.rand(2, 1, 3, 64, 64)
    first = frozen(image)
    assert frozen(other) is not first
    # Pairs and scenes take turns.
    assert frozen(image) is first


def test_random_foundations_are_calibrated(load: Load) -> None:
    encoder = SketchFusionEncoder(preset("tiny").replace(weights="random")).eval()
    images = torch.rand(16, 3, 64, 64) * 2 - 1
    load("foundations").calibrate(encoder, images)
    assert float(encoder.diffusion.encode(images, seed=0).std()) == pytest.approx(1.0, rel=1e-3)
    norms = [m for m in encoder.semantic.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    seen: list[Tensor] = []
    norms[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    encoder.forward_tokens(images)
    torch.testing.assert_close(norms[0].running_mean, seen[0].mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(norms[0].running_var, seen[0].var((0, 2, 3)), atol=1e-5, rtol=1e-3)
    assert not any(module.training for module in encoder.modules())


def test_contrast_by_hand(load: Load) -> None:
    contrast, logits = load("objectives").contrast, 2.0 * torch.eye(2)
    right = math.log(1 + math.exp(-2.0))
    assert float(contrast(logits, torch.eye(2))) == pytest.approx(right)
    # Both rows belong to the first column, none to the second, which does not count.
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    rows, column = (right + (right + 2.0)) / 2, (right + (right + 2.0)) / 2
    assert float(contrast(logits, first)) == pytest.approx((rows + column) / 2)
    assert float(contrast(logits, torch.zeros(2, 2))) == 0.0


def test_query_scores_by_hand(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    objectives = load("objectives")
    monkeypatch.setattr(objectives, "TOP_SHARE", 0.5)
    sketch = torch.ones(2, 3, 8, 16)
    sketch[:, :, 4, 2] = -1.0  # ink in the left one of two cells
    drawing = torch.tensor([[[3.0, 9.0], [0.0, 9.0]], [[-3.0, -9.0], [0.0, -9.0]]])[:, :, None]
    picture = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[-2.0, 0.0], [0.0, -2.0]]])[:, :, None]
    # Of two cells the more similar one counts: both drawings point along the first axis.
    scores = objectives.query_scores(sketch, drawing, picture)
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_mirrored_drawings_are_turned_about_the_same_angle(load: Load) -> None:
    from sketchfusion_plugins.data.strokes import Strokes

    strokes = Strokes.from_paths([[[0.0, 0.0], [10.0, 0.0]]])
    moved = load("pens").turned(strokes, np.random.default_rng(0), mirrored=True).points
    assert moved[1, 0] < 0 and abs(moved[1, 1]) <= abs(moved[1, 0]) * math.tan(math.radians(21))


def test_held_out_drawings_are_the_last_of_their_class(load: Load) -> None:
    class Sketches:
        labels = torch.tensor([0] * 20 + [1] * 6 + [0])

    fit = load("fusion_data").fitting_drawings(Sketches())
    assert fit == {0: list(range(16)), 1: [20, 21, 22, 23]}


def test_named_pairs_are_of_different_artists(load: Load) -> None:
    data = load("data")

    def pictures(*rows: tuple[str, str]) -> object:
        pixels = torch.arange(len(rows))[:, None, None, None].expand(-1, 3, 2, 2)
        return data.Pictures(pixels, tuple(data.Row(s, n, (), "", False) for s, n in rows))

    lines = pictures(("ink", "Sun"), ("pen", "sun"), ("ink", "dog"), ("ink", "cup"), ("ink", "hut"))
    coloured = pictures(("ink-color", "cup"), ("oil", "hut"), ("oil", "sun"), ("oil", "hot dog"))
    pairs = load("named_pairs").NamedPairs(lines, coloured, data.Leaks(["dog"]))
    # A dog leaks, and nobody else drew a cup.
    assert pairs.names == ["sun", "hut"]
    draw = np.random.default_rng(0)
    drawn = {(int(a[0, 0, 0]), int(b[0, 0, 0])) for a, b in (pairs("sun", draw) for _ in range(99))}
    # By number of either collection: the other line icon, or the coloured picture.
    assert drawn == {(0, 1), (0, 2), (1, 0), (1, 2)}
    assert [int(side[0, 0, 0]) for side in pairs("hut", draw)] == [4, 1]


def test_grounds_lie_behind_pictures(load: Load) -> None:
    grounds = load("grounds").on_grounds
    picture = torch.ones(4, 3, 32, 32)
    picture[:, :, 8:24, 8:24] = torch.tensor([-1.0, 0.0, 0.5])[:, None, None]
    picture[:, :, 12:20, 12:20] = 1.0  # white inside, which stays
    generator = torch.Generator().manual_seed(0)
    painted = grounds(picture, generator, share=1.0)
    assert torch.equal(painted[:, :, 9:23, 9:23], picture[:, :, 9:23, 9:23])
    assert (painted[:, :, 0] < 1).flatten(1).any(1).all()
    assert painted.min() >= -1 and painted.max() <= 1
    # Every picture has a ground of its own; with a share of 0 none has one.
    assert len({tuple(p[:, 0, 0].tolist()) for p in painted}) == 4
    torch.testing.assert_close(grounds(picture, generator, share=0.0), picture)
