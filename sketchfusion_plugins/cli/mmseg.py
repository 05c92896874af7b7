"""Commands around MMSegmentation: ``config-path``, ``mm-train`` and ``mm-export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sketchfusion_plugins.cli.common import errors_in_one_line


def config_path(name: Annotated[str, typer.Argument(help="Name of an mmseg config.")]) -> None:
    """Print where an mmseg config is installed.

    Example: sketchfusion config-path tiny_fpn_openmoji_128
    """
    from sketchfusion_plugins import mmseg_scripts

    with errors_in_one_line():
        typer.echo(str(mmseg_scripts.config_path(name)))


def mm_train(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name or path of an mmseg config.")],
) -> None:
    """Run MMSegmentation's own tools/train.py on a config; further arguments are passed on.

    Example: sketchfusion mm-train tiny_fpn_openmoji_128 --work-dir runs/first --resume
    """
    from sketchfusion_plugins import mmseg_scripts

    with errors_in_one_line():
        status = mmseg_scripts.train(name, context.args)
    raise typer.Exit(status)


def mm_export(
    name: Annotated[str, typer.Argument(help="Name or path of the config it was trained with.")],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.pth) of that training.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Merge a trained MMSegmentation checkpoint with its foundations, to run without the hub.

    Writes config.py and model.pth for mmseg's init_model; 2.5 GB for the base model. The
    foundations in it keep their own licences.

    Example: sketchfusion mm-export tiny_fpn_openmoji_128 runs/first/iter_4000.pth merged
    """
    from sketchfusion_plugins import mmseg_scripts

    with errors_in_one_line():
        config = mmseg_scripts.find_config(name)
        from sketchfusion_plugins.mm.export import export_merged

        paths = export_merged(config, checkpoint, out)
        for path in paths:
            typer.echo(f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
