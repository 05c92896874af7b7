"""Command line: ``sketchfusion VERB``, a file per group of verbs.

Verbs only read options and print; what they do lies in the modules they import when they run.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sketchfusion_plugins.cli.data import openmoji_seg, spg
from sketchfusion_plugins.cli.evaluate import evaluate
from sketchfusion_plugins.cli.features import features
from sketchfusion_plugins.cli.index import add, build, search
from sketchfusion_plugins.cli.mmseg import config_path, mm_export, mm_train
from sketchfusion_plugins.cli.pairs import match, segment
from sketchfusion_plugins.cli.quickstart import quickstart, summary
from sketchfusion_plugins.cli.recognise import recognise
from sketchfusion_plugins.cli.train import train

app = typer.Typer(
    help="SketchFusion: fused Stable Diffusion and CLIP features for free-hand sketches.",
    no_args_is_help=True,
    add_completion=True,
)
_data = typer.Typer(help="Write data sets in the layout that MMSegmentation reads.")
_index = typer.Typer(help="Build, extend and search an index of pictures.")


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """SketchFusion: fused Stable Diffusion and CLIP features for free-hand sketches."""
    if version:
        from importlib.metadata import version as read_version

        typer.echo(read_version("sketchfusion-plugins"))
        raise typer.Exit


app.command()(quickstart)
app.command()(summary)
app.command()(train)
app.command()(evaluate)
app.command()(features)
app.add_typer(_index, name="index", no_args_is_help=True)
_index.command()(build)
_index.command()(add)
_index.command()(search)
app.command()(match)
app.command()(segment)
app.command()(recognise)
app.add_typer(_data, name="data", no_args_is_help=True)
_data.command("openmoji-seg")(openmoji_seg)
_data.command()(spg)
app.command("config-path")(config_path)
app.command(
    "mm-train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(mm_train)
app.command("mm-export")(mm_export)
