"""The table of sketchfusion_tiny: its figures by hand, and one whole run on little data."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sketchfusion_plugins.data.openmoji import held_out_concepts
from sketchfusion_plugins.data.openmoji_drawings import Drawings
from sketchfusion_plugins.evaluation.report import Measured
from sketchfusion_plugins.features import Features, PixelFeatures

Load = Callable[[str], ModuleType]
FOLDER = Path(__file__).parents[2] / "examples" / "pretrain_tiny"


class MeanColour(Features):
    """What a cell's colour is, and nothing else."""

    channels = 3

    def forward(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 8)


class Embedded(MeanColour):
    """An embedding that knows every picture's number, written into its first pixel."""

    def embed(self, image: Tensor) -> Tensor:
        number = ((image[:, 0, 0, 0] + 1) * 127.5).round().long()
        return F.one_hot(number, 256).float()


def test_figure_is_a_mean_or_a_mean_of_ratios(load: Load) -> None:
    scores = load("figures").Scores
    assert scores.mean([0, 1, 1, 0.5]).figure == pytest.approx(0.625)
    # Two drawings, two classes: intersections and unions are summed before they are divided.
    iou = scores.ratio([[1, 0], [2, 3]], [[4, 0], [4, 4]])
    assert iou.figure == pytest.approx((3 / 8 + 3 / 4) / 2)
    weighted = iou.figures(np.array([[1.0, 0.0], [0.0, 2.0]]))
    assert weighted.tolist() == pytest.approx([1 / 4, (1 / 2 + 3 / 4) / 2])
    for original in (iou, scores.mean([0, 1], 0.25)):
        read = scores.from_json(json.loads(json.dumps(original.as_json())))
        assert read.figure == original.figure and read.chance == original.chance


def test_right_and_wrong_items_have_wilsons_interval(load: Load) -> None:
    figures = load("figures")
    items = [1] * 7 + [0] * 13
    cell = figures.Cell.of([figures.Scores.mean(items)])
    assert cell == figures.Cell(Measured.of(items), None)
    assert "±" not in str(cell)


def test_interval_of_shares_is_close_to_the_normal_one(load: Load) -> None:
    figures = load("figures")
    generator = np.random.default_rng(0)
    values = [generator.random(200) for _ in range(3)]
    cell = figures.Cell.of([figures.Scores.mean(own) for own in values])
    averaged = np.mean(values, 0)
    half = 1.96 * averaged.std() / math.sqrt(200)
    assert cell.measured.value == pytest.approx(averaged.mean())
    assert cell.measured.low == pytest.approx(averaged.mean() - half, abs=0.1 * half)
    assert cell.measured.high == pytest.approx(averaged.mean() + half, abs=0.1 * half)
    assert cell.spread == pytest.approx(np.std([own.mean() for own in values], ddof=1))
    assert str(cell).endswith(f"±{cell.spread:.3f}")


@pytest.mark.parametrize(
    ("shift", "noise", "verdict"),
    [
        (0.02, 0.0, "established"),
        (-0.02, 0.0, "contradicted"),
        (0.0, 0.1, "not established"),
    ],
)
def test_verdict_is_of_paired_differences(
    shift: float, noise: float, verdict: str, load: Load
) -> None:
    figures = load("figures")
    generator = np.random.default_rng(1)
    other = generator.random(60)
    own = other + shift + noise * generator.standard_normal(60)
    compared = figures.Comparison.of([figures.Scores.mean(own)], [figures.Scores.mean(other)])
    assert compared.verdict == verdict
    assert compared.difference == pytest.approx(own.mean() - other.mean())
    # Apart from each other, two such rows would not differ.
    alone = figures.Cell.of([figures.Scores.mean(own)]).measured
    assert alone.low < other.mean() < alone.high


def test_seeds_above_the_other_row_are_counted(load: Load) -> None:
    figures = load("figures")
    mean = figures.Scores.mean
    better = [mean([0.1, 0.2]), mean([0.5, 0.9]), mean([0.6, 0.9])]
    compared = figures.Comparison.of(better, [mean([0.4, 0.3]), mean([0.5, 0.2])])
    assert compared.seeds == (2, 3)


def test_rows_of_other_items_are_not_compared(load: Load) -> None:
    figures = load("figures")
    with pytest.raises(ValueError, match="same items"):
        figures.Comparison.of([figures.Scores.mean([0, 1])], [figures.Scores.mean([0, 1, 1])])


def test_sheets_leave_out_what_was_not_measured(load: Load) -> None:
    figures = load("figures")
    rows = {
        "a": {"x": [figures.Scores.mean([1, 1, 0], 0.125)]},
        "b": {"x": [figures.Scores.mean([0, 0, 0])], "y": [figures.Scores.mean([1, 0, 0])]},
        "c": {},
    }
    sheet = figures.figures_sheet("task", ["x", "y", "z"], rows)
    assert sheet.heads == ("task", "x (n 3, chance 0.125)", "y (n 3)")
    assert [row[0] for row in sheet.rows] == ["a", "b"] and sheet.rows[0][2] == ""
    assert sheet.markdown().count("\n| ") == 2 + len(sheet.rows)
    ordering = figures.ordering_sheet("ordering", [("a", "b"), ("a", "c")], ["x", "y"], rows)
    assert ordering.heads == ("ordering", "x")
    assert [row[0] for row in ordering.rows] == ["a > b"]


@pytest.mark.parametrize("width", [5, 60])
def test_discriminant_equals_scikit_learns(width: int, load: Load) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    probes = load("probes")
    generator = torch.Generator().manual_seed(0)
    fit, test = (torch.randn(n, width, generator=generator) for n in (42, 7))
    labels = torch.arange(42) % 3
    found = probes.discriminant(fit, labels, test, 4, (0.2, 0.7))
    for shrinkage, scores in zip((0.2, 0.7), found, strict=True):
        oracle = LinearDiscriminantAnalysis("lsqr", shrinkage=shrinkage, priors=[1 / 3] * 3)
        oracle.fit(fit.double().numpy(), labels.numpy())
        expected = oracle.decision_function(test.double().numpy())
        expected = expected - expected.mean(1, keepdims=True)
        own = scores[:, :3] - scores[:, :3].mean(1, keepdim=True)
        np.testing.assert_allclose(own.numpy(), expected, atol=1e-3)
        assert bool((scores[:, 3] == -torch.inf).all())


def test_probes_find_separable_classes(load: Load) -> None:
    probes = load("probes")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=generator)
    labels = torch.arange(200) % 4
    scale = torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0, 1.0])
    items = centres[labels] + 0.05 * torch.randn(200, 6, generator=generator)
    scores = probes.discriminant_scores(items[:100], labels[:100], items[100:], 4)
    assert torch.equal(scores.argmax(1), labels[100:])
    items = items * scale + 5
    probe = probes.LinearProbe(items[:100], labels[:100], 4)
    assert torch.equal(probe(items[100:]).argmax(1), labels[100:])
    maps = items[:12].T.reshape(1, 6, 3, 4)
    torch.testing.assert_close(
        probe.maps(maps)[0].flatten(1).T, probe(items[:12]), rtol=1e-3, atol=1e-3
    )


def test_probe_among_allowed_classes_ignores_the_others(load: Load) -> None:
    probes = load("probes")
    # Classes 0 and 2 look alike, but are never to be told apart from each other.
    labels = torch.tensor([0, 1, 2, 3]).repeat(25)
    items = F.one_hot(labels % 2, 2).float()
    group = torch.tensor([0, 0, 1, 1])
    allowed = group[labels][:, None] == group
    logits = probes.LinearProbe(items, labels, 4, allowed)(items).masked_fill(~allowed, -math.inf)
    assert torch.equal(logits.argmax(1), labels)
    assert float(logits.softmax(1).amax(1).min()) > 0.95


@pytest.mark.parametrize(("count", "held"), [(3, 1), (8, 2), (17, 5)])
def test_last_drawings_of_every_class_are_held_out(count: int, held: int, load: Load) -> None:
    labels = torch.tensor([0, 1]).repeat(count)
    found = load("judged_sketches").last_of_each(labels)
    assert found.tolist() == [False] * (2 * (count - held)) + [True] * (2 * held)


def test_what_a_picture_covers_includes_what_it_encloses(load: Load) -> None:
    picture = np.full((1, 20, 20, 3), 255, np.uint8)
    picture[0, 4:16, 4:16] = 10
    picture[0, 8:12, 8:12] = 255
    expected = np.zeros((20, 20), bool)
    expected[4:16, 4:16] = True
    assert np.array_equal(load("grounds").solid(picture)[0], expected)


def test_guessing_a_point_hits_the_disc_around_it(load: Load) -> None:
    shares = load("measures")._guessed(torch.tensor([[64.0, 64.0]]))
    expected = [math.pi * (alpha / 100 * 128) ** 2 / 128**2 for alpha in (5, 10)]
    assert shares.tolist() == pytest.approx(expected, rel=0.05)
    corner = load("measures")._guessed(torch.tensor([[0.0, 0.0]]))
    assert corner.tolist() == pytest.approx([share / 4 for share in expected], rel=0.1)


def _judged(load: Load, features: Features, **data: object) -> object:
    return load("judged_model").JudgedModel(features, SimpleNamespace(**data))


def test_search_on_a_canvas_by_colour(load: Load) -> None:
    judged = load("judged_data")
    colours = torch.tensor([[220, 30, 30], [30, 180, 30], [40, 40, 230], [230, 200, 20]])
    canvas = torch.full((3, 256, 256), 255, dtype=torch.uint8)
    masks = torch.zeros(4, 256, 256, dtype=torch.bool)
    for place, colour in enumerate(colours):
        rows, columns = (slice(128 * n + 32, 128 * n + 96) for n in divmod(place, 2))
        canvas[:, rows, columns] = colour[:, None, None].to(torch.uint8)
        masks[place, rows, columns] = True
    drawings = torch.full((4, 3, 128, 128), 255, dtype=torch.uint8)
    drawings[..., 40:90, 40:90] = colours[:, :, None, None].to(torch.uint8)
    scenes = judged.Scenes(canvas.expand(4, -1, -1, -1), masks, torch.arange(4))
    assert scenes.quadrants.tolist() == [0, 1, 2, 3]
    model = _judged(
        load,
        MeanColour(),
        scenes=(scenes, scenes),
        queries=drawings,
        seen_lines=drawings,
        seen_pictures=drawings,
    )
    columns = load("segmenting").localisation(model)
    assert columns["canvas, localisation"].figure == 1.0
    assert columns["canvas, foreground IoU"].figure > 0.6
    assert columns["canvas, foreground IoU"].chance == pytest.approx(64 * 64 / 256**2)


def test_retrieval_uses_the_embedding_and_averages_warps(load: Load) -> None:
    warps = load("judged_data").WARPS

    def numbered(numbers: list[int]) -> Tensor:
        pixels = torch.full((len(numbers), 3, 128, 128), 255, dtype=torch.uint8)
        pixels[:, 0, 0, 0] = torch.tensor(numbers, dtype=torch.uint8)
        return pixels

    # Concept 0 has no picture in the gallery; concept 3 looks like concept 2 in the first warp.
    queries = numbered([0, 1, 2, 2] + [0, 1, 2, 3] * (warps - 1))
    gallery = load("judged_sketches").Labelled(numbered([1, 2, 3]), torch.tensor([1, 2, 3]))
    model = _judged(
        load,
        Embedded(),
        queries=queries,
        seen_lines=numbered([9, 10]),
        seen_pictures=numbered([11]),
        galleries={"Noto": gallery},
        drawings=(None, range(4)),
    )
    columns = load("measures").retrieval(model)
    found = columns["line -> Noto Acc@1"]
    assert found.top[:, 0].tolist() == pytest.approx([1, 1, (warps - 1) / warps])
    assert found.chance == pytest.approx(1 / 3)


def test_points_of_the_same_picture_are_found(load: Load) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 128, 128, generator=generator) * 2 - 1
    points = torch.tensor([[20.0, 36.0], [100.0, 60.0], [5.0, 5.0]])
    pair = {
        "source": image,
        "target": image,
        "source_points": points,
        "target_points": points,
        "visible": torch.tensor([True, True, False]),
    }
    # The mean colour: centred, unlike cells are orthogonal.
    pixels = torch.full((2, 3, 128, 128), 127, dtype=torch.uint8)
    model = _judged(
        load, PixelFeatures(), correspondence=[pair] * 3, seen_lines=pixels, seen_pictures=pixels
    )
    columns = load("measures").correspondence(model)
    assert [columns[name].figure for name in ("PCK@5", "PCK@10")] == [1.0, 1.0]
    assert len(columns["PCK@5"].top) == 3


@pytest.fixture
def folders(
    tmp_path: Path,
    load: Load,
    drawings: Drawings,
    work: Path,
    write_strokes: Callable[[Path, str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Path]:
    """A work folder of few pictures, sketches of two classes, and Fluent's package."""

    def drawn_before(size: int, limit: int | None = None) -> Drawings:
        assert (size, limit) == (128, len(drawings))
        return drawings

    monkeypatch.setattr(load("judged_data"), "load_drawings", drawn_before)
    out = tmp_path / "out"
    sketches, spg = tmp_path / "quickdraw", tmp_path / "spg"
    write_strokes(sketches, "quickdraw_strokes.npz", 24)
    with (sketches / "quickdraw.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["index", "class", "recognized", "key_id", "strokes"])
        lines.writerows([i, ("cat", "dog")[i // 12], 1, 100 + i, 2] for i in range(24))
    write_strokes(spg, "spg_strokes.npz", 8)
    with (spg / "spg.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["index", "class", "split"])
        lines.writerows(
            [i, ("cat", "dog")[i % 2], ("train", "valid")[i // 2 % 2]] for i in range(8)
        )
    (spg / "parts.json").write_text(json.dumps({"cat": ["ear", "tail"], "dog": ["ear", "leg"]}))

    package = out / "packages" / "fluent-emoji"
    package.mkdir(parents=True)
    body = '<circle cx="16" cy="16" r="9" fill="#c30"/>'
    icons = {concept.name.replace(" ", "-"): {"body": body} for concept in drawings.concepts}
    (package / "icons.json").write_text(json.dumps({"height": 32, "icons": icons}))
    return {"work": work, "quickdraw": sketches, "spg": spg, "out": out}


def test_whole_table(
    folders: dict[str, Path],
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate = load("evaluate")
    work, out = folders["work"], folders["out"]
    weights = work / "fusion" / "fused-1" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    built = []

    def load_trained(folder: Path) -> Features:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} holds no trained model; run fusion.py first.")
        built.append(folder.name)
        return MeanColour()

    monkeypatch.setitem(
        sys.modules,
        "fusion_models",
        SimpleNamespace(load_trained=load_trained, build_untrained=None),
    )
    given = [str(part) for name in folders for part in (f"--{name}", folders[name])]
    rows = ["--rows", "HOG, 4x4", "HOG, 10-NN", "fused", "--seeds", "0", "1", "--limit", "12"]

    monkeypatch.setattr(load("probes"), "STEPS", 5)
    evaluate.main([*given, *rows])
    assert {path.name for path in out.glob("*.json")} == {
        "hog-4x4-0.json",
        "hog-10-nn-0.json",
        "fused-1.json",
    }
    assert built == ["fused-1"]
    said = capsys.readouterr().out
    assert "fused, seed 0, is left out" in said and "run fusion.py first" in said
    record = json.loads((out / "hog-4x4-0.json").read_text())
    assert set(record["groups"]) == {
        "retrieval",
        "recognition",
        "correspondence",
        "segmentation",
        "spectrum",
    }
    columns = [name for group in record["groups"].values() for name in group]
    assert len(columns) == 15
    for group in record["groups"].values():
        for scores in group.values():
            figure = load("figures").Scores.from_json(scores).figure
            assert 0 <= figure <= 1
    table = (out / "table.md").read_text()
    assert all(f"\n| {name} |" in table for name in ("HOG, 4x4", "HOG, 10-NN", "fused"))
    assert "chance" in table and "(n " in table

    before = {path: path.read_bytes() for path in out.glob("*.json")}
    evaluate.main([*given, *rows])
    assert built == ["fused-1"]
    assert {path: path.read_bytes() for path in out.glob("*.json")} == before

    weights.write_bytes(b"second")
    evaluate.main(
        [*given, "--rows", "fused", "--seeds", "1", "--limit", "12", "--columns"] + ["spectrum"]
    )
    assert built == ["fused-1", "fused-1"]
    again = json.loads((out / "fused-1.json").read_text())
    assert set(again["groups"]) == {"spectrum"}

    # Other concepts, another table.
    left_out = work / "left_out.json"
    asked = [*given, "--rows", "HOG, 4x4", "--limit", "12", "--columns", "correspondence"]
    held = load("judged_data").JudgedData(*[Path()] * 4, limit=12).drawings[1]
    left_out.write_text(json.dumps({"hexcodes": [held.concepts[0].hexcode]}))
    evaluate.main([*asked, "--without", str(left_out)])
    table = (out / "table.md").read_text()
    assert f"(n {len(held) - 1}" in table and "| fused |" not in table
    fewer = json.loads((out / "hog-4x4-0.json").read_text())["groups"]["correspondence"]["PCK@5"]
    scores = record["groups"]["correspondence"]["PCK@5"]
    assert fewer["top"] == scores["top"][1:]


def test_the_concepts_seen_by_another_name_are_held_out(load: Load) -> None:
    listed = json.loads((FOLDER / "seen_by_another_name.json").read_text())["hexcodes"]
    assert len(set(listed)) == len(listed) == 25
    assert set(listed) <= held_out_concepts()


def test_enlarged_rows_see_larger_images(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load("table_rows")
    seen: list[Tensor] = []

    class Watching(MeanColour):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return super().forward(image)

        def embed(self, image: Tensor) -> Tensor:
            return self(image).flatten(1)

    monkeypatch.setitem(rows.PLAIN, "HOG, 4x4", Watching)
    features = rows.row_features("HOG, 4x4, 192 px", 0, Path())
    image = torch.rand(2, 3, 128, 128)
    for method in (features, features.describe, features.embed):
        method(image)
        expected = F.interpolate(image, (192, 192), mode="bilinear")
        torch.testing.assert_close(seen.pop(), expected)
    enlarged = rows.Enlarged(MeanColour(), 1.5)
    assert not hasattr(enlarged, "embed")
    assert rows.fingerprint("HOG, 4x4, 192 px", 0, Path()) == ""
    shipped = rows.fingerprint("fused, as shipped", 0, Path())
    assert rows.fingerprint("fused, as shipped, 192 px", 0, Path()) == shipped


def test_judged_concepts_are_held_out_and_of_one_family_each(
    folders: dict[str, Path], load: Load
) -> None:
    data = load("judged_data").JudgedData(
        folders["work"],
        folders["quickdraw"],
        folders["spg"],
        folders["out"] / "packages",
        limit=12,
    )
    seen, held = data.drawings
    hidden = held_out_concepts()
    assert not hidden & {concept.hexcode for concept in seen.concepts}
    assert hidden >= {concept.hexcode for concept in held.concepts}
    assert len(set(held.family)) == len(held) and not set(held.family) & set(seen.family)
    assert len(data.queries) == load("judged_data").WARPS * len(held)
    warped = data.queries.unflatten(0, (-1, len(held)))
    assert not torch.equal(warped[0], warped[1])
    fitted, judged = data.scenes
    sizes = [
        max(int(np.ptp(axis)) + 1 for axis in mask.nonzero().unbind(1)) for mask in judged.masks
    ]
    assert min(sizes) >= 64
    assert fitted.pixels.shape[1:] == judged.pixels.shape[1:] == (3, 256, 256)
    assert int(data.part_masks[1].max()) < len(load("judged_data").PARTS)


def test_limit_that_leaves_no_class_says_so(load: Load) -> None:
    data = load("judged_data").JudgedData(*[Path()] * 4, limit=1)
    concepts = [SimpleNamespace(subgroup=name) for name in "ab"]
    sides = [SimpleNamespace(concepts=[c], categories=(c.subgroup,)) for c in concepts]
    data.drawings = tuple(sides)
    with pytest.raises(ValueError, match="raise --limit"):
        _ = data.subgroups
