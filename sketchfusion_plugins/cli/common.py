"""What the commands share: options, signs of life, errors in one line, and how they end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sketchfusion_plugins.cli.completion import complete_model

if TYPE_CHECKING:
    from torch import nn

    from sketchfusion_plugins.problems import Problems

PARTIAL = 3

# As `sketchfusion_plugins.config` has it, which reading the command line does not load.
Weights = Literal["pretrained", "random"]
Precision = Literal["float32", "bfloat16"]

_HOW = "How it runs"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="Folder or Hugging Face id of a checkpoint; sketchfusion/tiny or its embedding "
        "sketchfusion/tiny-retrieval, which are part of the package; a preset (paper, official, "
        "sd15, cleandift, small, tiny), with fresh injection and aggregation; clip:PRESET, "
        "sd:PRESET, sd+clip:PRESET; timm:NAME; hog; pixels. See: sketchfusion models",
        autocompletion=complete_model,
    ),
]
WeightsOption = Annotated[
    Weights,
    typer.Option("--weights", help="Weights of a preset's foundations.", rich_help_panel=_HOW),
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        min=32,
        help="Side, in pixels, of the square that pictures are padded to; default: what the "
        "(first) model was trained on, else what it is made for.",
        rich_help_panel=_HOW,
    ),
]
SplitSeedOption = Annotated[
    int | None,
    typer.Option(
        "--split-seed",
        min=0,
        help="Seed of the held-out split, where the data have none of their own; default: what the "
        "checkpoint was trained on, else 0.",
    ),
]
BatchOption = Annotated[
    int,
    typer.Option("--batch-size", min=1, help="Pictures per step.", rich_help_panel=_HOW),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="Torch device; auto takes CUDA where there is some.",
        rich_help_panel=_HOW,
    ),
]
DtypeOption = Annotated[
    Precision | None,
    typer.Option("--dtype", help="Precision of frozen foundations.", rich_help_panel=_HOW),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Stop at the first file that cannot be used.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder that keeps, up to --cache-limit, what the frozen foundations compute of every "
        "picture; later runs, also with other adapters, find it there.",
    ),
]
CacheLimitOption = Annotated[
    int | None,
    typer.Option("--cache-limit", min=1, help="GiB that the cache may take; default: 20."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else, on standard output.")
]
JsonLinesOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, a line per picture, and nothing else.")
]
InputsArgument = Annotated[
    list[Path], typer.Argument(help="Pictures, and folders with pictures at any depth.")
]


@contextmanager
def working(what: str) -> Iterator[None]:
    """A sign of life on standard error while something takes seconds; silent but in a terminal."""
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends with status 1 and one line for errors that a user can mend; warnings are a line too.

    Ctrl-C is a line as well; click ends with status 130 then.
    """
    import warnings

    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"
    try:
        yield
    except BrokenPipeError:
        # click ends quietly, with status 1, when whoever reads the output has read enough.
        raise
    except KeyboardInterrupt:
        typer.echo("stopped.", err=True)
        raise
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # typer ends commands with an exception of its own, which is a RuntimeError.
        if isinstance(error, typer.Exit):
            raise
        from sketchfusion_plugins.problems import tell

        typer.echo(f"Error: {' '.join(tell(error).split())}", err=True)
        raise typer.Exit(1) from error
    finally:
        warnings.formatwarning = usual


def choose_device(device: str) -> str:
    """The device that ``auto`` stands for, or the one that was named.

    Raises:
        ValueError: It cannot be used here.
    """
    import torch

    if device == "auto" or (device == "cuda" and torch.cuda.is_available()):
        # Of several processes on a machine each takes a device of its own.
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        count = torch.cuda.device_count()
        return f"cuda:{rank % count}" if count else "cpu"
    try:
        torch.empty(0, device=device)
    # A torch without CUDA asserts, one with CUDA and without a GPU raises RuntimeError.
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the device {device!r} cannot be used here: {error}") from error
    return device


def keep_foundations(model: nn.Module, folder: Path | None, limit: int | None = None) -> None:
    """Let a model look in a cache folder for what its foundations would compute, if one is named.

    Args:
        model: The model.
        folder: Folder of the cache; None for none.
        limit: GiB that it may take; None for the store's own limit.

    Raises:
        OSError: The folder cannot be made.
        ValueError: The model has no foundations, or there is a limit without a folder.
    """
    if folder is None:
        if limit is not None:
            raise ValueError(
                f"got --cache-limit {limit} without --cache, whose folder it bounds. Give both."
            )
        return
    from sketchfusion_plugins.cache import FeatureStore, use_cache
    from sketchfusion_plugins.cache.store import GIBIBYTE
    from sketchfusion_plugins.wrappers import find_encoder

    try:
        _, encoder = find_encoder(model)
    except TypeError as error:
        raise ValueError(
            "this model has no Stable Diffusion and CLIP inside, so there is nothing to keep. "
            "Leave --cache out."
        ) from error
    store = FeatureStore(folder) if limit is None else FeatureStore(folder, limit * GIBIBYTE)
    use_cache(encoder, store)


def end_with(problems: Problems) -> None:
    """Report files that were skipped, and end with status 3 if there were any.

    Not where a launcher waits, which takes any status but 0 for a crash.
    """
    for line in problems.found:
        typer.echo(f"skipped: {line}", err=True)
    if problems.found and "RANK" not in os.environ:
        raise typer.Exit(PARTIAL)
