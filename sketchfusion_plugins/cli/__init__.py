"""Command line: ``sketchfusion VERB``, a file per group of verbs.

Verbs only read options and print; what they do lies in the modules they import when they run.
Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from sketchfusion_plugins.cli.analyse import analyse
from sketchfusion_plugins.cli.data import openmoji_seg, spg
from sketchfusion_plugins.cli.demo import demo
from sketchfusion_plugins.cli.evaluate import evaluate
from sketchfusion_plugins.cli.features import features
from sketchfusion_plugins.cli.index import add, begin, build, merge, search
from sketchfusion_plugins.cli.installation import doctor, models
from sketchfusion_plugins.cli.mmseg import config_path, mm_export, mm_test, mm_train
from sketchfusion_plugins.cli.pairs import match, segment
from sketchfusion_plugins.cli.quickstart import quickstart, summary
from sketchfusion_plugins.cli.recognise import recognise
from sketchfusion_plugins.cli.train import train

START = "Start"
ASK = "Ask a model"
TRAIN = "Train and judge"
MMSEG = "MMSegmentation"

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error, in one line on standard error; 2 wrong usage; "
    "3 done, but files were skipped (0 where RANK is set, as torchrun does). Results go to "
    "standard output, as JSON with --json; everything else goes to standard error, progress in "
    "terminals alone."
)

app = typer.Typer(
    help="SketchFusion: fused Stable Diffusion and CLIP features for free-hand sketches.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
)
_data = typer.Typer(help="Write data sets in the layout that MMSegmentation reads.")
_index = typer.Typer(help="Build, extend, search and merge indexes of pictures.")


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """SketchFusion: fused Stable Diffusion and CLIP features for free-hand sketches."""
    if not sys.stderr.isatty():
        # Read by Hugging Face's libraries when they are imported.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # Names of files need not be characters that this output can show.
        sys.stdout.reconfigure(errors="backslashreplace")
    if version:
        from importlib.metadata import version as read_version

        typer.echo(read_version("sketchfusion-plugins"))
        raise typer.Exit


def _add(
    to: typer.Typer,
    verb: Callable[..., None],
    panel: str | None = None,
    name: str | None = None,
    **settings: Any,
) -> None:
    """Register a verb; its docstring is its help, the example in it stands below the options."""
    text, _, example = str(inspect.getdoc(verb)).partition("Example: ")
    # Where lines of the docstring end says nothing of a terminal's width, and an example is to be
    # copied from a line of its own.
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    told = "\n\n".join(paragraphs).strip()
    to.command(name, help=told, epilog=f"Example:\n\n{example}", rich_help_panel=panel, **settings)(
        _at_home(verb)
    )


def _at_home(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose paths may begin with ``~``, which shells leave as it is in ``--out=~/file``."""

    @functools.wraps(verb)
    def expanded(**options: Any) -> None:
        for name, value in options.items():
            if isinstance(value, Path):
                options[name] = Path(os.path.expanduser(value))  # noqa: PTH111, leaves ~nobody
        verb(**options)

    return expanded


_add(app, quickstart, START)
_add(app, demo, START)
_add(app, models, START)
_add(app, summary, START)
_add(app, doctor, START)
_add(app, recognise, ASK)
_add(app, features, ASK)
_add(app, analyse, ASK)
app.add_typer(_index, name="index", no_args_is_help=True, rich_help_panel=ASK)
_add(_index, build)
_add(_index, add)
_add(_index, search)
_add(_index, merge)
_add(_index, begin)
_add(app, match, ASK)
_add(app, segment, ASK)
_add(app, train, TRAIN)
_add(app, evaluate, TRAIN)
app.add_typer(_data, name="data", no_args_is_help=True, rich_help_panel=MMSEG)
_add(_data, openmoji_seg, name="openmoji-seg")
_add(_data, spg)
_add(app, config_path, MMSEG, "config-path")
passing_on = {"allow_extra_args": True, "ignore_unknown_options": True}
_add(app, mm_train, MMSEG, "mm-train", context_settings=passing_on)
_add(app, mm_test, MMSEG, "mm-test", context_settings=passing_on)
_add(app, mm_export, MMSEG, "mm-export")
