"""The command ``train``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sketchfusion_plugins.cli.common import (
    CacheLimitOption,
    JsonOption,
    SplitSeedOption,
    Weights,
    errors_in_one_line,
)
from sketchfusion_plugins.cli.completion import complete_task, complete_trainable

if TYPE_CHECKING:
    from mmengine.config import Config

# As configs write them.
PYTHON = {"True": True, "False": False, "None": None}


def train(
    task: Annotated[
        str,
        typer.Argument(
            help="recognition, retrieval, query_segmentation or correspondence, or a path of "
            "a config.",
            autocompletion=complete_task,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="openmoji (the default), or NAME:FOLDER such as sketchy:/data/sketchy."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Preset or timm name, or a checkpoint whose injection and aggregation to start "
            "from; the head is always a new one; default: sketchfusion_tiny.",
            autocompletion=complete_trainable,
        ),
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(help="Weights of foundations; default: the config's, for --model pretrained."),
    ] = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and logs; default: runs/TASK.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Steps of training; default: the config's, 400.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pictures or pairs per step and process; default: the config's, 16."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that load pictures, for training and for judging; default: the "
            "config's, 0.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            help="Side of the pictures, saved with the adapters; default: the model's.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use fewer data, for a quick look.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the training; default: 0.")
    ] = None,
    split_seed: SplitSeedOption = None,
    resume: Annotated[
        bool, typer.Option(help="Go on from the work directory's last checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the adapters and checkpoints of the work directory."
        ),
    ] = False,
    launcher: Annotated[
        Literal["none", "pytorch", "slurm"], typer.Option(help="How processes were started.")
    ] = "none",
    augment: Annotated[
        bool | None,
        typer.Option(
            help="Warp pictures anew at every visit; default: the config's, yes. The sources "
            "folders and psc6k are not warped."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what the frozen foundations compute, so that later epochs skip "
            "them; with --no-augment, since other pixels are other pictures."
        ),
    ] = None,
    cache_limit: CacheLimitOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the config, such as judge.batch_size=8."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train injection, aggregation and a task's head, then judge them on held-out data.

    With --set train_cfg.val_interval=1000 they are judged every 1,000 steps too.

    Example: sketchfusion train correspondence --model tiny --iterations 200
    """
    options = _parse(settings or [])
    if cache_limit is not None and cache is None:
        raise typer.BadParameter("bounds --cache; give both.", param_hint="--cache-limit")
    if resume and overwrite:
        raise typer.BadParameter("contradicts --resume; give one.", param_hint="--overwrite")
    with errors_in_one_line(), redirect_stdout(sys.stderr):
        from sketchfusion_plugins.cache.store import GIBIBYTE
        from sketchfusion_plugins.mm.settings import merge_settings
        from sketchfusion_plugins.mm.task_config import read_task_config
        from sketchfusion_plugins.mm.train_task import train_task

        config = read_task_config(task)
        if model is not None:
            size = _choose_model(config, model, weights, size)
        elif weights is not None:
            config.merge_from_dict({"encoder.changes.weights": weights})
        given = {
            "data.source": data,
            "augment": augment,
            "encoder.cache.folder": None if cache is None else str(cache),
            "encoder.cache.limit": None if cache_limit is None else cache_limit * GIBIBYTE,
            "data.size": size,
            "data.limit": limit,
            "data.seed": split_seed,
            "randomness.seed": seed,
            "train_cfg.max_iters": iterations,
            "train_dataloader.batch_size": batch_size,
            "train_dataloader.num_workers": workers,
            "judge.workers": workers,
        }
        config.merge_from_dict({key: value for key, value in given.items() if value is not None})
        config.work_dir = str(work_dir or config.get("work_dir") or Path("runs") / config.task.name)
        config.resume, config.overwrite, config.launcher = resume, overwrite, launcher
        merge_settings(config, options)
        if not (config.resume or config.overwrite):
            _refuse_earlier_run(Path(config.work_dir))
        trained, row = train_task(config)
        from mmengine.dist import is_main_process

        if not is_main_process():
            return
    from sketchfusion_plugins.evaluation.report import Report

    adapters = Path(config.work_dir) / "adapters"
    about = {
        "iterations": config.train_cfg.max_iters,
        "batch size": config.train_dataloader.batch_size,
        "size": config.data.size,
        "seed": config.randomness.seed,
        "split seed": config.data.seed,
        "foundations": trained.encoder.config.weights,
    }
    if config.task.name == "retrieval":
        named = config.judge.get("definition") or "standard"
        about["definition"] = named if isinstance(named, str) else " and ".join(named)
    report = Report(config.task.name, config.data.source, about, {str(adapters): row})
    if as_json:
        typer.echo(json.dumps({**report.as_json(), "adapters": str(adapters)}, indent=1))
        return
    from rich.console import Console

    Console().print(report.table())
    typer.echo(f"Adapters and head are in {adapters.resolve()}.")


def _refuse_earlier_run(folder: Path) -> None:
    """Raise where a training would replace another's results.

    Raises:
        ValueError: The folder holds adapters or checkpoints.
    """
    from sketchfusion_plugins.mm.safe_loading import numbered_checkpoints

    found = [folder / "adapters"] if (folder / "adapters").exists() else []
    found += numbered_checkpoints(folder)
    if found:
        raise ValueError(
            f"{folder} holds an earlier run's {found[0].name}, which this one would replace. Take "
            "another --work-dir, go on with that run by --resume, or replace it by --overwrite."
        )


def _choose_model(config: Config, name: str, weights: Weights | None, size: int | None) -> int:
    """Make the config's encoder a preset or a checkpoint; gives the size of the pictures.

    Raises:
        ValueError: Neither.
    """
    from sketchfusion_plugins.inference.models import (
        PARTS,
        PLAIN,
        default_size,
        find_config,
        is_place,
    )
    from sketchfusion_plugins.mm.resuming import adapter_path
    from sketchfusion_plugins.presets import PRESETS

    choices = (
        f"choose a preset ({', '.join(PRESETS)}), a timm name of ours, sketchfusion/tiny, or the "
        "folder or Hugging Face id of a checkpoint."
    )
    if name.partition(":")[0] in (*PARTS, *PLAIN, "timm"):
        raise ValueError(f"{name} has nothing to train; {choices}")
    # How the encoder computes, not which one it is.
    kept = {key: config.encoder[key] for key in ("with_cp", "cache") if key in config.encoder}
    try:
        find_config(name)
        changes = {"weights": weights or "pretrained"}
        config.encoder = {"variant": name, "changes": changes, **kept}
    except ValueError as error:
        if not is_place(name):
            near = get_close_matches(name, complete_trainable(""), 1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"no model {name!r}; {choices}{meant}") from error
        changes = {} if weights is None else {"weights": weights}
        # A run may be resumed from elsewhere.
        adapters = adapter_path(name)
        config.encoder = {"adapters": adapters, "changes": changes, **kept}
    return size or default_size(name)


def _parse(settings: list[str]) -> dict[str, Any]:
    """Settings ``KEY=VALUE``, whose values are JSON, Python's constants or else text."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not key or not separator:
            raise typer.BadParameter(f"expected KEY=VALUE, got {setting!r}.", param_hint="--set")
        try:
            parsed[key] = json.loads(text)
        except json.JSONDecodeError:
            parsed[key] = PYTHON.get(text, text)
    return parsed
