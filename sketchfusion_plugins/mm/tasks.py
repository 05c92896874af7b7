"""The four sketch tasks for mmengine's Runner: model, evaluation loop, and the hook that saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast, broadcast_object_list, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import BaseLoop

from sketchfusion_plugins.checkpoint import adapter_state
from sketchfusion_plugins.evaluation.judge import Judge
from sketchfusion_plugins.evaluation.report import Row
from sketchfusion_plugins.mm.frozen import FrozenFoundations
from sketchfusion_plugins.tasks.base import Task

ADAPTERS = "adapters"


class TaskModel(FrozenFoundations, BaseModel):  # type: ignore[misc]
    """A task whose losses mmengine minimises. Its checkpoints hold what trains.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        # With CUDA batches come pinned, see `train_task`.
        asynchronous = torch.cuda.is_available()
        super().__init__({"type": "BaseDataPreprocessor", "non_blocking": asynchronous})
        self.task = task
        self.hide_foundations()

    def forward(self, mode: str = "loss", **batch: Any) -> Any:
        """Losses of a batch; see `sketchfusion_plugins.tasks.base.Task.loss`.

        Raises:
            ValueError: Another mode: tasks are judged by `TaskEvaluationLoop`.
        """
        if mode != "loss":
            raise ValueError(f"expected mode 'loss', got {mode!r}.")
        return self.task.loss(batch)

    def init_weights(self) -> None:
        """Nothing is drawn anew: the task is built ready."""


def first_alone(work: Callable[[], Any]) -> Any:
    """What the first of all processes makes of some work, in each of them.

    Raises:
        RuntimeError: The first process failed; itself it raises what it failed by.
    """
    told: list[Any] = [None, ""]
    failure: Exception | None = None
    if is_main_process():
        try:
            told[0] = work()
        except Exception as error:
            failure, told[1] = error, f"{type(error).__name__}: {error}"
    # The others wait here.
    broadcast_object_list(told)
    if failure is not None:
        raise failure
    if told[1]:
        raise RuntimeError(f"the first process failed: {told[1]}")
    return told[0]


def judge_once(judge: Judge, task: Task) -> Row:
    """What the first of all processes measures, in each of them."""
    row: Row = first_alone(lambda: judge(task))
    return row


@LOOPS.register_module()
class TaskEvaluationLoop(BaseLoop):  # type: ignore[misc]
    """Judges the task that trains, on the first process.

    Args:
        runner: The runner.
        dataloader: Batches of the judged part; the judge loads its own, this one is counted.
        evaluator: The judge.
        finish: What is done to the trained task after the last iteration, before it is judged.

    Attributes:
        row: What was measured after the last iteration; None before.
    """

    row: Row | None = None

    def __init__(
        self, runner: Any, dataloader: Any, evaluator: Judge, finish: Callable[[Task], object]
    ) -> None:
        super().__init__(runner, dataloader)
        self.judge, self.finish = evaluator, finish

    def run(self) -> dict[str, float]:
        """Measures by name, 0..1."""
        self.runner.call_hook("before_val")
        # What `finish` changes is the trained task, which an EMAHook would exchange in part.
        row = self.conclude() if self.runner.iter >= self.runner.max_iters else None
        self.runner.call_hook("before_val_epoch")
        row = row or judge_once(self.judge, task_of(self.runner.model))
        metrics = {name: measured.value for name, measured in row.items()}
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    def conclude(self) -> Row:
        """Finish, save and judge the trained task; the first process finishes it for all."""
        task = trained_task(self.runner)
        # Finishing reads data, which can fail.
        save_task(self.runner)
        first_alone(lambda: self.finish(task))
        for tensor in adapter_state(task).values():
            broadcast(tensor)
        save_task(self.runner)
        self.row = judge_once(self.judge, task)
        return self.row


@HOOKS.register_module()
class SaveAdaptersHook(Hook):  # type: ignore[misc]
    """Writes the trained task to ``adapters`` in the work directory, as `load_task` reads it.

    The last state is kept, not the best: choosing by the judged part would flatter the figures.
    """

    # Before an EMAHook exchanges the average, which is what is saved, for what trains.
    priority = "HIGH"

    def before_val_epoch(self, runner: Any) -> None:
        """Save what is to be judged, which can take hours and fail."""
        save_task(runner)

    def after_train(self, runner: Any) -> None:
        """Save at the end."""
        save_task(runner)


def task_of(model: Any) -> Task:
    """The task inside a model that a runner may have wrapped for data parallelism."""
    inner = model.module if is_model_wrapper(model) else model
    task: Task = inner.task
    return task


def trained_task(runner: Any) -> Task:
    """The task that a runner has trained: the averaged one where an EMAHook keeps an average."""
    averages = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
    return task_of(averages[0] if averages else runner.model)


def save_task(runner: Any) -> None:
    """Write the trained task to ``adapters`` in the work directory, from the main process."""
    if is_main_process():
        trained_task(runner).save_pretrained(Path(runner.work_dir) / ADAPTERS)
