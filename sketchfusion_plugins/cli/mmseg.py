"""Commands around MMSegmentation: ``config-path``, ``mm-train``, ``mm-test``, ``mm-export``."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from sketchfusion_plugins.cli.common import JsonOption, errors_in_one_line, working
from sketchfusion_plugins.cli.completion import complete_config


def config_path(
    name: Annotated[
        str, typer.Argument(help="Name of an mmseg config.", autocompletion=complete_config)
    ],
    as_json: JsonOption = False,
) -> None:
    """Print where an mmseg config is installed.

    Example: sketchfusion config-path tiny_fpn_openmoji_128
    """
    from sketchfusion_plugins import mmseg_scripts

    with errors_in_one_line():
        path = mmseg_scripts.config_path(name)
    typer.echo(json.dumps({"name": name, "path": str(path)}) if as_json else str(path))


def mm_train(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name or path of an mmseg config.", autocompletion=complete_config)
    ],
) -> None:
    """Run MMSegmentation's own tools/train.py on a config; further arguments are passed on.

    Example: sketchfusion mm-train tiny_fpn_openmoji_128 --work-dir runs/first --resume
    """
    from sketchfusion_plugins import mmseg_scripts

    with errors_in_one_line():
        status = mmseg_scripts.run_tool("train", name, context.args)
    raise typer.Exit(status)


def mm_test(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="Config as it was trained, which lies in the work directory.",
            autocompletion=complete_config,
        ),
    ],
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint (.pth) of that training.")],
) -> None:
    """Run MMSegmentation's own tools/test.py on a checkpoint; further arguments are passed on.

    Example: sketchfusion mm-test runs/first/tiny_fpn_spg_128.py runs/first/iter_4000.pth
    """
    from sketchfusion_plugins import mmseg_scripts

    with errors_in_one_line():
        if "://" not in checkpoint and not Path(checkpoint).is_file():
            raise FileNotFoundError(f"no checkpoint at {checkpoint}.")
        status = mmseg_scripts.run_tool("test", name, [checkpoint, *context.args])
    raise typer.Exit(status)


def mm_export(
    name: Annotated[
        str,
        typer.Argument(
            help="Name or path of the config it was trained with.", autocompletion=complete_config
        ),
    ],
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.pth) of that training.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    as_json: JsonOption = False,
) -> None:
    """Merge a trained MMSegmentation checkpoint with its foundations, to run without the hub.

    Writes config.py and model.pth for mmseg's init_model; 2.5 GB for the base model. The
    foundations in it keep their own licences.

    Example: sketchfusion mm-export tiny_fpn_openmoji_128 runs/first/iter_4000.pth merged
    """
    from sketchfusion_plugins import mmseg_scripts

    # mmengine prints what it loads.
    with errors_in_one_line(), working("merging"), redirect_stdout(sys.stderr):
        config = mmseg_scripts.config_file(name)
        from sketchfusion_plugins.mm.export import export_merged

        paths = export_merged(config, checkpoint, out)
    if as_json:
        files = {"config": str(paths[0]), "checkpoint": str(paths[1])}
        typer.echo(json.dumps({**files, "bytes": paths[1].stat().st_size}))
        return
    for path in paths:
        typer.echo(f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
