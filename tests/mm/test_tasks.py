"""Tasks trained by mmengine's Runner: every task, resuming, sharing out, averaging, refusing."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

pytest.importorskip("mmseg")

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from sketchfusion_plugins.adapter_file import CheckpointError
from sketchfusion_plugins.checkpoint import adapter_state
from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.data.task_data import TaskData
from sketchfusion_plugins.encoder import SketchFusionEncoder
from sketchfusion_plugins.evaluation.judge import Judge
from sketchfusion_plugins.evaluation.training_log import read_training_log
from sketchfusion_plugins.heads.embedding import ClassifierHead
from sketchfusion_plugins.tasks.load import build_task, load_task
from sketchfusion_plugins.tasks.recognition import Recognition

PATIENCE = 600  # seconds, so that nothing hangs; a busy machine may need minutes

SIZE = 64
CONCEPTS = 45
TASKS = ("recognition", "retrieval", "query_segmentation", "correspondence")
FOUNDATIONS = ("diffusion.", "semantic.")


class PowerCutError(Exception):
    """Stands for whatever ends a training early."""


@HOOKS.register_module(force=True)
class CutHook(Hook):  # type: ignore[misc]
    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == 3:
            raise PowerCutError


@HOOKS.register_module(force=True)
class LookHook(Hook):  # type: ignore[misc]
    runners: ClassVar[list[Any]] = []
    starts: ClassVar[list[int]] = []

    def before_train(self, runner: Any) -> None:
        self.runners.append(runner)
        self.starts.append(runner.iter)


@pytest.fixture(scope="module")
def data_of() -> Callable[[str], TaskData]:
    """A few OpenMoji concepts as data of a task."""
    loaded: dict[str, TaskData] = {}

    def load(task: str) -> TaskData:
        if task not in loaded:
            limit = 2 * CONCEPTS if task == "recognition" else CONCEPTS
            loaded[task] = load_task_data(task, "openmoji", SIZE, seed=0, limit=limit)
        return loaded[task]

    return load


@pytest.fixture(scope="module")
def changes(pipeline_folder: Path, clip_folder: Path) -> dict[str, Any]:
    """What makes sketchfusion_tiny smaller still."""
    return {
        "diffusion__source": str(pipeline_folder),
        "semantic__source": str(clip_folder),
        "semantic__kind": "clip",
        "semantic__final_norm": False,
        "aggregation__out_channels": 32,
        "aggregation__norm_groups": 8,
    }


@pytest.fixture(scope="module")
def config_of(changes: dict[str, Any]) -> Callable[..., Any]:
    """A task's shipped config, cut to a few iterations of four items."""
    from sketchfusion_plugins.mm.task_config import read_task_config

    def make(name: str, work: Path, iterations: int = 2, **options: Any) -> Any:
        config = read_task_config(
            name,
            {
                "encoder.changes": {**changes, "weights": "pretrained"},
                "data.size": SIZE,
                "train_dataloader.batch_size": 4,
                "train_cfg.max_iters": iterations,
                "default_hooks.checkpoint.interval": 2,
                "default_hooks.checkpoint.max_keep_ckpts": -1,
                "default_hooks.logger.interval": 1,
                "judge.progress": False,
                **{key.replace("__", "."): value for key, value in options.items()},
            },
        )
        config.work_dir = str(work)
        return config

    return make


@pytest.fixture(scope="module")
def train(
    config_of: Callable[..., Any], data_of: Callable[[str], TaskData]
) -> Callable[..., tuple[Any, Any]]:
    from sketchfusion_plugins.mm.train_task import train_task

    def run(name: str, work: Path, iterations: int = 2, **options: Any) -> tuple[Any, Any]:
        return train_task(config_of(name, work, iterations, **options), data_of(name))

    return run


@pytest.fixture(scope="module")
def trained(
    train: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Any, Path]]:
    """A task after four iterations, its measures and its work directory; to be read only."""
    done: dict[str, tuple[Any, Any, Path]] = {}

    def get(name: str) -> tuple[Any, Any, Path]:
        if name not in done:
            work = tmp_path_factory.mktemp(name)
            done[name] = (*train(name, work, 4), work)
        return done[name]

    return get


@pytest.fixture
def model_of(data_of: Callable[[str], TaskData], build: Any) -> Callable[..., Any]:
    """A `TaskModel` on the small folders."""
    from sketchfusion_plugins.mm.tasks import TaskModel

    def make(name: str, **options: Any) -> Any:
        torch.manual_seed(0)
        settings = {"classes": data_of(name).categories} if name == "recognition" else {}
        return TaskModel(build_task(name, build(**options), **settings))

    return make


def saved(work: Path, iteration: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(work / f"iter_{iteration}.pth", weights_only=False)
    return state


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_and_is_measured(
    name: str,
    trained: Callable[[str], Any],
    data_of: Callable[[str], TaskData],
) -> None:
    task, row, _ = trained(name)
    data = data_of(name)
    assert tuple(row) == data.measures
    assert all(0 <= m.low <= m.value <= m.high <= 1 for m in row.values())
    # What was trained moved, each part of it; foundations did not.
    config = task.encoder.config
    torch.manual_seed(0)
    settings = dict(task.settings)
    fresh = build_task(name, SketchFusionEncoder(config), **settings)
    before, after = dict(fresh.named_parameters()), dict(task.named_parameters())
    for key, parameter in after.items():
        frozen = key.startswith(("features.encoder.diffusion", "features.encoder.semantic"))
        assert parameter.requires_grad != frozen, key
        assert torch.equal(parameter, before[key]) == frozen, key
    assert task.training, "the judge leaves the task in the mode that it was in"


@pytest.mark.parametrize("name", TASKS)
def test_adapters_hold_the_measured_task(
    name: str, trained: Callable[[str], Any], data_of: Callable[[str], TaskData]
) -> None:
    task, row, work = trained(name)
    loaded = load_task(work / "adapters")
    assert loaded.image_size == SIZE
    assert_same(adapter_state(loaded), adapter_state(task))
    assert Judge(data_of(name), progress=False)(loaded) == row


@pytest.mark.parametrize("name", TASKS)
def test_checkpoints_hold_no_foundation(name: str, trained: Callable[[str], Any]) -> None:
    task, _, work = trained(name)
    state = saved(work, 4)["state_dict"]
    assert set(state) == {
        "foundation_fingerprint",
        *(f"task.{key}" for key in adapter_state(task)),
    }
    assert not any(part in key for key in state for part in FOUNDATIONS)
    # Weights and two moments of the optimiser.
    adapters = sum(t.numel() * t.element_size() for t in adapter_state(task).values())
    assert (work / "iter_4.pth").stat().st_size < 3 * adapters + 500_000


@pytest.mark.parametrize("name", TASKS)
def test_resumed_equals_uninterrupted(
    name: str, trained: Callable[[str], Any], train: Callable[..., Any], tmp_path: Path
) -> None:
    _, row, work = trained(name)

    hooks = [{"type": "SaveAdaptersHook"}, {"type": "CutHook"}]
    with pytest.raises(PowerCutError):
        train(name, tmp_path, 4, custom_hooks=hooks)
    assert not (tmp_path / "iter_4.pth").exists()
    LookHook.starts.clear()
    hooks[-1] = {"type": "LookHook"}
    task, resumed = train(name, tmp_path, 4, custom_hooks=hooks, resume=True)
    assert LookHook.starts == [2], "not from the start"
    assert_same(saved(tmp_path, 4)["state_dict"], saved(work, 4)["state_dict"])
    assert_same(adapter_state(task), adapter_state(load_task(work / "adapters")))
    assert resumed == row


def test_judging_on_the_way_changes_nothing(
    trained: Callable[[str], Any], train: Callable[..., Any], tmp_path: Path
) -> None:
    # Its photos and their places are drawn from the global generator, which judging leaves alone.
    _, row, work = trained("retrieval")
    _, judged_often = train("retrieval", tmp_path, 4, train_cfg__val_interval=1)
    assert judged_often == row
    assert_same(saved(tmp_path, 4)["state_dict"], saved(work, 4)["state_dict"])
    log = next(tmp_path.glob("*/vis_data/scalars.json")).read_text().splitlines()
    measured = [json.loads(line) for line in log if "Acc@1" in line]
    assert [line["step"] for line in measured] == [1, 2, 3, 4]
    assert measured[-1]["Acc@1"] == pytest.approx(row["Acc@1"].value)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", ["recognition", "query_segmentation"])
def test_the_log_ends_with_the_figures_of_what_is_saved(
    name: str,
    averaged: bool,
    train: Callable[..., Any],
    data_of: Callable[[str], TaskData],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged = []
    judge = Judge.__call__

    def count(self: Judge, model: Any) -> Any:
        judged.append(model)
        return judge(self, model)

    monkeypatch.setattr(Judge, "__call__", count)
    hooks = [{"type": "EMAHook", "momentum": 0.3}] if averaged else []
    task, row = train(name, tmp_path, 4, custom_hooks=hooks, train_cfg__val_interval=3)
    assert len(judged) == 2 and judged[1] is task
    log = next(tmp_path.glob("*/vis_data/scalars.json")).read_text().splitlines()
    last = json.loads(log[-1])
    assert last["step"] == 4
    assert {key: last[key] for key in row} == pytest.approx({k: m.value for k, m in row.items()})
    assert judge(Judge(data_of(name), progress=False), load_task(tmp_path / "adapters")) == row


@pytest.mark.parametrize(("options", "interval"), [({}, 2), ({"train_cfg__val_interval": 1}, 1)])
def test_the_end_alone_is_judged_unless_asked(
    train: Callable[..., Any], tmp_path: Path, options: dict[str, int], interval: int
) -> None:
    LookHook.runners.clear()
    train("retrieval", tmp_path, 2, custom_hooks=[{"type": "LookHook"}], **options)
    assert LookHook.runners.pop().train_loop.val_interval == interval


@pytest.mark.parametrize(
    ("name", "reason"),
    [("retrieval", "learns nothing"), ("recognition", "normalises by the batch")],
)
def test_batches_of_one_are_refused(
    name: str, reason: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    message = rf"{reason}.* from batches of 1\. Set a batch size of at least 2"
    with pytest.raises(ValueError, match=message):
        train(name, tmp_path, train_dataloader__batch_size=1)
    assert not list(tmp_path.iterdir())


def test_pairs_of_a_class_are_not_told_apart_by_instance(
    config_of: Callable[..., Any], data_of: Callable[[str], TaskData], tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.train_task import train_task

    data = data_of("retrieval")
    pairs: Any = copy.copy(data.train)
    pairs.by = "label"
    data = replace(data, train=pairs, label="label")
    with pytest.raises(ValueError, match=r"'instance', but .* of their class\. Leave it out"):
        train_task(config_of("retrieval", tmp_path, task__settings={"by": "instance"}), data)


def test_resuming_what_is_done_measures_it(
    trained: Callable[[str], Any], train: Callable[..., Any], tmp_path: Path
) -> None:
    task, row = train("retrieval", tmp_path, 2)
    again, measured = train("retrieval", tmp_path, 2, resume=True)
    assert measured == row
    assert_same(adapter_state(again), adapter_state(task))


def test_retrieval_trains_for_what_its_data_compare(
    config_of: Callable[..., Any], data_of: Callable[[str], TaskData], tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.train_task import train_task

    data = data_of("retrieval")
    config = config_of("retrieval", tmp_path / "own", 1)
    task, _ = train_task(config, replace(data, label="label"))
    assert task.settings["by"] == "category"
    config = config_of("retrieval", tmp_path / "asked", 1, task__settings__by="instance")
    task, _ = train_task(config, replace(data, label="label"))
    assert task.settings["by"] == "instance"


def test_another_seed_trains_another_task(
    trained: Callable[[str], Any], train: Callable[..., Any], tmp_path: Path
) -> None:
    task, _, _ = trained("retrieval")
    other, _ = train("retrieval", tmp_path, 2, randomness__seed=1)
    assert not torch.equal(task.head.projection.weight, other.head.projection.weight)


@pytest.mark.parametrize("name", TASKS)
def test_loss_falls_on_a_few_fixed_samples(
    name: str, model_of: Callable[..., Any], data_of: Callable[[str], TaskData]
) -> None:
    from mmengine.optim import build_optim_wrapper

    data = data_of(name).train
    torch.manual_seed(0)
    batch = default_collate([data[index] for index in range(8)])
    model = model_of(name, aggregation__out_channels=32).train()
    optimiser = {"type": "AdamW", "lr": 5e-3}
    wrapper = build_optim_wrapper(
        model,
        {
            "constructor": "AdapterOptimWrapperConstructor",
            "optimizer": optimiser,
            "clip_grad": {"max_norm": 1.0},
        },
    )
    losses = [model.train_step(batch, wrapper)["loss"].item() for _ in range(20)]
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert last < 0.8 * first, losses


# Two pairs, one in each process, are enough for retrieval to tell them apart.
@pytest.mark.parametrize(("name", "batch_size"), [("query_segmentation", 2), ("retrieval", 1)])
def test_two_processes_train_on_their_shares_and_save_once(
    name: str, batch_size: int, config_of: Callable[..., Any], tmp_path: Path
) -> None:
    config = config_of(
        name,
        tmp_path / "work",
        2,
        data__limit=40,
        train_dataloader__batch_size=batch_size,
        custom_hooks=[{"type": "SaveAdaptersHook"}, {"type": "Watch"}],
    )
    config.launcher = "pytorch"
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    script = str(Path(__file__).with_name("train_task_process.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", script, str(tmp_path / "config.json"), str(tmp_path)]
    # Also on a machine with GPUs.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for rank in ranks:
        assert rank["type"] == "MMDistributedDataParallel" and not rank["find_unused"]
        assert len(rank["seen"]) == 2 * batch_size
    assert not set(ranks[0]["seen"]) & set(ranks[1]["seen"])
    parameters = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    assert_same(*parameters)
    assert ranks[0]["row"] == ranks[1]["row"]
    assert len(list((tmp_path / "work").glob("*.pth"))) == 1
    assert len(list((tmp_path / "work").rglob("adapters.safetensors"))) == 1
    assert len(list((tmp_path / "work").glob("*/*.log"))) == 1
    loaded = dict(load_task(tmp_path / "work" / "adapters").named_parameters())
    assert all(torch.equal(loaded[key], value) for key, value in parameters[0].items())


def test_what_fails_the_first_process_fails_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from sketchfusion_plugins.mm import tasks

    with pytest.raises(ZeroDivisionError):
        tasks.first_alone(lambda: 1 / 0)
    monkeypatch.setattr(tasks, "is_main_process", lambda: False)
    heard = "OSError: full"
    monkeypatch.setattr(tasks, "broadcast_object_list", lambda told: told.insert(1, heard))
    with pytest.raises(RuntimeError, match="the first process failed: OSError: full"):
        tasks.first_alone(lambda: pytest.fail("is the first process's work"))


def test_launching_without_torchrun_says_how(
    config_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.mm.train_task import train_task

    monkeypatch.delenv("RANK", raising=False)
    config = config_of("retrieval", tmp_path)
    config.launcher = "pytorch"
    with pytest.raises(ValueError, match=r"expects torchrun's environment, got none\. Run:"):
        train_task(config)
    # The other way round, every process would write over the others.
    monkeypatch.setenv("WORLD_SIZE", "2")
    config.launcher = "none"
    with pytest.raises(ValueError, match=r"started 2 processes.*Add --launcher pytorch"):
        train_task(config)


def test_processes_on_mps_are_refused(
    config_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.mm import train_task

    config = config_of("retrieval", tmp_path, launcher="pytorch")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(train_task, "get_device", lambda: "mps")
    with pytest.raises(ValueError, match=r"launcher 'pytorch' on Apple's mps.* without --launcher"):
        train_task.train_task(config)


@pytest.mark.parametrize(
    "loop",
    [
        {"type": "EpochBasedTrainLoop", "max_iters": 4},
        {"by_epoch": True, "max_iters": 4},
        {"max_epochs": 2},
    ],
)
def test_epochs_are_refused(
    loop: dict[str, Any], config_of: Callable[..., Any], tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.train_task import train_task

    config = config_of("retrieval", tmp_path)
    config.train_cfg = loop
    with pytest.raises(ValueError, match="train_cfg needs max_iters and no other loop, got"):
        train_task(config)


def test_checkpoints_between_accumulated_steps_are_refused(
    config_of: Callable[..., Any], tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.train_task import train_task

    counts = {"optim_wrapper__accumulative_counts": 3}
    config = config_of("retrieval", tmp_path, 4, **counts)
    with pytest.raises(ValueError, match="every 2 iterations lie between steps that accumulate 3"):
        train_task(config)
    # Nothing is saved before the end; or as often as steps are made.
    for every, iterations in ((2, 2), (3, 4)):
        interval = {"default_hooks__checkpoint__interval": every}
        config = config_of("retrieval", tmp_path, iterations, **counts, **interval)
        # What comes next.
        config.launcher = "pytorch"
        with pytest.raises(ValueError, match="expects torchrun's environment"):
            train_task(config)


@pytest.mark.parametrize("resume", [False, True])
def test_a_log_knows_whether_its_run_resumed(
    resume: bool, config_of: Callable[..., Any], train: Callable[..., Any], tmp_path: Path
) -> None:
    # Of a run that was killed before it had saved anything.
    log = tmp_path / "20261123_090000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text('{"loss": 77.0, "step": 1}\n')
    train("retrieval", tmp_path, 2, resume=resume, default_hooks__logger__interval=2)
    assert read_training_log(tmp_path)["loss"][0].tolist() == [2]


def test_determinism_that_a_gpu_does_not_have_is_refused(
    config_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchfusion_plugins.mm import train_task

    config = config_of("retrieval", tmp_path, randomness__deterministic=True)
    monkeypatch.setattr(train_task, "get_device", lambda: "cuda")
    with pytest.raises(ValueError, match="deterministic is for the CPU, and this trains on cuda"):
        train_task.train_task(config)


def test_averaged_weights_are_judged_and_saved(
    train: Callable[..., Any], data_of: Callable[[str], TaskData], tmp_path: Path
) -> None:
    # The list has no SaveAdaptersHook: what `--set custom_hooks=[...]` leaves.
    hooks = [{"type": "EMAHook", "momentum": 0.3}]
    task, row = train(
        "query_segmentation", tmp_path, 4, custom_hooks=[*hooks, {"type": "LookHook"}]
    )
    runner = LookHook.runners.pop()
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    model, averaged = runner.model, hook.ema_model.module
    encoder, other = model.task.encoder, averaged.task.encoder
    shared = {p.data_ptr() for module in other.foundations() for p in module.parameters()}
    own = {p.data_ptr() for p in other.injector.parameters()}
    assert all(p.data_ptr() in shared for m in encoder.foundations() for p in m.parameters())
    assert not any(p.data_ptr() in own for p in encoder.injector.parameters())
    average, raw = averaged.task.head.log_scale, model.task.head.log_scale
    assert not torch.equal(average, raw)
    # mmengine swaps them: the average lies under state_dict, what trains under ema_state_dict.
    state = saved(tmp_path, 4)
    assert not any(part in key for key in state["ema_state_dict"] for part in FOUNDATIONS)
    assert torch.equal(state["state_dict"]["task.head.log_scale"], average)
    loaded = load_task(tmp_path / "adapters")
    assert loaded.image_size == SIZE
    assert_same(adapter_state(loaded), adapter_state(averaged.task))
    assert_same(adapter_state(task), adapter_state(averaged.task))
    assert Judge(data_of("query_segmentation"), progress=False)(loaded) == row
    # The average goes on where it was, too.
    interrupted = tmp_path / "interrupted"
    with pytest.raises(PowerCutError):
        train("query_segmentation", interrupted, 4, custom_hooks=[*hooks, {"type": "CutHook"}])
    resumed, _ = train("query_segmentation", interrupted, 4, custom_hooks=hooks, resume=True)
    assert_same(adapter_state(resumed), adapter_state(averaged.task))


def test_a_judgement_that_fails_costs_no_training(
    train: Callable[..., Any],
    trained: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(judge: Judge, model: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr(Judge, "__call__", fail)
        train("retrieval", tmp_path, 4)
    expected, row, _ = trained("retrieval")
    assert_same(adapter_state(load_task(tmp_path / "adapters")), adapter_state(expected))
    _, resumed = train("retrieval", tmp_path, 4, resume=True)
    assert resumed == row


def test_copies_share_the_foundations(model_of: Callable[..., Any]) -> None:
    from copy import deepcopy

    model = model_of("retrieval")
    copied = deepcopy(model)
    for name, parameter in model.named_parameters():
        is_shared = copied.get_parameter(name).data_ptr() == parameter.data_ptr()
        assert is_shared == (not parameter.requires_grad), name


def test_other_foundations_are_refused(
    model_of: Callable[..., Any], trained: Callable[[str], Any], train: Callable[..., Any]
) -> None:
    _, _, work = trained("retrieval")
    state = saved(work, 4)["state_dict"]
    other = model_of("retrieval", weights="random", aggregation__out_channels=32)
    with pytest.raises(CheckpointError, match="trained on other foundations"):
        other.load_state_dict(state)
    same = model_of("retrieval", aggregation__out_channels=32)
    assert same.load_state_dict(state).missing_keys == []
    assert torch.equal(same.task.head.projection.weight, state["task.head.projection.weight"])


def test_recognitions_head_is_fitted_before_and_after_training(
    train: Callable[..., Any],
    data_of: Callable[[str], TaskData],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit, fitted = ClassifierHead.fit, []

    def count(head: ClassifierHead, pooled: torch.Tensor, labels: torch.Tensor) -> None:
        fitted.append(pooled)
        fit(head, pooled, labels)

    monkeypatch.setattr(ClassifierHead, "fit", count)
    task, _ = train("recognition", tmp_path, 2)
    first, last = fitted
    assert not torch.equal(first, last), "training changes the features"
    head = copy.deepcopy(task.head)
    assert data_of("recognition").fit is not None
    task.fit_head(DataLoader(data_of("recognition").fit, 32))
    for name, value in task.head.state_dict().items():
        torch.testing.assert_close(value, head.state_dict()[name], rtol=0.02, atol=1e-3)
    train("recognition", tmp_path, 2, resume=True)
    assert len(fitted) == 4, "what is done is fitted to what it ended with, and to nothing before"
    resumed = load_task(tmp_path / "adapters").head.state_dict()
    for name, value in resumed.items():
        torch.testing.assert_close(value, head.state_dict()[name], rtol=0.02, atol=1e-3)


def test_a_head_trained_on_more_than_can_be_fitted_stays(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, fitted = ClassifierHead.fit, []

    def count(head: ClassifierHead, pooled: torch.Tensor, labels: torch.Tensor) -> None:
        fitted.append(len(labels))
        fit(head, pooled, labels)

    monkeypatch.setattr(ClassifierHead, "fit", count)
    monkeypatch.setattr(Recognition, "most_fitted", 8)
    task, _ = train("recognition", tmp_path, 2)
    assert len(fitted) == 1 and 4 <= fitted[0] <= 8
    key = "task.head.linear.weight"
    assert torch.equal(saved(tmp_path, 2)["state_dict"][key], task.head.linear.weight)


def test_training_starts_from_adapters(
    trained: Callable[[str], Any], train: Callable[..., Any], tmp_path: Path
) -> None:
    task, _, work = trained("retrieval")
    assert task.settings["by"] == "instance"
    started, _ = train(
        "correspondence",
        tmp_path,
        1,
        encoder={"adapters": str(work / "adapters"), "with_cp": True, "_delete_": True},
        optim_wrapper__optimizer__lr=0.0,
        default_hooks__checkpoint__interval=1,
    )
    assert started.encoder.diffusion.denoiser.unet.is_gradient_checkpointing
    assert_same(adapter_state(started.encoder), adapter_state(task.encoder))


def test_models_compute_losses_alone(model_of: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="expected mode 'loss', got 'predict'"):
        model_of("retrieval")(mode="predict")


def test_data_without_a_training_part_are_refused(
    config_of: Callable[..., Any], data_of: Callable[[str], TaskData], tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.train_task import train_task

    data = replace(data_of("correspondence"), train=None, source="psc6k-pscnet:/data")
    with pytest.raises(ValueError, match="psc6k-pscnet:/data has nothing to train on"):
        train_task(config_of("correspondence", tmp_path), data)


def test_configs_are_found_by_name_and_path(tmp_path: Path) -> None:
    from sketchfusion_plugins.mm.task_config import list_configs, read_task_config

    assert set(list_configs()) == set(TASKS)
    config = read_task_config("retrieval", {"train_cfg.max_iters": 7, "task.settings.dim": 32})
    assert config.train_cfg.max_iters == 7 and config.task.settings.dim == 32
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = [{str(list_configs()['recognition'])!r}]\nlog_level = 'ERROR'\n")
    mine = read_task_config(str(path))
    assert mine.task.name == "recognition" and mine.log_level == "ERROR"
    with pytest.raises(ValueError, match="no task config 'matching'; choose one of correspond"):
        read_task_config("matching")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        read_task_config(str(tmp_path / "nowhere.py"))


def test_second_epochs_on_a_cache_skip_the_foundations(
    train: Callable[..., Any], data_of: Callable[[str], TaskData], tmp_path: Path
) -> None:
    options = {"augment": False, "encoder__cache__folder": str(tmp_path / "cache")}
    plain, _ = train("query_segmentation", tmp_path / "plain", augment=False)
    cached, _ = train("query_segmentation", tmp_path / "first", **options)
    states = [task.state_dict() for task in (plain, cached)]
    # Fitting the head has stored pictures in batches of other sizes, which round otherwise.
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-4)
    store = cached.encoder._store
    assert store.misses > 0
    again, _ = train("query_segmentation", tmp_path / "again", **options)
    assert again.encoder._store.misses == 0
    # What trains after the encoder alone.
    head, _ = train(
        "query_segmentation", tmp_path / "head", **options, encoder__cache__keep="results"
    )
    moved = {name for name, t in head.state_dict().items() if not torch.equal(t, states[0][name])}
    assert moved and not any("diffusion" in name for name in moved)
    assert not any(parameter.requires_grad for parameter in head.encoder.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_every_task_finds_its_pictures_in_a_cache(
    name: str, train: Callable[..., Any], data_of: Callable[[str], TaskData], tmp_path: Path
) -> None:
    fit = data_of(name).fit
    assert fit is not None
    pictures = [key for key, value in fit[0].items() if getattr(value, "shape", ())[:1] == (3,)]
    assert "image" in pictures or len(pictures) == 2
    for index in (0, len(fit) - 1):  # type: ignore[arg-type]
        for key in pictures:
            torch.manual_seed(index)
            first = fit[index][key]
            torch.manual_seed(index + 1)
            assert torch.equal(fit[index][key], first)
    options = {"augment": False, "encoder__cache__folder": str(tmp_path / "cache")}
    train(name, tmp_path / "first", **options)
    again, _ = train(name, tmp_path / "again", **options)
    assert again.encoder._store.hits > 0 and again.encoder._store.misses == 0


def test_a_cache_that_would_find_nothing_is_refused(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="--no-augment"):
        train("query_segmentation", tmp_path / "work", encoder__cache__folder="x")
    assert not (tmp_path / "work").exists()


def test_data_without_a_plain_part_cannot_be_cached(
    config_of: Callable[..., Any], data_of: Callable[[str], TaskData], tmp_path: Path
) -> None:
    from sketchfusion_plugins.mm.train_task import train_task

    config = config_of("correspondence", tmp_path / "work", 2, augment=False)
    with pytest.raises(ValueError, match="no part without augmentation for correspondence"):
        train_task(config, replace(data_of("correspondence"), fit=None))


class _Loaders(Dataset[dict[str, Any]]):
    """Tells of every item whether a process of its own loads it."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"elsewhere": get_worker_info() is not None}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_head_is_fitted_to_is_loaded_as_what_is_judged(workers: int) -> None:
    from mmengine.config import Config

    from sketchfusion_plugins.mm.train_task import _fitted_batches

    config = Config({"judge": {"batch_size": 3, "workers": workers}})
    task: Any = SimpleNamespace(most_fitted=3)
    (batch,) = _fitted_batches(_Loaders(), task, config)
    assert batch["elsewhere"].tolist() == [workers > 0] * 3
