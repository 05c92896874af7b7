"""Train a task from a config, with mmengine's Runner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size, init_dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from sketchfusion_plugins.adapter_file import Split
from sketchfusion_plugins.data.sources import load_task_data, source_name
from sketchfusion_plugins.data.task_data import Samples, TaskData, spread
from sketchfusion_plugins.evaluation.judge import Judge
from sketchfusion_plugins.evaluation.report import Row
from sketchfusion_plugins.inference.sharding import LONGEST_WAIT
from sketchfusion_plugins.inference.splits import split_seed, trained_on
from sketchfusion_plugins.mm.resuming import (
    FOUND,
    ReplaceRunHook,
    describe_data,
    find_start,
    refuse_other_data,
)
from sketchfusion_plugins.mm.seeding import NumberedSampler, SeededDraws, SeedIterationHook
from sketchfusion_plugins.mm.task_config import build_encoder, encoder_config
from sketchfusion_plugins.mm.tasks import TaskModel, first_alone, trained_task
from sketchfusion_plugins.tasks.base import Task
from sketchfusion_plugins.tasks.load import TASKS, build_task


def train_task(config: Config, data: TaskData | None = None) -> tuple[Task, Row]:
    """Train, judge and save a task; checkpoints, logs and adapters are in ``config.work_dir``.

    Run by torchrun with ``config.launcher`` "pytorch", every process trains on its share: on GPUs
    with nccl, on CPUs with gloo.

    Args:
        config: See `task_config.read_task_config`; ``work_dir`` must be set. Without ``data.seed``
            the split is that of the adapters to start from; without ``train_cfg.val_interval`` the
            end alone is judged. With ``overwrite`` the first iteration deletes the checkpoints of
            an earlier run in ``work_dir``, unless it is resumed.
        data: Data instead of those that the config names. Settings of the task that the config
            leaves out follow from the data: recognition's classes, what retrieval compares by.

    Returns:
        The task, averaged where an EMAHook is at work, and its measures after the last iteration.

    Raises:
        FileNotFoundError: Data are missing.
        OSError: Foundations cannot be loaded, or the folder cannot be written.
        ValueError: The config does not fit together, nor with the run that it resumes or the
            adapters that it starts from.
    """
    _refuse_early(config)
    wrapper = _join_processes(config)
    _refuse_small_batch(config)
    if data is None:
        begun = [config.encoder.adapters] if config.encoder.get("adapters") else []
        asked = config.data.get("seed")
        config.data.seed = split_seed(begun, config.task.name, config.data.source, asked)
    start, resume = find_start(config)
    # Beside its log, mmengine keeps the config: who reads it is told whether the run began anew.
    config.resume = resume
    if data is None:
        data = load_task_data(config.task.name, **config.data)
    config[FOUND] = describe_data(data)
    if resume and start and Path(start).is_file():
        refuse_other_data(config, Path(start))
    samples = _training_part(data, config)
    task = _build_task(data, config)
    part = data.fit
    if start is None and part is not None:
        # Data parallelism begins with the first process' weights in all of them.
        task.to(get_device())
        first_alone(lambda: task.fit_head(_fitted_batches(part, task, config)))
    runner = _build_runner(config, task, data, samples, start, resume, wrapper)
    runner.train()
    # Training ends with an evaluation, unless all of it was done before.
    row = runner.val_loop.row or runner.val_loop.conclude()
    return trained_task(runner), row


def _refuse_early(config: Config) -> None:
    """Refuse what can be refused before anything large is read."""
    encoder_config(config.encoder)
    if config.randomness.get("deterministic") and get_device() != "cpu":
        raise ValueError(
            f"randomness.deterministic is for the CPU, and this trains on {get_device()}, where "
            "pooling on a grid has no deterministic gradient. Leave it out: runs of one seed then "
            "differ by rounding alone."
        )
    loop = _name_of(config.train_cfg.get("type"))
    by_epoch = config.train_cfg.get("by_epoch") or loop.endswith("EpochBasedTrainLoop")
    if by_epoch or "max_iters" not in config.train_cfg:
        raise ValueError(
            "data are drawn without end, so that tasks train by iterations: train_cfg needs "
            f"max_iters and no other loop, got {dict(config.train_cfg)}. Of N items and batches "
            "of B, an epoch is N / B iterations."
        )
    checkpoints = config.default_hooks.get("checkpoint") or {}
    every, counts = checkpoints.get("interval", -1), config.optim_wrapper.get("accumulative_counts")
    between = 0 < every < config.train_cfg.max_iters and not checkpoints.get("by_epoch", True)
    if between and counts and every % counts:
        raise ValueError(
            f"checkpoints every {every} iterations lie between steps that accumulate {counts} "
            "(optim_wrapper.accumulative_counts), and a run that is resumed there would lose what "
            "has been accumulated. Set default_hooks.checkpoint.interval to a multiple of it."
        )
    amp = _name_of(config.optim_wrapper.get("type")).endswith("AmpOptimWrapper")
    if amp and get_device() in ("cpu", "mps"):
        raise ValueError(
            "optim_wrapper.type AmpOptimWrapper, mixed precision of mmengine, is for CUDA and the "
            f"like, and this trains on {get_device()}. Leave it out; "
            "--set encoder.changes.foundation_dtype=bfloat16 holds the foundations in half "
            "precision everywhere."
        )


def _name_of(kind: Any) -> str:
    """Of a class, or of the name that a config has for it."""
    return str(getattr(kind, "__name__", kind))


def _refuse_small_batch(config: Config) -> None:
    """Refuse batches of which nothing is learned, or which cannot be normalised."""
    kind, batch_size = TASKS.get(config.task.name), config.train_dataloader.batch_size
    if kind is None:
        return
    reason, least = "", 0
    if batch_size * get_world_size() < kind.least_batch:
        reason, least = "tells the items of a batch apart and learns nothing", kind.least_batch
    elif batch_size < kind.least_share:
        reason, least = "normalises by the batch and cannot learn", kind.least_share
    if reason:
        raise ValueError(
            f"{kind.name} {reason} from batches of {batch_size}. Set a batch size of at least "
            f"{least}; encoder.with_cp=True saves memory."
        )


def _training_part(data: TaskData, config: Config) -> Samples:
    """What training draws from: with augmentation, or with the same pixels at every visit."""
    if data.train is None:
        raise ValueError(f"{data.source} has nothing to train on; evaluate on it alone.")
    if not config.get("augment", True):
        if data.fit is None:
            raise ValueError(
                f"{data.source} has no part without augmentation for {data.task}. Train with "
                "augmentation, and without a cache."
            )
        return data.fit
    if config.encoder.get("cache"):
        raise ValueError(
            "augmentation changes pictures at every visit, so a cache would grow and nothing would "
            "be found in it. Train without: --no-augment, in a config augment = False."
        )
    return data.train


def _build_task(data: TaskData, config: Config) -> Task:
    """The task that a config describes, with what its data decide.

    Raises:
        ValueError: Nothing of it would train.
    """
    # Adapters and heads are drawn while the task is built, before the runner sets its seed.
    torch.manual_seed(config.randomness.seed)
    settings = {**_settings_of(data), **(config.task.get("settings") or {})}
    if settings.get("by") == "instance" and getattr(data.train, "by", "") == "label":
        raise ValueError(
            f"task.settings.by is 'instance', but {data.source} pairs sketches with photos of "
            "their class. Leave it out, or name data of instances."
        )
    task = build_task(config.task.name, build_encoder(config.encoder), **settings)
    if not any(parameter.requires_grad for parameter in task.parameters()):
        raise ValueError(
            f"nothing of {task.name} would train: it has no head, and injection and aggregation "
            "are frozen. Keep 'foundations' in the cache, not 'results'."
        )
    task.image_size = data.size
    task.split = _split_of(data, config)
    return task


def _build_runner(
    config: Config,
    task: Task,
    data: TaskData,
    samples: Samples,
    start: str | None,
    resume: bool,
    wrapper: dict[str, Any],
) -> Runner:
    """Runner of a training that judges the task at its end."""
    part = data.fit

    def finish(trained: Task) -> None:
        # Of a larger part, gradient has seen more than a closed form would.
        if part is not None and (
            trained.part_suffices or len(part) <= trained.most_fitted  # type: ignore[arg-type]
        ):
            trained.fit_head(_fitted_batches(part, trained, config))

    seed = config.randomness.seed
    hooks: list[Hook] = [SeedIterationHook(seed)]
    chosen = list(config.get("custom_hooks") or [])
    # A list is replaced as a whole, by --set too; what was trained is always kept.
    if not any("SaveAdaptersHook" in str(hook) for hook in chosen):
        chosen.append({"type": "SaveAdaptersHook"})
    if config.get("overwrite") and not resume:
        hooks.append(ReplaceRunHook())
    return Runner(
        model=TaskModel(task),
        work_dir=config.work_dir,
        train_dataloader=_batches(samples, seed, **config.train_dataloader),
        # Judging can take longer than training; mmengine's own interval is 1,000 iterations.
        train_cfg={"val_interval": config.train_cfg.max_iters, **config.train_cfg},
        val_dataloader=DataLoader(data.test),
        val_cfg={"type": "TaskEvaluationLoop", "finish": finish},
        val_evaluator=Judge(data, get_device(), **config.judge),
        optim_wrapper=config.optim_wrapper,
        param_scheduler=[
            {"end": config.train_cfg.max_iters, **scheduler} for scheduler in config.param_scheduler
        ],
        default_hooks=config.default_hooks,
        custom_hooks=[*hooks, *chosen],
        load_from=start,
        resume=resume,
        launcher=config.get("launcher", "none"),
        env_cfg=config.env_cfg,
        log_processor=config.log_processor,
        log_level=config.log_level,
        visualizer=config.get("visualizer"),
        default_scope="mmengine",
        randomness=config.randomness,
        # Runners of one name share their logger, and the name is else the second of the start.
        experiment_name=f"{config.task.name}_{uuid4().hex[:8]}",
        cfg=Config({**config.to_dict(), **wrapper}),
    )


def _fitted_batches(data: Samples, task: Task, config: Config) -> Iterator[dict[str, Any]]:
    """Batches of what a head is fitted to, the same in every process."""
    from tqdm import tqdm

    loader = DataLoader(
        spread(data, task.most_fitted),
        config.judge.batch_size,
        num_workers=config.judge.get("workers", 0),
        generator=torch.Generator(),
    )
    for batch in tqdm(loader, desc="fitting", disable=None, leave=False):
        yield {
            key: value.to(get_device()) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }


def _split_of(data: TaskData, config: Config) -> Split | None:
    """The split to remember, with those that the adapters to start from were trained on."""
    begun = config.encoder.get("adapters")
    before = trained_on(str(begun)) if begun else ()
    if data.split_seed is None:
        return Split("", 0, before) if before else None
    name = source_name(data.source)
    own = (data.task, name, data.split_seed)
    return Split(name, data.split_seed, tuple(run for run in before if run != own))


def _settings_of(data: TaskData) -> dict[str, Any]:
    """Settings of a task that its data decide, unless the config does."""
    if data.task == "recognition":
        return {"classes": data.categories}
    if data.task == "retrieval":
        return {"by": "instance" if data.label == "instance" else "category"}
    return {}


def _batches(data: Samples, seed: int, batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Endless batches, each process its own share."""
    sampler = NumberedSampler(data, shuffle=True, seed=seed)
    return DataLoader(
        SeededDraws(data, seed, sampler.rank),
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        drop_last=True,
    )


def _join_processes(config: Config) -> dict[str, Any]:
    """Join the other processes before anything asks for its rank."""
    launcher = config.get("launcher", "none")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if launcher == "none":
        if processes > 1:
            raise ValueError(
                f"torchrun started {processes} processes, and with launcher 'none' each would "
                "train alone, in the same folder. Add --launcher pytorch."
            )
        return {}
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise ValueError(
            "launcher 'pytorch' expects torchrun's environment, got none. Run: torchrun "
            "--nproc-per-node 2 -m sketchfusion_plugins train TASK --launcher pytorch"
        )
    if get_device() == "mps":
        raise ValueError(
            f"launcher {launcher!r} on Apple's mps: torch has no communication between processes "
            "there. Train in one process, without --launcher."
        )
    if get_device() != "cpu":
        init_dist(launcher, **config.env_cfg.dist_cfg)
        return {}
    # mmengine's own way demands CUDA, and its data parallelism a device.
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    return {
        "model_wrapper_cfg": {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "forward_sync_buffers": False,
        }
    }
