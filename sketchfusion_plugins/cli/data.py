"""Commands that write data sets: ``data openmoji-seg`` and ``data spg``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sketchfusion_plugins.cli.common import (
    JsonOption,
    StrictOption,
    end_with,
    errors_in_one_line,
)


def openmoji_seg(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder with OpenMoji's SVG files; default: the package's."),
    ] = None,
    size: Annotated[int, typer.Option(min=32, help="Side of the pictures in pixels.")] = 128,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write OpenMoji's line drawings with part masks (skin, hair, object, white, background).

    A second run keeps what is there.

    Example: sketchfusion data openmoji-seg --out data/openmoji_parts_128
    """
    from sketchfusion_plugins.data.openmoji_parts import write_openmoji_parts
    from sketchfusion_plugins.problems import Problems

    problems = Problems(strict)
    with errors_in_one_line():
        write_openmoji_parts(out, size, source, problems=problems)
    _print_counts(out, len(problems.found), as_json)
    end_with(problems)


def spg(
    source: Annotated[Path, typer.Option("--from", help="Folder with SPG's files.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    size: Annotated[int, typer.Option(min=32, help="Side of the pictures in pixels.")] = 128,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rasterise SPG's vector sketches with their part labels.

    The shipped SPG configs do without: they draw what --from names while they train. What is
    written here is for a folder config. A second run keeps what is there.

    Example: sketchfusion data spg --from data/spg --out data/spg_pictures_128
    """
    from sketchfusion_plugins.data.spg import write_spg
    from sketchfusion_plugins.problems import Problems

    problems = Problems(strict)
    with errors_in_one_line():
        write_spg(source, out, size, problems=problems)
    _print_counts(out, len(problems.found), as_json)
    end_with(problems)


def _print_counts(out: Path, skipped: int, as_json: bool) -> None:
    counts = {
        split: len(list((out / "images" / split).glob("*.png"))) for split in ("train", "val")
    }
    if as_json:
        typer.echo(json.dumps({"out": str(out), "pictures": counts, "skipped": skipped}))
    else:
        typer.echo(f"{counts['train']} pictures to train on and {counts['val']} to judge in {out}.")
