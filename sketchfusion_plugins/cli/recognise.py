"""The command ``recognise``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sketchfusion_plugins.cli.common import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    InputsArgument,
    JsonLinesOption,
    ModelOption,
    SizeOption,
    StrictOption,
    choose_device,
    end_with,
    errors_in_one_line,
)


def recognise(
    inputs: InputsArgument,
    model: ModelOption,
    top: Annotated[int, typer.Option(min=1, help="Classes to print.")] = 5,
    size: SizeOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    strict: StrictOption = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Say which classes sketches are of, with a model trained for recognition.

    Example: sketchfusion recognise drawings --model runs/recognition/adapters --top 3
    """
    with errors_in_one_line():
        from sketchfusion_plugins.inference.answers import recognise_files
        from sketchfusion_plugins.inference.models import default_size, open_model
        from sketchfusion_plugins.inference.picture_files import list_pictures
        from sketchfusion_plugins.problems import Problems
        from sketchfusion_plugins.tasks.recognition import Recognition

        problems = Problems(strict)
        paths = list_pictures(inputs, problems)
        opened = open_model(model, "recognition", device=choose_device(device), dtype=dtype)
        # In the command's words; what the function says names classes.
        if not isinstance(opened, Recognition):
            raise ValueError(
                f"expected a model trained for recognition, got {model}, which knows no classes. "
                "Train one with: sketchfusion train recognition"
            )
        found = recognise_files(
            opened, paths, size or default_size(model), problems, top=top, batch_size=batch_size
        )
        if as_json:
            for path, classes in found:
                names = [{"name": name, "probability": value} for name, value in classes]
                typer.echo(json.dumps({"path": str(path), "classes": names}))
        else:
            from rich.console import Console

            from sketchfusion_plugins.cli.tables import rows_table

            rows = [
                (path, ", ".join(f"{name} {value:.3f}" for name, value in classes))
                for path, classes in found
            ]
            Console().print(rows_table(None, ("picture", "classes"), rows))
    end_with(problems)
