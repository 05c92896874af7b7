"""The fusion stage from folders to a trained model, on few drawings and the bundled foundations."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from sketchfusion_plugins.data.openmoji import held_out_concepts
from sketchfusion_plugins.data.openmoji_drawings import Drawings
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS
from sketchfusion_plugins.tasks.load import build_task, load_task

Load = Callable[[str], ModuleType]
CLASSES, SKETCHES = 13, 6
FOUNDATIONS = BUNDLED_WEIGHTS["sketchfusion/tiny"].parent


@pytest.fixture
def folders(
    tmp_path: Path,
    load: Load,
    drawings: Drawings,
    work: Path,
    write_strokes: Callable[[Path, str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Path]:
    """Pictures by two artists, line icons by two, and scribbles."""
    data = load("data")
    monkeypatch.setattr(load("fusion_data"), "load_drawings", lambda size: drawings)
    for source in ("lucide", "tabler"):
        icons = [data.Row(source, f"icon{chr(97 + number)}", (), "", False) for number in range(10)]
        data.save_shard(
            work / "lines" / f"{source}-000.safetensors", list(drawings.line[:10]), icons
        )

    names = [f"thing {letter}" for letter in "abcdefghijklm"]
    quickdraw, spg = tmp_path / "quickdraw", tmp_path / "spg"
    write_strokes(quickdraw, "quickdraw_strokes.npz", CLASSES * SKETCHES)
    with (quickdraw / "quickdraw.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["index", "class", "recognized", "key_id", "strokes"])
        for index in range(CLASSES * SKETCHES):
            lines.writerow([index, names[index // SKETCHES], 1, 100 + index, 2])
    write_strokes(spg, "spg_strokes.npz", 24)
    with (spg / "spg.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["index", "class", "split"])
        lines.writerows([i, names[i // 4], ("train", "valid")[i % 4 > 2]] for i in range(24))
    (spg / "parts.json").write_text(json.dumps({name: ["one", "two"] for name in names[:6]}))
    return {"work": work, "quickdraw": quickdraw, "spg": spg}


def test_batches_are_reproducible_and_show_nothing_held_out(
    folders: dict[str, Path], load: Load
) -> None:
    data = load("fusion_data")
    batches = data.FusionBatches(*folders.values())
    assert not held_out_concepts() & {c.hexcode for c in batches.drawings.concepts}
    assert len(batches.strokes) == 12 and len(batches.classes) == CLASSES
    first, same, other = (batches(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    pairs = data.ALIGNED + data.ARTISTS + data.ICONS + data.SKETCHES + data.PARTS
    assert first.drawing.shape == first.picture.shape == (pairs, 3, 128, 128)
    assert first.scenes.shape == (data.SCENES, 3, 256, 256)
    assert first.scene_masks.shape == (data.SCENES, 256, 256)
    assert set(first.scene_masks.unique().tolist()) == {0, 1}
    for name in ("drawing", "picture", "scenes", "scene_masks", "concept"):
        assert torch.equal(getattr(first, name), getattr(same, name))
    assert not torch.equal(first.drawing, other.drawing)
    for images in (first.drawing, first.picture, first.scenes):
        assert images.min() >= -1 and images.max() <= 1
    # Only what has a class is classified, and parts of strokes are of the drawing's own class.
    emoji = data.ALIGNED + data.ARTISTS
    assert (first.subgroup[:emoji] >= 0).all() and (first.subgroup[emoji:] < 0).all()
    assert (first.sketch_class[emoji + data.ICONS :] >= 0).all()
    for labels in first.parts:
        assert (labels // 2 == labels[:, :1] // 2).all()


def test_a_trained_model_is_what_training_left(folders: dict[str, Path], load: Load) -> None:
    fusion, models = load("fusion"), load("fusion_models")
    given = [str(part) for name in folders for part in (f"--{name}", folders[name])]
    given += ["--foundations", str(FOUNDATIONS), "--kinds", "fused", "concatenated", "--seed", "3"]
    given += ["--name", "trial"]
    fusion.main([*given, "--steps", "1", "--weights", '{"parts": 0}'])
    folder = folders["work"] / "fusion"
    image = torch.rand(2, 3, 128, 128) * 2 - 1
    checkpoint = torch.load(folder / "seed-3-trial-fused-concatenated.pt", weights_only=True)
    for kind in ("fused", "concatenated"):
        trained = models.load_trained(folder / f"{kind}-trial-3")
        with torch.no_grad():
            embedding = trained.embed(image)
        assert embedding.shape == (2, models.DIM)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
        # What was saved is what is loaded, and the average that training kept.
        loaded = trained.state_dict()
        saved = load_file(folder / f"{kind}-trial-3" / "model.safetensors")
        kept = {name: value for name, value in saved.items() if name in loaded}
        assert any("aggregator" in name for name in kept) and any("head" in name for name in kept)
        assert all(torch.equal(loaded[name], value) for name, value in kept.items())
        projection = saved["head.projection.weight"]
        assert any(torch.equal(projection, average) for average in checkpoint["average"])
        about = json.loads((folder / f"{kind}-trial-3" / "about.json").read_text())
        assert (about["steps"], about["sketches"]) == (1, CLASSES)
    # What training has moved is saved, and the foundations are not.
    torch.manual_seed(3)
    loading = {"foundations": FOUNDATIONS, "changes": {}}
    frozen = models.FrozenMaps(load("foundations").load_foundations(**loading))
    torch.manual_seed(3)
    fresh = models.build("fused", frozen, folders["work"], **loading).state_dict()
    moved = {
        name.removeprefix("fused.model.features."): value
        for name, value in checkpoint["model"].items()
        if name.startswith("fused.model.features.")
    }
    assert moved and not any("unet" in name or "semantic." in name for name in moved)
    assert any(not torch.equal(value, fresh[name]) for name, value in moved.items())
    with pytest.raises(ValueError, match=r"no losses \['nothing'\]"):
        fusion.main([*given, "--steps", "1", "--weights", '{"nothing": 1}'])
    with pytest.raises(
        ValueError, match=r"trial-fused-concatenated\.pt is of a run with .*'parts'"
    ):
        fusion.main([*given, "--steps", "2", "--weights", '{"cells": 0}'])


def test_a_run_of_other_settings_is_no_row(
    folders: dict[str, Path], load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(part) for name in folders for part in (f"--{name}", folders[name])]
    for options in (["--validate"], ["--weights", '{"parts": 0}'], ["--learning-rate", "0.1"]):
        with pytest.raises(SystemExit):
            load("fusion").main([*given, *options])
        assert "--validate need a --name" in capsys.readouterr().err


def test_training_goes_on_from_a_checkpoint_of_retrieval(
    folders: dict[str, Path], load: Load, tmp_path: Path
) -> None:
    fusion, models = load("fusion"), load("fusion_models")
    given = [str(part) for name in folders for part in (f"--{name}", folders[name])]
    given += ["--foundations", str(FOUNDATIONS), "--steps", "1", "--learning-rate", "0"]
    begun = ["--begin", "sketchfusion/tiny-retrieval", "--name", "longer"]
    fusion.main([*given, *begun])
    trained = models.load_trained(folders["work"] / "fusion" / "fused-longer-0")
    image = torch.rand(2, 3, 128, 128) * 2 - 1
    shipped = load_task("sketchfusion/tiny-retrieval")
    with torch.no_grad():
        torch.testing.assert_close(trained.embed(image), shipped(image))
    for refused in ([*begun, "--kinds", "sd", "fused"], begun[:2]):
        with pytest.raises(SystemExit):
            fusion.main([*given, *refused])
    recognition = build_task("recognition", shipped.encoder, classes=("one", "two"))
    recognition.save_pretrained(tmp_path / "recognition")
    with pytest.raises(ValueError, match="of the task recognition; give one of retrieval"):
        fusion.main([*given, "--name", "other", "--begin", str(tmp_path / "recognition")])
