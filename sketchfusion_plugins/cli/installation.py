"""Commands about this installation: ``doctor`` and ``models``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from sketchfusion_plugins.cli.common import JsonOption, errors_in_one_line, working

if TYPE_CHECKING:
    from sketchfusion_plugins.doctor import Examination

# Words beside colours: not everybody sees them, and files have none.
_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "broken": "bold red"}


def doctor(as_json: JsonOption = False) -> None:
    """Examine this installation: versions, extras, devices, weights, folders, combinations.

    Ends with status 1 if something is broken that was installed or asked for. What is optional and
    absent is a note. Works without torch, or with one that cannot be imported.

    Example: sketchfusion doctor
    """
    with errors_in_one_line(), working("examining"):
        from sketchfusion_plugins.doctor import examine

        report = examine()
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=1))
    else:
        _print_findings(report)
    if not report.healthy:
        names = ", ".join(dict.fromkeys(line.name for line in report.broken))
        typer.echo(f"Error: broken: {names}.", err=True)
        raise typer.Exit(1)


def models(as_json: JsonOption = False) -> None:
    """List presets and timm models: size, parameters, licences, and which weights are here.

    Weights are bundled with the package, cached by Hugging Face's hub, or missing: downloaded when
    they are asked for. Nothing is loaded.

    Example: sketchfusion models
    """
    with errors_in_one_line():
        from sketchfusion_plugins.catalogue import CATALOGUE

        rows: list[dict[str, Any]] = [
            {**asdict(entry), "weights": [asdict(part) for part in entry.weights()]}
            for entry in CATALOGUE
        ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, default=str))
        return
    _print_models(rows)


def _print_findings(report: Examination) -> None:
    from rich.console import Console
    from rich.text import Text

    console, group = Console(), ""
    for line in report.findings:
        if line.group != group:
            group = line.group
            console.print(Text(group, "bold"))
        text = Text(f"  {line.state:8}", _STYLES[line.state])
        text.append(f"{line.name}: ", "bold").append(line.found, "default")
        console.print(text, soft_wrap=True)
        if line.advice:
            console.print(Text(f"          -> {line.advice}"), soft_wrap=True)


def _print_models(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console

    from sketchfusion_plugins.cli.tables import rows_table

    # Presets need not use the same files of a source: of some it may lack what others have.
    parts = {(part["source"], part["state"]): part for row in rows for part in row["weights"]}
    here = [
        (
            row["preset"],
            ", ".join(row["timm_names"]),
            row["size"],
            f"{row['parameters'] / 1e6:,.1f} M",
            f"{row['trained'] / 1e6:.2f} M",
        )
        for row in rows
    ]
    weights = [
        (
            source,
            part["state"],
            part["licence"],
            ", ".join(row["preset"] for row in rows if part in row["weights"]),
        )
        for (source, _), part in parts.items()
    ]
    console = Console()
    columns = ("preset", "timm", "pixels", "parameters", "trained")
    console.print(rows_table("models", columns, here))
    console.print(rows_table("weights", ("id", "where", "licence", "presets"), weights))
