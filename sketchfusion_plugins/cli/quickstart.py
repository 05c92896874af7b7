"""Commands for a first look: ``quickstart`` and ``summary``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sketchfusion_plugins.cli.common import (
    DeviceOption,
    JsonOption,
    WeightsOption,
    choose_device,
    errors_in_one_line,
    working,
)
from sketchfusion_plugins.cli.completion import complete_timm_name, complete_trainable


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for adapters, report and picture.")] = Path(
        "sketchfusion-quickstart"
    ),
    model: Annotated[
        str, typer.Option(help="timm name of the model.", autocompletion=complete_timm_name)
    ] = "sketchfusion_tiny",
    weights: WeightsOption = "pretrained",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training drawings.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train injection, aggregation and a classifier on real drawings, and judge them.

    Example: sketchfusion quickstart --epochs 6 --out my-first-run
    """
    with errors_in_one_line():
        from sketchfusion_plugins.quickstart import run_quickstart

        place = choose_device(device)
        report = run_quickstart(
            out, model_name=model, weights=weights, epochs=epochs, seed=seed, device=place
        )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=(
            f"{report.model} ({report.foundations} foundations): {report.test_drawings} held-out "
            f"line drawings, {report.classes} classes, seed {report.seed}"
        )
    )
    table.add_column("method")
    table.add_column("accuracy", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_row("chance (most frequent class)", f"{report.chance:.3f}", "")
    for name, value in report.accuracy.items():
        low, high = report.interval[name]
        table.add_row(name, f"{value:.3f}", f"{low:.3f} to {high:.3f}")
    console = Console()
    console.print(table)
    console.print(
        f"Trained {report.trainable_parameters:,} of the encoder's {report.total_parameters:,} "
        f"parameters on {report.train_drawings} drawings and pictures in {report.seconds:.0f} s."
    )
    typer.echo(f"Adapters, report.json and features.png are in {out.resolve()}.")


def summary(
    model: Annotated[
        str,
        typer.Argument(
            help="Preset or timm name, with or without a tag, or a checkpoint, whose head is left "
            "out.",
            autocompletion=complete_trainable,
        ),
    ],
    size: Annotated[
        int | None, typer.Option(min=32, help="Side of the image in pixels; default: the model's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Table of a model's parts: parameters, trainable parameters and FLOPs of one image.

    Nothing is downloaded or computed: the model is built without storage.

    Example: sketchfusion summary sketchfusion_base --size 512
    """
    with errors_in_one_line(), working("building the model"):
        import torch

        from sketchfusion_plugins.inference.models import (
            config_of,
            default_size,
            find_config,
            is_place,
        )
        from sketchfusion_plugins.summary import summarise
        from timm_adapters import SketchFusion

        placed = is_place(model)
        config = config_of(model) if placed else find_config(model)
        with torch.device("meta"):
            # A checkpoint's head is a task's own, or there is none.
            built = (SketchFusion(config, num_classes=0) if placed else SketchFusion(config)).eval()
        rows = summarise(built, size or default_size(model))
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{model}, one image"))
    for name in ("part", "parameters", "trainable", "GFLOPs"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for row in rows:
        table.add_row(
            row.part, f"{row.parameters:,}", f"{row.trainable:,}", f"{row.flops / 1e9:,.1f}"
        )
    Console().print(table)
