"""Commands around indexes of pictures: ``index build|add|search|merge|begin``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from sketchfusion_plugins.cli.common import (
    BatchOption,
    CacheLimitOption,
    CacheOption,
    DeviceOption,
    DtypeOption,
    InputsArgument,
    JsonLinesOption,
    JsonOption,
    ModelOption,
    SizeOption,
    StrictOption,
    WeightsOption,
    choose_device,
    end_with,
    errors_in_one_line,
    keep_foundations,
)

IndexOption = Annotated[Path, typer.Option("--index", help="Folder of the index.")]
MovedOption = Annotated[
    str | None, typer.Option("--model", help="Where the index's model lies, if it was moved.")
]


def build(
    inputs: InputsArgument,
    out: Annotated[Path, typer.Option(help="Folder of the index; goes on with what is there.")],
    model: ModelOption,
    kind: Annotated[
        Literal["flat", "ivf", "ivfpq", "hnsw"],
        typer.Option(
            help="flat is exact; ivf and hnsw are for hundreds of thousands, ivfpq for millions."
        ),
    ] = "flat",
    size: SizeOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    weights: WeightsOption = "pretrained",
    cache: CacheOption = None,
    cache_limit: CacheLimitOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Describe pictures and put them into a new index; a second run goes on where one stopped.

    Pictures that the index holds are not described again: changed or deleted ones stay in it as
    they were. Build a new index for those.

    Example: sketchfusion index build photos --out photos.index --model sketchfusion/tiny
    """
    with errors_in_one_line():
        from sketchfusion_plugins.inference.gallery import GalleryModel, add_pictures
        from sketchfusion_plugins.inference.models import default_size, open_model
        from sketchfusion_plugins.inference.picture_files import list_pictures
        from sketchfusion_plugins.inference.sharding import Ranks
        from sketchfusion_plugins.problems import Problems

        problems = Problems(strict)
        paths = list_pictures(inputs, problems)
        opened = open_model(model, weights=weights, device=choose_device(device), dtype=dtype)
        keep_foundations(opened, cache, cache_limit)
        described = GalleryModel.of(opened, model, weights, size or default_size(model))
        with Ranks.from_environment() as ranks:
            added, total = add_pictures(
                out,
                opened,
                described,
                paths,
                problems,
                kind=kind,
                batch_size=batch_size,
                ranks=ranks,
            )
        if ranks.is_first and not total:
            raise OSError(f"none of {len(paths)} files is a picture: {problems.first}")
    if ranks.is_first:
        _print_counts(out, added, total, len(problems.found), as_json)
        end_with(problems)


def add(
    inputs: InputsArgument,
    index: IndexOption,
    model: MovedOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    cache: CacheOption = None,
    cache_limit: CacheLimitOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Put more pictures into an index, described by the model that it was built with.

    Pictures that it holds are not described again: changed or deleted ones stay in it as they were.

    Example: sketchfusion index add new-photos --index photos.index
    """
    with errors_in_one_line():
        from sketchfusion_plugins.index.manifest import Manifest
        from sketchfusion_plugins.inference.gallery import GalleryModel, add_pictures
        from sketchfusion_plugins.inference.picture_files import list_pictures
        from sketchfusion_plugins.inference.sharding import Ranks
        from sketchfusion_plugins.problems import Problems

        problems = Problems(strict)
        paths = list_pictures(inputs, problems)
        described = GalleryModel.read(index)
        opened = described.open(choose_device(device), dtype, model)
        keep_foundations(opened, cache, cache_limit)
        with Ranks.from_environment() as ranks:
            added, total = add_pictures(
                index,
                opened,
                described,
                paths,
                problems,
                kind=Manifest.read(index).kind,
                batch_size=batch_size,
                ranks=ranks,
            )
    if ranks.is_first:
        _print_counts(index, added, total, len(problems.found), as_json)
        end_with(problems)


def search(
    inputs: InputsArgument,
    index: IndexOption,
    top: Annotated[int, typer.Option(min=1, help="Pictures wanted for each query.")] = 10,
    model: MovedOption = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    strict: StrictOption = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Find the pictures of an index that are most similar to sketches.

    Example: sketchfusion index search sketch.png --index photos.index --top 5
    """
    with errors_in_one_line():
        from sketchfusion_plugins.inference.gallery import GalleryModel, search_pictures
        from sketchfusion_plugins.inference.picture_files import list_pictures
        from sketchfusion_plugins.problems import Problems

        problems = Problems(strict)
        paths = list_pictures(inputs, problems)
        described = GalleryModel.read(index)
        opened = described.open(choose_device(device), dtype, model)
        for path, hits in search_pictures(
            index, opened, described, paths, problems, top=top, batch_size=batch_size
        ):
            if as_json:
                found = [{"path": hit.key, "score": hit.score} for hit in hits]
                typer.echo(json.dumps({"query": str(path), "hits": found}))
                continue
            from rich.console import Console

            from sketchfusion_plugins.cli.tables import rows_table

            rows = [(rank, f"{hit.score:.3f}", hit.key) for rank, hit in enumerate(hits, 1)]
            Console().print(rows_table(str(path), ("rank", "similarity", "picture"), rows))
    end_with(problems)


def merge(
    indexes: Annotated[list[Path], typer.Argument(help="Folders of the indexes, two at least.")],
    out: Annotated[Path, typer.Option(help="Folder of the new index; they stay as they are.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse pictures that several indexes hold.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make one index of several that were built by the same model, on other machines for instance.

    Of a picture that several hold, one vector is kept, and the picture is named.

    Example: sketchfusion index merge a.index b.index --out all.index
    """
    with errors_in_one_line():
        from sketchfusion_plugins.index.merging import merge_indexes
        from sketchfusion_plugins.inference.gallery import is_same_model
        from sketchfusion_plugins.problems import Problems

        merged = merge_indexes(indexes, out, strict=strict, progress=True, same_model=is_same_model)
        problems = Problems(False)
        for key in merged.duplicates:
            problems.add(Path(key), ValueError("several indexes hold it; one vector is kept."))
    _print_counts(out, merged.rows, merged.rows, len(merged.duplicates), as_json)
    end_with(problems)


def begin(
    like: Annotated[Path, typer.Option(help="Index of kind ivf or ivfpq that has learned lists.")],
    out: Annotated[Path, typer.Option(help="Folder of the new index.")],
    as_json: JsonOption = False,
) -> None:
    """Begin an empty index with another one's model and learned lists; build and add extend it.

    Indexes that share lists are merged without coding their pictures anew.

    Example: sketchfusion index begin --like a.index --out b.index
    """
    with errors_in_one_line():
        from sketchfusion_plugins.index.merging import begin_like

        begin_like(like, out)
    if as_json:
        typer.echo(json.dumps({"index": str(out), "pictures": 0}))
    else:
        typer.echo(f"{out} is empty and shares the lists of {like}.")


def _print_counts(index: Path, added: int, total: int, skipped: int, as_json: bool) -> None:
    if as_json:
        counts = {"added": added, "pictures": total, "skipped": skipped}
        typer.echo(json.dumps({"index": str(index), **counts}))
    else:
        typer.echo(f"{added} pictures added; {index} holds {total}.")
