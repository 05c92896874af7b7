"""The command ``evaluate``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sketchfusion_plugins.cli.common import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    SizeOption,
    SplitSeedOption,
    WeightsOption,
    choose_device,
    errors_in_one_line,
)
from sketchfusion_plugins.cli.completion import complete_model, complete_task

if TYPE_CHECKING:
    from sketchfusion_plugins.evaluation.report import Row


def evaluate(
    task: Annotated[
        str,
        typer.Argument(
            help="recognition, retrieval, query_segmentation or correspondence.",
            autocompletion=complete_task,
        ),
    ],
    data: Annotated[
        str, typer.Option(help="openmoji, or NAME:FOLDER such as psc6k:/data/psc6k.")
    ] = "openmoji",
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Model, named as for the other commands (sketchfusion models lists them); at "
            "least one, may be given several times.",
            autocompletion=complete_model,
        ),
    ] = None,
    ladder: Annotated[
        bool, typer.Option("--ladder", help="Add the baselines, on the first model's foundations.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for TASK.json and TASK.md; measures again only models that have changed."
        ),
    ] = None,
    definitions: Annotated[
        list[str] | None,
        typer.Option(
            "--definition",
            help="Formula of retrieval's mAP@k and P@k: standard (the default), sake, zse-sbir or "
            "torchmetrics; given several times, they are reported side by side.",
        ),
    ] = None,
    size: SizeOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use fewer data, for a quick look.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of fresh adapters.")] = 0,
    split_seed: SplitSeedOption = None,
    batch_size: BatchOption = 16,
    workers: Annotated[
        int,
        typer.Option(min=0, help="Processes that load pictures.", rich_help_panel="How it runs"),
    ] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    weights: WeightsOption = "pretrained",
    as_json: JsonOption = False,
) -> None:
    """Judge models on a task's held-out data, with 95 % intervals.

    Example: sketchfusion evaluate retrieval --model runs/retrieval/adapters --ladder
    """
    names = list(dict.fromkeys(models or []))
    if not names:
        raise typer.BadParameter("name at least one model.", param_hint="--model")
    with errors_in_one_line():
        from sketchfusion_plugins.data.sources import load_task_data
        from sketchfusion_plugins.evaluation.ladder import Builder, baseline_identities, baselines
        from sketchfusion_plugins.evaluation.ladder import evaluate as judge
        from sketchfusion_plugins.inference.identity import identity_of
        from sketchfusion_plugins.inference.models import (
            config_of,
            default_size,
            fresh_encoder,
            open_model,
        )
        from sketchfusion_plugins.inference.splits import split_seed as choose_split

        split = choose_split(names, task, data, split_seed)
        about = {"split seed": split} if limit is None else {"split seed": split, "limit": limit}
        identities = {name: identity_of(name, weights, dtype, seed) for name in names}
        rungs: dict[str, Builder] = {}
        if ladder:
            config = config_of(names[0], weights)
            if dtype is not None:
                config = config.replace(foundation_dtype=dtype)
            identities = {**baseline_identities(config, seed), **identities}
            rungs = baselines(task, fresh_encoder(config, seed))
        loaded = load_task_data(task, data, size or default_size(names[0]), split, limit)
        named: dict[str, Builder] = {
            name: partial(open_model, name, task, weights=weights, dtype=dtype, seed=seed)
            for name in names
        }
        report = judge(
            loaded,
            # What was asked for comes first: a rung that fails must not cost it.
            {**named, **{rung: build for rung, build in rungs.items() if rung not in named}},
            about=about,
            identities=identities,
            out=out,
            finished=_print_row,
            device=choose_device(device),
            batch_size=batch_size,
            workers=workers,
            definition=definitions,
        )
        # The table rises from the lowest rung, in whichever order its rows were measured.
        report.rows = {name: report.rows[name] for name in {**rungs, **named, **report.rows}}
        if out is not None:
            report.write(out)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
        return
    from rich.console import Console

    Console().print(report.table())


def _print_row(name: str, row: Row) -> None:
    measures = ", ".join(f"{measure} {value}" for measure, value in row.items())
    typer.echo(f"{name}: {measures}", err=True)
