"""ONNX: what torch's exporter needs to know of the one operator that is our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sketchfusion_plugins.noise import draw_noise


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Translation of the seeded noise, for ``torch.onnx.export``.

    >>> torch.onnx.export(model, (image,), "model.onnx", dynamo=True,
    ...                   custom_translation_table=onnx_translations())

    The noise becomes a constant of the file, since it depends on seed and size alone. Images have
    one size; batches may vary as those of `torch.export` do.

    Raises:
        ModuleNotFoundError: onnxscript is not installed, which torch's exporter needs too.
    """
    from onnx import numpy_helper
    from onnxscript import opset18

    def seeded_noise(like: Any, draws: int, seed: int) -> Any:
        size = [int(side) for side in list(like.shape)[1:]]
        latents = torch.empty(1, *size, device="cpu")
        noise = draw_noise(latents, draws, seed).numpy()
        return opset18.Constant(value=numpy_helper.from_array(noise))

    return {torch.ops.sketchfusion.seeded_noise.default: seeded_noise}
