"""Exported to ONNX, a model answers as it does in torch; onnxruntime is the other side."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
from torch import nn

import sketchfusion_plugins  # noqa: F401, registers the models
from sketchfusion_plugins.onnx_export import onnx_translations


@pytest.mark.parametrize("ensemble", [1, 3])
def test_batches_of_a_model_equal_torch_s(ensemble: int, tmp_path: Path) -> None:
    model: nn.Module = timm.create_model(
        "sketchfusion_tiny",
        pretrained=True,
        num_classes=5,
        changes={"diffusion__ensemble": ensemble, "diffusion__seed": 7},
    ).eval()
    image = torch.rand(2, 3, 96, 64) * 2 - 1
    torch.onnx.export(
        model,
        (image,),
        str(tmp_path / "model.onnx"),
        dynamo=True,
        custom_translation_table=onnx_translations(),
        dynamic_shapes=({0: torch.export.Dim("batch", max=63 // ensemble)},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for batch in (image, image[:1], torch.rand(5, 3, 96, 64) * 2 - 1):
        with torch.no_grad():
            expected = model(batch)
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
