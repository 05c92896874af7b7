"""Serving the page to this machine, and to nobody and from nothing else unless asked.

Nothing is fetched from or reported to the network, no file of the machine is served, and what comes
in is bounded: requests, uploads, the queue, and the states that are kept.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sketchfusion_plugins.config import Weights
from sketchfusion_plugins.demo.answers import Demonstration
from sketchfusion_plugins.demo.gallery import openmoji_gallery, own_gallery
from sketchfusion_plugins.demo.guards import LARGEST_UPLOAD, GuardedRequests, known_names
from sketchfusion_plugins.demo.legend import Legend
from sketchfusion_plugins.inference.gallery import GalleryModel
from sketchfusion_plugins.inference.identity import identify
from sketchfusion_plugins.inference.models import (
    default_size,
    find_config,
    open_model,
)

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
PORT = 7860
LONGEST_QUEUE = 32
MOST_SESSIONS = 100


def prepare(
    model: str,
    *,
    gallery: Path | None = None,
    size: int | None = None,
    weights: Weights = "pretrained",
    device: str = "cpu",
    dtype: str | None = None,
    concepts: int | None = None,
) -> tuple[Demonstration, Legend]:
    """Open a model and its gallery, which is described at the first start.

    Args:
        model: Name, see `sketchfusion_plugins.inference.models`.
        gallery: Folder of pictures, or an index of them; None for OpenMoji's.
        size: Side, in pixels, that pictures are padded to; None for the model's own.
        weights: Weights of a preset's foundations.
        device: Where to compute.
        dtype: Precision of frozen foundations.
        concepts: Number of OpenMoji's concepts; None for the usual.

    Raises:
        ModuleNotFoundError: A package of the ``demo`` extra is missing.
        OSError: The model or the pictures cannot be found, or the cache cannot be written.
        ValueError: Unknown model, or an index of another one.
    """
    side = size or default_size(model)
    opened = open_model(model, weights=weights, device=device, dtype=dtype)
    described = GalleryModel.of(opened, model, weights, side)
    if gallery is not None:
        pictures = own_gallery(gallery, opened, described)
    else:
        pictures = openmoji_gallery(opened, described, concepts)
    demonstration = Demonstration(opened, pictures, side)
    told = f"`{identify(model, weights)}` at {side} px on {device}; {pictures.title}."
    return demonstration, Legend.of(demonstration, told + _caution(model, weights))


def check_port(host: str, port: int | None) -> None:
    """Refuse a port that is taken, before anything slow and in fewer words than gradio's.

    Args:
        host: Address to listen at.
        port: Port; None for any free one.

    Raises:
        OSError: Nothing can listen there.
    """
    if port is None:
        return
    # Gradio wants the port on this machine's own address too, wherever it listens.
    for place in dict.fromkeys((host.strip("[]"), HOST)):
        family = socket.AF_INET6 if ":" in place else socket.AF_INET
        try:
            socket.create_server((place, port), family=family).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"port {port} is taken; give another by --port.") from error
            raise OSError(
                f"cannot listen at {place}, port {port}: {error.strerror}. Give another address by "
                "--host or another port by --port."
            ) from error


@contextmanager
def serving(
    demonstration: Demonstration,
    legend: Legend,
    host: str = HOST,
    port: int | None = PORT,
    names: Iterable[str] = (),
) -> Iterator[str]:
    """Serve the page until the block ends.

    Args:
        demonstration: Gives the answers.
        legend: What the page says of them.
        host: Address to listen at; ``"0.0.0.0"`` lets the whole network in.
        port: Port; None takes a free one.
        names: Further names that browsers call this machine by; it answers to no others, see
            `sketchfusion_plugins.demo.guards`.

    Yields:
        The page's address.

    Raises:
        ModuleNotFoundError: gradio is missing.
        OSError: See `check_port`.
    """
    check_port(host, port)
    with tempfile.TemporaryDirectory(prefix="sketchfusion-") as folder, _quiet_gradio(folder):
        from sketchfusion_plugins.demo.page import CSS, build_page

        page = build_page(demonstration, legend)
        page.queue(max_size=LONGEST_QUEUE, api_open=False, default_concurrency_limit=1)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inline=False,
            allowed_paths=[],
            max_file_size=LARGEST_UPLOAD,
            state_session_capacity=MOST_SESSIONS,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            footer_links=[],
            theme=_theme(),
            css=CSS,
            app_kwargs={"middleware": [_guards(known_names(host, names), Path(folder))]},
        )
        try:
            yield address
        finally:
            page.close(verbose=False)


def _caution(model: str, weights: Weights) -> str:
    """What a visitor cannot know of a model that nobody has trained."""
    if weights == "random" and identify(model, weights) != identify(model):
        return " Its weights are random: answers show how the page works, not what a model can do."
    try:
        find_config(model)
    except ValueError:
        return ""
    return " Its injection and aggregation are untrained: answers are weaker than they could be."


def _guards(names: Collection[str], folder: Path) -> Any:
    from starlette.middleware import Middleware

    return Middleware(GuardedRequests, names=names, folder=folder)


def _theme() -> gradio.themes.Base:
    import gradio as gr

    # Fonts of the machine: nothing to fetch.
    return gr.themes.Default(
        primary_hue="sky", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )


@contextmanager
def _quiet_gradio(folder: str) -> Iterator[None]:
    """Settings that gradio reads from the environment alone; its files go to a private folder."""
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
    former = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'gradio is needed for the page: pip install "sketchfusion-plugins[demo]"'
            ) from error
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
