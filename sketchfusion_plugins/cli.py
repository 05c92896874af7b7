"""Command line: ``sketchfusion VERB``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="SketchFusion: fused Stable Diffusion and CLIP features for free-hand sketches.",
    no_args_is_help=True,
    add_completion=True,
)

data = typer.Typer(help="Write data sets in the layout that MMSegmentation reads.")
app.add_typer(data, name="data", no_args_is_help=True)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """SketchFusion: fused Stable Diffusion and CLIP features for free-hand sketches."""
    if version:
        from importlib.metadata import version as read_version

        typer.echo(read_version("sketchfusion-plugins"))
        raise typer.Exit


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for adapters, report and picture.")] = Path(
        "sketchfusion-quickstart"
    ),
    model: Annotated[str, typer.Option(help="timm name of the model.")] = "sketchfusion_tiny",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Load pretrained foundations.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training drawings.")] = 6,
    seed: Annotated[int, typer.Option(help="Seed of split and training.")] = 0,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Train injection, aggregation and a classifier on real drawings, and judge them.

    Example: sketchfusion quickstart --epochs 6 --out my-first-run
    """
    from rich.console import Console
    from rich.table import Table

    from sketchfusion_plugins.quickstart import run_quickstart

    with _errors_in_one_line():
        report = run_quickstart(
            out, model_name=model, pretrained=pretrained, epochs=epochs, seed=seed, device=device
        )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
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
    console.print(f"Adapters, report.json and features.png are in {out.resolve()}.", soft_wrap=True)


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="timm name, with or without a tag.")],
    size: Annotated[
        int | None, typer.Option(min=32, help="Side of the image in pixels; default: the model's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Table of a model's parts: parameters, trainable parameters and FLOPs of one image.

    Nothing is downloaded or computed: the model is built without storage.

    Example: sketchfusion summary sketchfusion_base --size 512
    """
    from rich.console import Console
    from rich.table import Table

    from sketchfusion_plugins.summary import summarise

    with _errors_in_one_line():
        rows = summarise(model, size)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table(title=f"{model}, one image")
    for name in ("part", "parameters", "trainable", "GFLOPs"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for row in rows:
        table.add_row(
            row.part, f"{row.parameters:,}", f"{row.trainable:,}", f"{row.flops / 1e9:,.1f}"
        )
    Console().print(table)


@data.command("openmoji-seg")
def openmoji_seg(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    size: Annotated[int, typer.Option(min=32, help="Side of the pictures in pixels.")] = 128,
) -> None:
    """Write OpenMoji's line drawings with part masks (skin, hair, object, white, background).

    A second run keeps what is there. Example: sketchfusion data openmoji-seg --out data/openmoji
    """
    from sketchfusion_plugins.data.openmoji_parts import write_openmoji_parts

    with _errors_in_one_line():
        write_openmoji_parts(out, size=size)


@data.command()
def spg(
    source: Annotated[Path, typer.Option("--from", help="Folder with SPG's files.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    size: Annotated[int, typer.Option(min=32, help="Side of the pictures in pixels.")] = 128,
) -> None:
    """Rasterise SPG's vector sketches with their part labels.

    A second run keeps what is there. Example: sketchfusion data spg --from spg --out data/spg
    """
    from sketchfusion_plugins.data.spg import write_spg

    with _errors_in_one_line():
        write_spg(source, out, size=size)


@app.command("config-path")
def config_path(name: Annotated[str, typer.Argument(help="Name of an mmseg config.")]) -> None:
    """Print where an mmseg config is installed.

    Example: sketchfusion config-path tiny_fpn_openmoji_128
    """
    from sketchfusion_plugins import mmseg_scripts

    with _errors_in_one_line():
        typer.echo(str(mmseg_scripts.config_path(name)))


@app.command(
    "mm-train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def mm_train(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or path of an mmseg config.")],
) -> None:
    """Run MMSegmentation's own tools/train.py on a config; further arguments are passed on.

    Example: sketchfusion mm-train tiny_fpn_openmoji_128 --work-dir runs/first --resume
    """
    from sketchfusion_plugins import mmseg_scripts

    with _errors_in_one_line():
        status = mmseg_scripts.train(name, context.args)
    raise typer.Exit(status)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error
