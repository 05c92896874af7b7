"""The speed benchmark runs to its end on random foundations, and compares what it says it does."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
MODULES = ("models", "plain", "report", "rows", "speed", "timing")
KEYS = {
    *("a", "b", "b2", "c", "d", "d2", "f", "f2", "k1", "k2"),
    *(f"e{number}" for number in range(10)),
    *(f"g{number}" for number in range(1, 7)),
    *(f"{letter}{number}" for letter in "ht" for number in range(1, 5)),
}


@pytest.fixture(scope="module")
def speed() -> Iterator[ModuleType]:
    """The script, which lies outside every package."""
    before = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("speed")
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture(scope="module")
def report(speed: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("speed") / "tiny"
    options = ["--model", "tiny", "--sizes", "32", "--batches", "1", "--repeats", "1"]
    options += ["--smoke", "--rows", "all", "--device", "cpu", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["speed.py", *options])
        speed.main()
    assert out.with_suffix(".png").stat().st_size > 10_000
    text = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "### tiny, 32 px, batch 1" in text
    result: dict[str, Any] = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    return result


def test_every_row_is_measured(report: dict[str, Any]) -> None:
    (case,) = report["cases"]
    rows = {row["row"]: row for row in case["rows"]}
    assert set(rows) == KEYS
    assert all(len(row["seconds"]) == 1 and row["median_s"] > 0 for row in rows.values())
    assert all(row["gflop"] > 0 for row in rows.values())
    assert rows["b"]["times_faster_than_b"] == rows["f"]["over_floor"] + 1 == 1
    # Two copies of the image through VAE and UNet, one through CLIP; the last block of the UNet.
    assert rows["b2"]["gflop"] < rows["b"]["gflop"] < rows["a"]["gflop"] < 2 * rows["b2"]["gflop"]
    assert rows["f"]["gflop"] < rows["c"]["gflop"] < rows["b2"]["gflop"]
    assert rows["k1"]["gflop"] == rows["c"]["gflop"]
    assert rows["d"]["weights_mib"] < 0.6 * rows["c"]["weights_mib"]


def test_fused_attention_is_counted(speed: ModuleType) -> None:
    timing = sys.modules["timing"]
    query = torch.randn(2, 4, 64, 32, requires_grad=True)

    def attend(_: Any) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, query, query)

    row = timing.Row("x", "", attend, grad=True)
    forward = timing.run_once(row, query, count=True)[3]
    # Two products of [64, 32] and [32, 64] per image and head, a multiply-add counting two.
    assert forward == 2 * 4 * (2 * 2 * 64 * 64 * 32)
    both = timing.Row("x", "", lambda image: attend(image).sum().backward(), grad=True)
    assert timing.run_once(both, query, count=True)[3] > 2 * forward


def test_ours_equals_the_plain_calls(report: dict[str, Any]) -> None:
    equal, close = report["cases"][0]["checks"]
    assert equal.endswith(": equal to 0.0001.")
    assert close.endswith(": at least 0.999.")


def test_a_wrong_feature_is_reported(speed: ModuleType) -> None:
    device = torch.device("cpu")
    fp32 = speed.build_models("tiny", "float32", device)
    bf16 = speed.build_models("tiny", "bfloat16", device, fp32.encoder)
    with torch.no_grad():
        fp32.whole_unet.conv_in.weight = torch.nn.Parameter(fp32.whole_unet.conv_in.weight * 1.01)
        bf16.encoder.injector.projections["up2"].bias = torch.nn.Parameter(torch.full((96,), 3.0))
    equal, close = speed._checks(fp32, bf16, torch.zeros(1, 3, 32, 32))
    assert "NOT EQUAL" in equal
    assert "BELOW" in close
