"""Commands on a sketch and a photo: ``match`` and ``segment``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sketchfusion_plugins.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    SizeOption,
    WeightsOption,
    choose_device,
    errors_in_one_line,
    working,
)

SketchArgument = Annotated[Path, typer.Argument(help="Sketch, dark on white.")]
PhotoArgument = Annotated[Path, typer.Argument(help="Photo.")]


def match(
    sketch: SketchArgument,
    photo: PhotoArgument,
    model: ModelOption,
    points: Annotated[
        list[str] | None,
        typer.Option(help="X,Y in pixels of the sketch; may be given several times."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Points to choose on the sketch's ink.")] = 8,
    mutual: Annotated[
        bool, typer.Option("--mutual", help="Choose mutual nearest neighbours instead.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Picture of the matches, .png or .svg.")] = None,
    size: SizeOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    weights: WeightsOption = "pretrained",
    as_json: JsonOption = False,
) -> None:
    """Find a sketch's points in a photo; all points are in the pictures' own pixels.

    Example: sketchfusion match cat.png photo.jpg --model sketchfusion/tiny --points 120,80
    """
    given = [_point(text) for text in points or []]
    if given and mutual:
        raise typer.BadParameter(
            "mutual neighbours are chosen by the model; give --points or --mutual, not both.",
            param_hint="--mutual",
        )
    with errors_in_one_line(), working("matching"):
        import numpy as np
        import torch

        from sketchfusion_plugins.images import open_image
        from sketchfusion_plugins.inference.answers import match_pictures
        from sketchfusion_plugins.inference.models import default_size, open_model
        from sketchfusion_plugins.inference.picture_files import check_targets
        from sketchfusion_plugins.viz.figures import check_figure

        check_figure(out)
        check_targets([out], [sketch, photo])
        drawing, picture = open_image(sketch), open_image(photo)
        opened = open_model(model, weights=weights, device=choose_device(device), dtype=dtype)
        matches = match_pictures(
            opened,
            drawing,
            picture,
            size or default_size(model),
            points=torch.tensor(given) if given else None,
            count=count,
            mutual=mutual,
        )
        if out is not None:
            from sketchfusion_plugins.viz import draw_matches, save_figure

            save_figure(
                draw_matches(
                    np.asarray(drawing), np.asarray(picture), matches.source, matches.target
                ),
                out,
            )
    rows = list(zip(*(values.tolist() for values in matches), strict=True))
    if as_json:
        found = [{"sketch": start, "photo": end, "similarity": score} for start, end, score in rows]
        typer.echo(json.dumps({"matches": found, "out": None if out is None else str(out)}))
        return
    from rich.console import Console

    from sketchfusion_plugins.cli.tables import rows_table

    texts = [
        (f"{x:.1f}, {y:.1f}", f"{u:.1f}, {v:.1f}", f"{score:.3f}") for (x, y), (u, v), score in rows
    ]
    Console().print(rows_table("x, y in pixels", ("sketch", "photo", "similarity"), texts))


def segment(
    sketch: SketchArgument,
    photo: PhotoArgument,
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Mask to write: .png, 255 where the object is.")],
    overlay: Annotated[
        Path | None, typer.Option(help="Photo to write with the object tinted, .png.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Cosine similarity; for models that learned none."),
    ] = None,
    photo_size: Annotated[
        int | None,
        typer.Option(
            min=32, help="Side of the photo's square; larger finds smaller things. Default: --size."
        ),
    ] = None,
    size: SizeOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    weights: WeightsOption = "pretrained",
    as_json: JsonOption = False,
) -> None:
    """Find the part of a photo that a sketch denotes.

    Example: sketchfusion segment sketch.png photo.jpg --model my-adapters --out mask.png
    """
    with errors_in_one_line(), working("segmenting"):
        import numpy as np

        from sketchfusion_plugins.images import open_image
        from sketchfusion_plugins.inference.answers import segment_picture
        from sketchfusion_plugins.inference.models import default_size, open_model
        from sketchfusion_plugins.inference.picture_files import (
            check_png,
            check_targets,
            write_png,
        )
        from sketchfusion_plugins.tasks.query_segmentation import QuerySegmentation
        from sketchfusion_plugins.viz import overlay_mask

        for target in (out, overlay):
            check_png(target)
        check_targets([out, overlay], [sketch, photo])
        drawing, picture = open_image(sketch), open_image(photo)
        opened = open_model(model, weights=weights, device=choose_device(device), dtype=dtype)
        # In the command's words; what the function says names classes and arguments.
        if isinstance(opened, QuerySegmentation):
            if threshold is not None:
                raise ValueError(f"{model} has learned its threshold; leave --threshold out.")
        elif threshold is None:
            raise ValueError(
                f"{model} has learned no threshold; give a cosine similarity, -1 to 1, by "
                "--threshold. Or train a model with: sketchfusion train query_segmentation"
            )
        side = size or default_size(model)
        mask = segment_picture(opened, drawing, picture, side, threshold, photo_size).numpy()
        write_png(mask.astype(np.uint8) * 255, out)
        if overlay is not None:
            write_png(overlay_mask(np.asarray(picture), mask), overlay)
    share = float(mask.mean())
    if as_json:
        place = None if overlay is None else str(overlay)
        typer.echo(json.dumps({"out": str(out), "overlay": place, "share": share}))
    else:
        typer.echo(f"{share:.1%} of {photo} is in the mask {out}.")


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"expected X,Y in pixels, got {text!r}.", param_hint="--points"
        ) from error
    return x, y
