"""The page: what is where, and which click asks for what.

All state is a client's own: the photo, the points asked for, and what is on the canvas.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import gradio as gr
from PIL import Image

from sketchfusion_plugins.demo import canvas as paper
from sketchfusion_plugins.demo.answers import Demonstration, Photo, add_point
from sketchfusion_plugins.demo.legend import Legend
from sketchfusion_plugins.demo.pictures import (
    PictureError,
    decode_canvas,
    encode_canvas,
    read_upload,
)
from sketchfusion_plugins.demo.scenes import example_photo, example_sketch, scene_concepts

# A state that nobody has touched for so long is forgotten.
STATE_SECONDS = 3600
CACHE_SECONDS = (600, 1800)
BLANK = encode_canvas(Image.new("RGB", (8, 8), "white"))
WELCOME = "Draw something, or take an example: answers come as you draw."
MAPS = (
    "Left the drawing, right the outlined part of the photo; their first three principal "
    "components are red, green and blue. Equal colours of a pair are similar features."
)

CSS = """
.gradio-container, .gradio-container main, .contain { width: 100% !important; }
.gradio-container main { max-width: 1180px !important; margin: 0 auto; }
#canvas, #canvas .html-container { padding: 0 !important; }
#similar, #similar .grid-wrap { height: auto !important; min-height: 0; max-height: none; }
#status { padding: 10px 14px; border-radius: 8px; background: #e0f2fe; }
#status p { margin: 0; color: #0c4a6e; }
#sketch-points img { cursor: crosshair; }
#similar .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
#similar .thumbnail-lg { display: flex; flex-direction: column; aspect-ratio: auto; height: auto; }
#similar .thumbnail-lg img { aspect-ratio: 1; height: auto; padding: 6px; }
#similar .caption-label { position: static; max-width: none; width: 100%; border: 0;
  white-space: normal; overflow-wrap: anywhere; text-overflow: clip; text-align: center;
  font-size: 12px; line-height: 1.25; }
"""


def build_page(demonstration: Demonstration, legend: Legend) -> gr.Blocks:
    """Lay out the page.

    Args:
        demonstration: Gives the answers.
        legend: What is said of them.

    Raises:
        ModuleNotFoundError: A package of the ``demo`` extra is missing.
    """
    concepts = scene_concepts()
    example_scene = demonstration.photo(example_photo(concepts))
    picture: dict[str, Any] = {
        "interactive": False,
        "show_label": False,
        "buttons": [],
        "format": "png",
    }

    with gr.Blocks(
        title="SketchFusion", analytics_enabled=False, delete_cache=CACHE_SECONDS
    ) as page:
        photo = gr.State(None, time_to_live=STATE_SECONDS)
        points = gr.State([], time_to_live=STATE_SECONDS)
        keys = gr.State([], time_to_live=STATE_SECONDS)
        gr.Markdown(f"# SketchFusion\n{legend.model}")
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                drawing = gr.HTML(
                    "",
                    html_template=paper.HTML,
                    css_template=paper.CSS,
                    js_on_load=paper.SCRIPT,
                    elem_id="canvas",
                )
                with gr.Row():
                    example = gr.Button("Example drawing", min_width=120)
                    drawing_file = gr.UploadButton(
                        "Upload a drawing", file_types=["image"], min_width=120
                    )
            with gr.Column(scale=6, min_width=320):
                status = gr.Markdown(WELCOME, elem_id="status")
                with gr.Column(visible=False) as first_results:
                    gr.Markdown("### Recognised as")
                    classes = gr.Label(show_label=False, show_heading=False, elem_id="classes")
                    gr.Markdown(legend.classes)
                    gr.Markdown("### Most similar pictures\nClick one to look into it.")
                    similar = gr.Gallery(
                        show_label=False,
                        columns=4,
                        object_fit="contain",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        format="png",
                        elem_id="similar",
                    )
                    gr.Markdown(legend.similar)
        with gr.Row(visible=False) as photo_row:
            with gr.Column(scale=5, min_width=320):
                gr.Markdown("### Where in the photo")
                part = gr.Image(elem_id="part", **picture)
                with gr.Row():
                    photo_file = gr.UploadButton(
                        "Upload a photo", file_types=["image"], min_width=120
                    )
                    scene = gr.Button("Example scene", min_width=120)
                gr.Markdown(legend.part)
            with gr.Column(scale=6, min_width=320):
                gr.Markdown("### Point by point\nClick on the drawing to ask for a point of it.")
                with gr.Row():
                    sketch_points = gr.Image(elem_id="sketch-points", min_width=140, **picture)
                    photo_points = gr.Image(elem_id="photo-points", min_width=140, **picture)
                forget = gr.Button("Forget my points", size="sm")
                gr.Markdown(legend.points)
        with gr.Column(visible=False) as maps_column:
            gr.Markdown(f"### What the features see\n{MAPS}")
            with gr.Row():
                maps = []
                for number, name in enumerate(demonstration.map_names):
                    with gr.Column(min_width=260):
                        gr.Markdown(f"**{name}**")
                        maps.append(gr.Image(elem_id=f"map-{number}", **picture))

        columns = [first_results, photo_row, maps_column]
        results = [classes, similar, keys, part, sketch_points, photo_points, *maps]

        def show(
            drawn: str | None, chosen: Photo | None, asked: list[tuple[float, float]]
        ) -> list[Any]:
            start = time.perf_counter()
            place = chosen or example_scene
            try:
                answer = demonstration.answer(decode_canvas(drawn or BLANK), place, asked)
            except PictureError as problem:
                hidden = [gr.update(visible=False)] * len(columns)
                return [str(problem), *hidden, *[gr.skip()] * len(results)]
            seconds = time.perf_counter() - start
            return [
                f"Answered in {seconds:.2f} s.",
                *[gr.update(visible=True)] * len(columns),
                dict(answer.classes),
                [(image, f"{name}, {score:.2f}") for _, name, score, image in answer.similar],
                [key for key, *_ in answer.similar],
                answer.part,
                answer.sketch_points,
                answer.photo_points,
                *answer.maps.values(),
            ]

        def take_drawing(path: str) -> Any:
            return _or_warning(lambda: encode_canvas(read_upload(path)))

        def take_example() -> str:
            return encode_canvas(example_sketch(random.choice(concepts)))

        def take_photo(path: str) -> Any:
            return _or_warning(lambda: demonstration.photo(read_upload(path)))

        def take_similar(shown: list[str], event: gr.SelectData) -> Any:
            return _or_warning(lambda: demonstration.photo(read_upload(shown[event.index])))

        def take_point(drawn: str, asked: list[tuple[float, float]], event: gr.SelectData) -> Any:
            x, y = (float(value) for value in event.index)
            return _or_warning(lambda: add_point(asked, (x, y), decode_canvas(drawn)))

        # One at a time, whoever asks: answers would only share the processor otherwise.
        turn: dict[str, Any] = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "show_progress": "hidden",
        }
        ask: dict[str, Any] = {
            "fn": show,
            "inputs": [drawing, photo, points],
            "outputs": [status, *columns, *results],
            **turn,
            "show_progress": "minimal",
            "show_progress_on": status,
        }
        drawing.input(**ask, trigger_mode="always_last")
        for button, function, inputs, output in (
            (example.click, take_example, [], drawing),
            (drawing_file.upload, take_drawing, [drawing_file], drawing),
            (photo_file.upload, take_photo, [photo_file], photo),
            (scene.click, lambda: None, [], photo),
            (similar.select, take_similar, [keys], photo),
            (sketch_points.select, take_point, [drawing, points], points),
            (forget.click, list, [], points),
        ):
            button(function, inputs, output, **turn).success(**ask)
    return page


def _or_warning(work: Callable[[], Any]) -> Any:
    """What ``work`` returns; a problem is shown as a message, and all stays as it was."""
    try:
        return work()
    except PictureError as problem:
        gr.Warning(str(problem), title="This does not work")
        return gr.skip()
