"""The command ``analyse``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sketchfusion_plugins.cli.common import (
    BatchOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    SizeOption,
    StrictOption,
    WeightsOption,
    choose_device,
    end_with,
    errors_in_one_line,
)

if TYPE_CHECKING:
    from sketchfusion_plugins.spectra import Spectrum


def analyse(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders with pictures at any depth, one per kind, such as sketches."),
    ],
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="Folder for spectra.csv, .png and .svg.")],
    control: Annotated[
        bool,
        typer.Option("--control", help="Measure the same model with random weights, too."),
    ] = False,
    size: SizeOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    weights: WeightsOption = "pretrained",
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure at which frequencies a model's features live: the paper's pilot study.

    Every level of Stable Diffusion, CLIP's tokens, fused levels and the aggregated map.

    Example: sketchfusion analyse drawings photos --model sketchfusion/tiny --out spectra
    """
    with errors_in_one_line():
        from sketchfusion_plugins.inference.models import (
            config_of,
            default_size,
            fresh_encoder,
            open_model,
        )
        from sketchfusion_plugins.inference.picture_files import check_targets
        from sketchfusion_plugins.problems import Problems
        from sketchfusion_plugins.spectra import FILES, pictures_by_kind, study_pictures
        from sketchfusion_plugins.viz.figures import check_figure
        from sketchfusion_plugins.wrappers import find_encoder

        kinds = pictures_by_kind(folders)
        targets = [out / name for name in FILES]
        check_figure(targets[-1])
        check_targets(targets, [path for paths in kinds.values() for path in paths])
        config = config_of(model, weights)
        place = choose_device(device)
        opened = open_model(model, weights=weights, device=place, dtype=dtype)
        encoders = {"model": find_encoder(opened)[1]}
        if control:
            # Injection too: at zero, as it starts, the fused levels would be Stable Diffusion's.
            changed = config.replace(weights="random", injection__init="official")
            if dtype is not None:
                changed = changed.replace(foundation_dtype=dtype)
            encoders["control"] = fresh_encoder(changed).eval().to(place)
        problems = Problems(strict)
        study = study_pictures(
            encoders,
            kinds,
            size or default_size(model),
            problems,
            model=model,
            batch_size=batch_size,
        )
        paths = study.write(out)
    if as_json:
        typer.echo(json.dumps({"out": [str(path) for path in paths], **study.as_json()}))
    else:
        from rich.console import Console

        from sketchfusion_plugins.cli.tables import rows_table

        texts = []
        for kind, own in study.spectra.items():
            for name, spectrum in own["model"].items():
                shares = [_share(maps[name]) for maps in own.values()]
                noise = _share(spectrum) and f"{spectrum.white_noise:.3f}"
                grid = f"{spectrum.grid[0]} x {spectrum.grid[1]}"
                texts.append((kind, name, grid, *shares, noise, spectrum.count))
        heads = ("pictures", "features", "grid", *encoders, "white noise", "n")
        title = f"Energy below a quarter of Nyquist, {model} at {study.size} px"
        Console().print(rows_table(title, heads, texts))
        typer.echo(f"Written: {', '.join(str(path) for path in paths)}")
    end_with(problems)


def _share(spectrum: Spectrum) -> str:
    """Empty where the grid is too small."""
    return "" if spectrum.low_share is None else f"{spectrum.low_share.value:.3f}"
