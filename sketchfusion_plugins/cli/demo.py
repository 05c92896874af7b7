"""The command ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sketchfusion_plugins.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    SizeOption,
    WeightsOption,
    choose_device,
    errors_in_one_line,
)


def demo(
    model: ModelOption = "sketchfusion/tiny",
    gallery: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures to find, or an index of them; default: OpenMoji's."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets the whole network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 7860,
    name: Annotated[
        list[str] | None,
        typer.Option(
            help="Further name in the page's address, of a proxy or of a container's machine; "
            "repeat it for several."
        ),
    ] = None,
    size: SizeOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    weights: WeightsOption = "pretrained",
) -> None:
    """Serve a page to draw on: classes, similar pictures, places and points found as you draw.

    The first start describes the gallery, which later ones remember: with sketchfusion/tiny and
    OpenMoji about half a minute of one core.

    Example: sketchfusion demo --gallery photos --port 8000
    """
    with errors_in_one_line():
        from sketchfusion_plugins.demo.serve import check_port, prepare, serving

        check_port(host, port)
        prepared = prepare(
            model,
            gallery=gallery,
            size=size,
            weights=weights,
            device=choose_device(device),
            dtype=dtype,
        )
        with serving(*prepared, host=host, port=port, names=name or ()) as address:
            typer.echo(f"Draw at {address} (Ctrl+C ends it).")
            _wait()


def _wait() -> None:
    """Wait for Ctrl+C, or for the signal that ends services."""
    import signal
    import threading

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    # Windows interrupts no wait without a timeout.
    while not ended.wait(0.5):
        pass
