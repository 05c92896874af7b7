"""Bad sketches, tables, checkpoints and configurations: one ValueError that names the file."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sketchfusion_plugins import CheckpointError, SketchFusionEncoder
from sketchfusion_plugins.adapter_file import WEIGHTS_FILE, read_config, read_image_size, read_task
from sketchfusion_plugins.checkpoint import load_adapters
from sketchfusion_plugins.config import (
    AggregationConfig,
    DiffusionConfig,
    EncoderConfig,
    InjectionConfig,
    SemanticConfig,
)
from sketchfusion_plugins.data.compact_strokes import read_compact
from sketchfusion_plugins.data.psc6k import read_pairs
from sketchfusion_plugins.data.quickdraw import QuickDraw
from sketchfusion_plugins.data.spg import load_spg, write_spg
from sketchfusion_plugins.data.strokes import StrokeStyle

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For examples that hypothesis makes; each overwrites the last."""
    return tmp_path_factory.mktemp("sketches")


def _cut(data: bytes, place: int, value: int, kept: float) -> bytes:
    changed = bytearray(data)
    changed[place % len(changed)] = value
    return bytes(changed[: round(kept * len(changed))] if kept < 0.3 else changed)


# --- ndjson ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawing", "named"),
    [
        ("[]", "at least one point"),
        ("[[[], []]]", "at least one point"),
        ("[[[1, 2], [1]]]", "inhomogeneous"),
        ("[[[1], [1], [1], [1]]]", "shape"),
        ("[[[NaN], [1]]]", "finite"),
        ("[[[Infinity], [1]]]", "finite"),
        ("[[[1e7], [1]]]", "1e\\+06"),
        (f"[[[{'9' * 400}], [1]]]", "too large"),
        ('[[["a"], [1]]]', "could not convert"),
        ("[[[null], [{}]]]", "drawing"),
        ("{}", "drawing"),
        ("[" * 100_000 + "]" * 100_000, "drawing"),
    ],
)
def test_bad_drawing_names_its_line(drawing: str, named: str, tmp_path: Path) -> None:
    good = '{"key_id": "7", "drawing": [[[1, 2], [3, 4]]]}\n'
    bad = f'{{"key_id": "8", "drawing": {drawing}}}\n'
    (tmp_path / "cat.ndjson").write_text(good + bad + good)
    data = QuickDraw(tmp_path)
    with pytest.raises(ValueError, match=rf"(?s)cat\.ndjson, line 2.*{named}"):
        data[1]
    assert data[0]["key"] == data[2]["key"] == "cat/7"


def test_a_single_point_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "cat.ndjson").write_text('{"key_id": "7", "drawing": [[[5], [5]]]}\n')
    image = QuickDraw(tmp_path)[0]["image"]
    assert image.min() < 0 and image.isfinite().all()


@given(record=JSON, key=st.sampled_from(["drawing", "key_id", "other"]))
@QUICK
def test_any_json_line_is_a_drawing_or_a_valueerror(folder: Path, record: Any, key: str) -> None:
    (folder / "ndjson").mkdir(exist_ok=True)
    values = {"key_id": "1", "drawing": [[[1], [2]]], key: record}
    (folder / "ndjson" / "cat.ndjson").write_text(json.dumps(values) + "\n")
    data = QuickDraw(folder / "ndjson", StrokeStyle(16))
    try:
        assert data[0]["image"].isfinite().all()
    except ValueError as error:
        assert "cat.ndjson, line 1" in str(error)


# --- npy and npz -------------------------------------------------------------------------------


def _bytes(save: Callable[..., None], *values: Any, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, *values, **arrays)
    return file.getvalue()


BITMAPS = _bytes(np.save, np.zeros((3, 784), np.uint8))
ARRAYS: dict[str, Any] = {
    "xy": np.arange(12, dtype=np.int16).reshape(6, 2),
    "stroke": np.array([0, 0, 1, 0, 0, 1]),
    "offset": np.array([0, 3, 6]),
    "part": np.array([0, 0, 1, 0, 0, 1]),
}
COMPACT = _bytes(np.savez, **ARRAYS)


class Harmful:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/sketchfusion-was-harmed"),)


@pytest.mark.parametrize("data", [COMPACT, b"PK\x03\x04junk", b"", b"\x93NUMPY", BITMAPS[:-1]])
def test_no_bitmaps(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "cat.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"cat\.npy"):
        QuickDraw(tmp_path)


def test_pickled_arrays_are_not_unpickled(tmp_path: Path) -> None:
    harm = np.array([Harmful()], dtype=object)
    (tmp_path / "cat.npy").write_bytes(_bytes(np.save, harm))
    with pytest.raises(ValueError, match=r"cat\.npy"):
        QuickDraw(tmp_path)
    (tmp_path / "a.npz").write_bytes(_bytes(np.savez, **{**ARRAYS, "xy": harm}))
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_compact(tmp_path / "a.npz")
    assert not Path("/tmp/sketchfusion-was-harmed").exists()


@given(place=st.integers(0, 200), value=st.integers(0, 255), kept=st.floats(0, 1))
@QUICK
def test_damaged_bitmaps(folder: Path, place: int, value: int, kept: float) -> None:
    (folder / "npy").mkdir(exist_ok=True)
    path = folder / "npy" / "cat.npy"
    path.write_bytes(_cut(BITMAPS, place, value, kept))
    try:
        QuickDraw(folder / "npy")[0]
    except ValueError as error:
        assert "cat.npy" in str(error)


@given(place=st.integers(0, len(COMPACT)), value=st.integers(0, 255), kept=st.floats(0, 1))
@QUICK
def test_damaged_strokes(folder: Path, place: int, value: int, kept: float) -> None:
    path = folder / "strokes.npz"
    path.write_bytes(_cut(COMPACT, place, value, kept))
    try:
        assert len(read_compact(path, parts=True)) == 2
    except ValueError as error:
        assert "strokes.npz" in str(error)


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": np.array([0.0, 3.0])},
        {"offset": np.array([0])},
        {"offset": np.array(3)},
        {"stroke": np.array([0, 1])},
        {"xy": np.zeros((6, 3))},
        {"xy": np.array("text")},
        {"xy": np.zeros((6, 2), dtype=complex)},
    ],
)
def test_arrays_that_do_not_fit(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(_bytes(np.savez, **{**ARRAYS, **changes}))
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_compact(tmp_path / "a.npz")


@given(place=st.integers(0, 5), values=st.lists(st.integers(-9, 9), min_size=3, max_size=3))
@QUICK
def test_any_offsets_and_strokes(folder: Path, place: int, values: list[int]) -> None:
    path = folder / "offsets.npz"
    stroke = ARRAYS["stroke"].copy()
    stroke[place] = values[0]
    path.write_bytes(_bytes(np.savez, **{**ARRAYS, "offset": np.array(values), "stroke": stroke}))
    drawings = read_compact(path)
    for index, (start, stop) in enumerate(itertools.pairwise(values)):
        fits = 0 <= start < stop <= 6 and (np.diff(stroke[start:stop]) >= 0).all()
        assert (index not in drawings.faults) == fits


def test_member_that_is_no_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ARRAYS:
            archive.writestr(f"{name}.npy", "no array")
    with pytest.raises(ValueError, match=r"a\.npz.*no array"):
        read_compact(tmp_path / "a.npz")


# --- csv ---------------------------------------------------------------------------------------


def _spg(folder: Path, table: str, parts: str = '{"pig": ["ear", "body"]}', **arrays: Any) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "spg_strokes.npz", **{**ARRAYS, **arrays})
    (folder / "spg.csv").write_bytes(table.encode(errors="surrogateescape"))
    (folder / "parts.json").write_text(parts)
    return folder


@pytest.mark.parametrize(
    ("rows", "parts", "arrays"),
    [
        ("9,pig,train", None, {}),
        ("-1,pig,train", None, {}),
        (f"{'9' * 5000},pig,train", None, {}),
        ("0,pig", None, {}),
        ("\udcff,pig,train", None, {}),
        (f'0,pig,"{"x" * 200_000}"', None, {}),
        ("0,pig,train", '{"pig": "ear"}', {}),
        ("0,pig,train", "[" * 100_000, {}),
        ("0,pig,train", None, {"offset": np.array([0, 0, 6])}),
        ("0,pig,train", None, {"xy": np.full((6, 2), 1e9)}),
        ("0,../pig,train", '{"../pig": ["ear", "body"]}', {}),
        ("0,/pig,train", '{"/pig": ["ear", "body"]}', {}),
    ],
)
def test_bad_spg_writes_nothing(
    rows: str, parts: str | None, arrays: dict[str, Any], tmp_path: Path
) -> None:
    options = {} if parts is None else {"parts": parts}
    source = _spg(tmp_path / "source", f"index,class,split\n{rows}\n", **options, **arrays)
    with pytest.raises(ValueError, match=r"spg\.csv|spg_strokes\.npz|parts\.json"):
        write_spg(source, tmp_path / "out", progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@given(table=st.text(alphabet='index,class split\n"07pgtra;\0', max_size=60))
@QUICK
def test_any_spg_table(folder: Path, table: str) -> None:
    source = _spg(folder / "spg", "index,class,split\n" + table)
    try:
        load_spg(source)
    except ValueError as error:
        assert str(source) in str(error)


HEADER = "photo,sketch,class,XA,YA,XB,YB\n"
ROW = "photo/tx/cat/a.jpg,sketch/tx/cat/a.png,cat,1;2,1;2,3;4,3;4\n"


@pytest.mark.parametrize(
    "row",
    [
        "photo/tx/cat/a.jpg\n",
        ROW.replace("1;2,", "nan;2,", 1),
        ROW.replace("1;2,", "1;x,", 1),
        ROW.replace("1;2,", "1,", 1),
        ROW.replace("photo/", "../photo/"),
        ROW.replace("photo/", "/photo/"),
        ROW.replace("cat,", f'"{"x" * 200_000}",', 1),
        "\udcff" + ROW,
    ],
)
def test_bad_key_points(row: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes((HEADER + ROW + row).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"pairs\.csv"):
        read_pairs(path)


@given(text=st.text(alphabet='photsekc/.;,019na\n"', max_size=80))
@QUICK
def test_any_key_points(folder: Path, text: str) -> None:
    path = folder / "pairs.csv"
    path.write_text(HEADER + ROW + text)
    try:
        assert read_pairs(path)
    except ValueError as error:
        assert "pairs.csv" in str(error)


# --- safetensors -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(build: Any) -> SketchFusionEncoder:
    return build(seed=1)  # type: ignore[no-any-return]


@pytest.fixture
def saved(encoder: SketchFusionEncoder, tmp_path: Path) -> Path:
    encoder.save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters" / WEIGHTS_FILE


@pytest.fixture(scope="module")
def weights(encoder: SketchFusionEncoder, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("weights")
    encoder.save_pretrained(folder)
    return (folder / WEIGHTS_FILE).read_bytes()


def _headed(header: Any, data: bytes = b"\0" * 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _one(kind: str, size: int) -> bytes:
    return _headed({"a": {"dtype": kind, "shape": [1], "data_offsets": [0, size]}}, b"\0" * size)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**63),
        _headed(b"{"),
        _headed([1]),
        _headed({"a": {"dtype": "F32", "shape": [99], "data_offsets": [0, 64]}}),
        _headed({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 64]}}),
        _headed({"a": {"dtype": "NONE", "shape": [1], "data_offsets": [0, 4]}}),
        _one("C64", 8),
        _one("F8_E8M0", 1),
        _one("U64", 8),
        b"\x80\x04cos\nsystem\n.",
    ],
)
def test_no_adapters(data: bytes, encoder: SketchFusionEncoder, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    for read in (read_config, read_task, read_image_size, lambda p: load_adapters(encoder, p)):
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            read(path)


@given(place=st.integers(0, 6000), value=st.integers(0, 255), kept=st.floats(0, 1))
@settings(QUICK, max_examples=40)
def test_damaged_adapters_load_whole_or_not_at_all(
    folder: Path, encoder: SketchFusionEncoder, weights: bytes, place: int, value: int, kept: float
) -> None:
    path = folder / "a.safetensors"
    path.write_bytes(_cut(weights, place, value, kept))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    try:
        load_adapters(encoder, path)
    except CheckpointError as error:
        assert "a.safetensors" in str(error)
        after = encoder.state_dict()
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@given(
    key=st.sampled_from(["format", "format_version", "prefix", "task", "foundations", "config"]),
    value=JSON,
)
@settings(QUICK, max_examples=25)
def test_any_description(
    folder: Path, encoder: SketchFusionEncoder, weights: bytes, key: str, value: Any
) -> None:
    path = folder / "b.safetensors"
    size = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8 : 8 + size])
    description = json.loads(header["__metadata__"]["sketchfusion"])
    header["__metadata__"]["sketchfusion"] = json.dumps({**description, key: value})
    path.write_bytes(_headed(header, weights[8 + size :]))
    for strict in (True, False):
        for read in (
            lambda: load_adapters(encoder, path, strict=strict),  # noqa: B023
            lambda: (read_config(path), read_task(path), read_image_size(path)),
        ):
            try:
                read()
            except CheckpointError as error:
                assert "b.safetensors" in str(error)


def test_other_kinds_of_numbers_missing_and_extra_keys(
    saved: Path, encoder: SketchFusionEncoder
) -> None:
    state = load_file(saved)
    size = struct.unpack("<Q", saved.read_bytes()[:8])[0]
    metadata = json.loads(saved.read_bytes()[8 : 8 + size])["__metadata__"]
    name = "aggregator.branch_logits"
    for changed, named in (
        ({**state, name: state[name].long()}, r"int64, expected torch\.float32"),
        ({**state, "extra": torch.zeros(1)}, "unexpected extra"),
        ({key: tensor for key, tensor in state.items() if key != name}, f"missing {name}"),
        ({**state, name: state[name][:1]}, "expected"),
    ):
        save_file(changed, saved, metadata)
        with pytest.raises(CheckpointError, match=named):
            load_adapters(encoder, saved)
    # Another precision is no other kind: adapters trained in bfloat16 load into float32.
    save_file({key: tensor.bfloat16() for key, tensor in state.items()}, saved, metadata)
    assert load_adapters(encoder, saved) == []


# --- configurations ----------------------------------------------------------------------------

PARTS = {
    "diffusion": DiffusionConfig,
    "semantic": SemanticConfig,
    "injection": InjectionConfig,
    "aggregation": AggregationConfig,
}
FIELDS = [(None, field.name) for field in dataclasses.fields(EncoderConfig)] + [
    (part, field.name) for part, kind in PARTS.items() for field in dataclasses.fields(kind)
]
# Values that are near to what is expected are likelier to slip through.
NEAR = st.sampled_from(
    [0, 1, -1, 8, 8.0, 2**70, True, "8", "true", "up0", [], ["up0"], ["up0", 3], [8, 8], [8.0]]
)


@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON | NEAR, min_size=1, max_size=3))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_json_is_a_config_or_a_valueerror(changes: dict[Any, Any]) -> None:
    values: dict[str, Any] = json.loads(json.dumps(EncoderConfig().to_dict()))
    for (part, name), value in changes.items():
        if part is None:
            values[name] = value
        elif isinstance(values[part], dict):
            values[part][name] = value
    try:
        config = EncoderConfig.from_dict(values)
    except ValueError:
        return
    # What is accepted is of the types that are declared, and survives another round.
    again = EncoderConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert type(config.in_channels) is int and type(config.freeze_foundations) is bool
    if config.aggregation is not None:
        assert type(config.aggregation.out_channels) is int
        assert config.aggregation.bottleneck % config.aggregation.norm_groups == 0


@given(values=JSON)
@QUICK
def test_any_json_at_all(values: Any) -> None:
    try:
        EncoderConfig.from_dict(values)
    except ValueError as error:
        assert str(error)
