"""The command ``features``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sketchfusion_plugins.cli.common import (
    BatchOption,
    CacheLimitOption,
    CacheOption,
    DeviceOption,
    DtypeOption,
    InputsArgument,
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


def features(
    inputs: InputsArgument,
    model: ModelOption,
    out: Annotated[Path, typer.Option(help="File to write: .jsonl, .parquet or .safetensors.")],
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
    """Write one descriptor per picture: a retrieval model's embedding, else pooled features.

    A .jsonl file is continued: pictures in it are not described again. One with relative paths is
    continued in the folder that they start from. Launched by torchrun or accelerate, the pictures
    are shared out among the processes.

    Example: sketchfusion features drawings --model sketchfusion/tiny --out features.jsonl
    """
    with errors_in_one_line():
        from contextlib import ExitStack

        from sketchfusion_plugins.inference.descriptor_files import (
            DescriptorWriter,
            check_target,
            fitting_paths,
            known_paths,
        )
        from sketchfusion_plugins.inference.descriptor_tags import (
            descriptor_tag,
            model_fingerprint,
            model_settings,
        )
        from sketchfusion_plugins.inference.models import default_size, open_model
        from sketchfusion_plugins.inference.picture_files import list_pictures
        from sketchfusion_plugins.inference.sharding import Ranks, describe_together, forget_parts
        from sketchfusion_plugins.problems import Problems

        check_target(out)
        problems = Problems(strict)
        listed = list_pictures(inputs, problems)
        paths = fitting_paths(out, listed, problems)
        side = size or default_size(model)
        opened = open_model(model, weights=weights, device=choose_device(device), dtype=dtype)
        keep_foundations(opened, cache, cache_limit)
        written = 0
        fingerprint = descriptor_tag(model_fingerprint(opened), model_settings(opened), side)
        with Ranks.from_environment() as ranks:
            with ExitStack() as stack:
                # Only the first process writes.
                writer = DescriptorWriter(out, fingerprint) if ranks.is_first else None
                known = (
                    stack.enter_context(writer).known if writer else known_paths(out, fingerprint)
                )
                missing = [path for path in paths if str(path) not in known]
                for readable, descriptors in describe_together(
                    ranks,
                    opened,
                    missing,
                    side,
                    problems,
                    result=out,
                    fingerprint=fingerprint,
                    batch_size=batch_size,
                ):
                    assert writer is not None
                    writer.add(readable, descriptors)
                    written += len(readable)
            forget_parts(ranks, out)
        present = len(paths) - len(missing)
        if ranks.is_first and not written and not present:
            raise OSError(f"none of {len(listed)} files is a picture: {problems.first}")
    if not ranks.is_first:
        return
    if as_json:
        counts = {"written": written, "present": present, "skipped": len(problems.found)}
        typer.echo(json.dumps({"out": str(out), **counts}))
    else:
        kept = f", {present} were there" if present else ""
        typer.echo(f"{written} descriptors written to {out}{kept}.")
    end_with(problems)
