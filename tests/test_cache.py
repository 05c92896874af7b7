"""The feature cache: the store against damage, kills and company; the encoder against itself."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sketchfusion_plugins.cache import CachedEncoder, FeatureStore, use_cache
from sketchfusion_plugins.cache import store as store_module
from sketchfusion_plugins.cache.encoder import record_keys
from sketchfusion_plugins.encoder import FoundationOutputs, SketchFusionEncoder
from sketchfusion_plugins.files import replacing

KEY = "0123456789abcdef" * 4
MEBIBYTE = 2**20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def _key(number: int) -> str:
    return f"{number:064x}"


def _file(store: FeatureStore, key: str) -> Path:
    return store.folder / key[:2] / f"{key[2:]}.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "cache")


# --- the store ---------------------------------------------------------------------------------


def test_values_come_back_bit_for_bit(store: FeatureStore) -> None:
    odd = torch.tensor([0.1, -0.0, float("nan"), float("-inf"), 1e-45])
    tensors = {
        "single": odd,
        "half": odd.bfloat16().reshape(1, 5, 1),
        "transposed": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
        "slice": torch.arange(12).reshape(3, 4)[1],
        "scalar": torch.tensor(7, dtype=torch.int16),
        "empty": torch.empty(0, 3),
    }
    assert store.get(KEY) is None
    store.put(KEY, tensors)
    # Another object, as another process has one.
    found = FeatureStore(store.folder).get(KEY)
    assert found is not None
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        wide = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = wide[tensor.element_size()]
        assert torch.equal(found[name].view(bits), tensor.contiguous().view(bits))
    assert (store.hits, store.misses) == (0, 1)
    assert len(store) == 1
    assert store.size() == _file(store, KEY).stat().st_size


@pytest.mark.parametrize("key", ["", "a" * 63, "../" + "a" * 61, "A" * 64, "a" * 64 + "\n"])
def test_what_is_no_key_is_refused(key: str, store: FeatureStore) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        store.get(key)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        store.put(key, {"a": torch.ones(1)})


def test_limit_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1048576 bytes, got 20"):
        FeatureStore(tmp_path, 20)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "value": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "zeros": lambda data: bytes(len(data)),
    "dtype": lambda data: data.replace(b'"F32"', b'"I32"'),
    "shape": lambda data: data.replace(b"[2,8]", b"[8,2]"),
    "name": lambda data: data.replace(b'"tokens"', b'"tokenS"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_miss_that_is_reported_once_and_mended(
    damage: str, store: FeatureStore
) -> None:
    tensors = {"tokens": torch.arange(16.0).reshape(2, 8)}
    store.put(KEY, tensors)
    path = _file(store, KEY)
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert path.read_bytes() != whole
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        assert store.get(KEY) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert store.get(KEY) is None
        store.put(KEY, tensors)
        found = store.get(KEY)
    assert found is not None
    assert torch.equal(found["tokens"], tensors["tokens"])
    assert path.read_bytes() == whole


def test_a_record_under_another_key_is_damage(store: FeatureStore) -> None:
    store.put(KEY, {"a": torch.ones(4)})
    other = _file(store, _key(1))
    other.parent.mkdir()
    other.write_bytes(_file(store, KEY).read_bytes())
    with pytest.warns(UserWarning, match="is damaged"):
        assert store.get(_key(1)) is None
    assert store.get(KEY) is not None


def test_a_record_that_cannot_be_read_now_is_not_deleted(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(KEY, {"a": torch.ones(4)})

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.warns(UserWarning, match="Too many open files"):
            assert store.get(KEY) is None
    assert store.get(KEY) is not None


def test_a_full_disk_is_reported_once_and_stops_nobody(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_safetensors", fail)
        with pytest.warns(UserWarning, match="keeps nothing more.*No space left") as caught:
            store.put(_key(1), {"a": torch.ones(4)})
            store.put(_key(2), {"a": torch.ones(4)})
        assert len(caught) == 1
    assert store.get(_key(1)) is None
    store.put(_key(1), {"a": torch.ones(4)})
    assert store.get(_key(1)) is not None


STALE = OSError(116, "Stale file handle")


def _raise(*_: Any, **__: Any) -> None:
    raise STALE


def test_a_drive_that_fails_stops_nobody(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"a": torch.ones(4)}
    store.put(_key(1), values)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", _raise)
        with pytest.warns(UserWarning, match="keeps nothing more.*Stale file handle") as caught:
            store.put(_key(1), values)
            store.put(_key(2), values)
        assert len(caught) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", _raise)
        with pytest.warns(UserWarning, match="cannot be read .*Stale file handle") as caught:
            assert store.get(_key(1)) is store.get(_key(2)) is None
        assert len(caught) == 1
    assert store.get(_key(1)) is not None


@pytest.mark.parametrize("place", ["folder", "file", "unfinished"])
def test_what_cannot_be_looked_at_is_left_alone(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path, MEBIBYTE)
    values = {"a": torch.zeros(100_000, dtype=torch.uint8)}
    keys = [f"{number:02x}{'0' * 62}" for number in range(24)]
    store.put(keys[0], values)
    os.utime(_file(store, keys[0]), (1, 1))
    scandir = os.scandir

    def failing(folder: Any) -> Any:
        if folder != tmp_path / "00":
            return scandir(folder)
        if place == "folder":
            raise PermissionError(13, "Permission denied", str(folder))
        entries = list(scandir(folder))
        if place == "file":
            return [SimpleNamespace(name=e.name, path=e.path, stat=_raise) for e in entries]
        return [SimpleNamespace(name=".x.unfinished"), *entries]

    monkeypatch.setattr(os, "scandir", failing)
    monkeypatch.setattr(store_module, "remove_unfinished", _raise)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for key in keys[1:]:
            store.put(key, values)
    told = [str(item.message) for item in caught if item.category is UserWarning]
    assert sum("00 cannot be read" in text for text in told) == (place == "folder")
    assert sum("is full" in text for text in told) == 1 and len(told) <= 2
    # The rest is counted, and what nobody can see stays.
    assert 10 <= sum(_file(store, key).exists() for key in keys) <= 11
    assert _file(store, keys[0]).exists() == (place != "unfinished")


def _ages(store: FeatureStore, *numbers: int) -> None:
    """Make records look used in this order, long ago."""
    for place, number in enumerate(numbers):
        os.utime(_file(store, _key(number)), (1e9 + place, 1e9 + place))


def test_the_longest_unused_go_when_the_limit_is_reached(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, MEBIBYTE)
    # Ten and no more fit.
    values = {"a": torch.zeros(100_000, dtype=torch.uint8)}
    for number in range(10):
        store.put(_key(number), values)
    assert len(store) == 10
    _ages(store, 5, 1, 0, 2, 3, 4, 6, 7, 8, 9)
    assert store.get(_key(5)) is not None
    store.put(_key(10), values)
    # An eighth of the limit is made free: eleven records become nine.
    present = {number for number in range(11) if _file(store, _key(number)).exists()}
    assert present == {2, 3, 4, 5, 6, 7, 8, 9, 10}
    assert store.size() <= MEBIBYTE


def test_a_record_above_the_limit_costs_no_other(tmp_path: Path) -> None:
    FeatureStore(tmp_path, 2 * 2**20).put("0" * 64, {"map": torch.zeros(1000)})
    store = FeatureStore(tmp_path, 2 * 2**20)
    with pytest.warns(UserWarning, match=r"keeps no record of 3145728 bytes, .* limit of 2097152"):
        store.put("1" * 64, {"map": torch.zeros(3 * 2**18)})
    assert store.get("0" * 64) is not None and store.get("1" * 64) is None


def test_limit_holds_for_several_writers_that_do_not_know_of_each_other(tmp_path: Path) -> None:
    stores = [FeatureStore(tmp_path, MEBIBYTE) for _ in range(4)]
    values = {"a": torch.zeros(20_000, dtype=torch.uint8)}
    largest = 0
    for number in range(200):
        stores[number % 4].put(_key(number), values)
        largest = max(largest, stores[0].size())
    # A sixteenth and a record for each.
    assert MEBIBYTE * 3 // 4 < largest < MEBIBYTE * 5 // 4 + 4 * 21_000
    assert MEBIBYTE * 3 // 4 < stores[0].size() <= MEBIBYTE
    # What was used since they began stays.
    assert stores[0].get(_key(10)) is not None
    assert stores[0].get(_key(199)) is None


def _visit(store: FeatureStore, numbers: list[int]) -> int:
    """Records that are found when those that are missing are written."""
    before = store.hits
    for number in numbers:
        if store.get(_key(number)) is None:
            store.put(_key(number), {"a": torch.zeros(100_000, dtype=torch.uint8)})
    return store.hits - before


@pytest.mark.parametrize("shuffled", [False, True])
def test_every_epoch_finds_what_there_is_room_for(shuffled: bool, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, MEBIBYTE)
    # Ten of twenty fit.
    orders = [torch.randperm(20).tolist() if shuffled else list(range(20)) for _ in range(4)]
    with pytest.warns(UserWarning, match=r"is full: .* 0\.0009766 GiB.*--cache-limit") as caught:
        assert [_visit(store, order) for order in orders] == [0, 10, 10, 10]
    assert len(caught) == 1
    assert store.size() <= MEBIBYTE
    if not shuffled:
        # So does the first epoch of the next run.
        assert _visit(FeatureStore(tmp_path, MEBIBYTE), orders[0]) == 10


def test_what_an_earlier_run_left_makes_room(tmp_path: Path) -> None:
    assert _visit(FeatureStore(tmp_path, MEBIBYTE), list(range(10))) == 0
    _ages(FeatureStore(tmp_path), *range(10))
    store = FeatureStore(tmp_path, MEBIBYTE)
    assert [_visit(store, list(range(20, 30))) for _ in range(2)] == [0, 10]


@pytest.mark.filterwarnings("ignore:.* is full")
def test_a_full_store_that_was_cleared_keeps_again(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, MEBIBYTE)
    assert [_visit(store, list(range(20))) for _ in range(2)] == [0, 10]
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    assert [_visit(store, list(range(20))) for _ in range(2)] == [0, 10]


def test_other_files_are_left_alone_and_abandoned_ones_removed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, MEBIBYTE)
    folder = tmp_path / "00"
    folder.mkdir()
    foreign = [tmp_path / "notes.txt", folder / "notes.txt", tmp_path / "x.safetensors"]
    abandoned = folder / ".a.safetensors.unfinished"
    abandoned.mkdir()
    for path in (*foreign, abandoned / "file.tmp"):
        path.write_bytes(b"x")
    with replacing(folder / "b.safetensors") as growing:
        for number in range(20):
            store.put(_key(number), {"a": torch.zeros(100_000, dtype=torch.uint8)})
        assert growing.exists()
    assert all(path.exists() for path in foreign)
    assert not abandoned.exists()


@pytest.mark.parametrize("copy", [deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
def test_copies_share_the_folder(copy: Any, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 3 * MEBIBYTE)
    other = copy(store)
    assert (other.folder, other.limit) == (store.folder, store.limit)
    store.put(KEY, {"a": torch.ones(2)})
    assert other.get(KEY) is not None
    assert store.hits == 0


def test_a_store_is_unpickled_where_its_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(FeatureStore("cache"))
    (tmp_path / "cache").rmdir()
    # As on another machine, whose root is not the user's.
    monkeypatch.chdir(elsewhere)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", _raise)
        store = pickle.loads(pickled)
        assert store.get(KEY) is None
        assert (len(store), store.size()) == (0, 0)
        with pytest.warns(UserWarning, match="keeps nothing more"):
            store.put(KEY, {"a": torch.ones(2)})
    assert not (tmp_path / "cache").exists()
    store.put(KEY, {"a": torch.ones(2)})
    assert FeatureStore(tmp_path / "cache").get(KEY) is not None
    assert list(elsewhere.iterdir()) == []


COMMON = """
import json, os, signal, sys, threading, warnings
import torch
from pathlib import Path
from sketchfusion_plugins.cache.store import FeatureStore

warnings.simplefilter("error", UserWarning)
warnings.filterwarnings("ignore", ".* is full")
torch.set_num_threads(1)
folder = Path(sys.argv[1])

def values(number):
    return {"a": torch.full((5000,), float(number)), "b": torch.tensor([number])}

def check(store, number):
    found = store.get(f"{number:064x}")
    if found is not None:
        assert all(torch.equal(found[name], tensor) for name, tensor in values(number).items())
    return found is not None
"""

# Small enough a limit that records are deleted while others read and write.
SHARE = (
    COMMON
    + """
def work(store, seed, told):
    try:
        generator = torch.Generator().manual_seed(seed)
        found = 0
        for number in torch.randint(80, (60,), generator=generator).tolist():
            found += check(store, number)
            store.put(f"{number:064x}", values(number))
        told.append(found)
    except BaseException as error:
        told.append(repr(error))

children = []
for seed in range(4):
    child = os.fork()
    if child == 0:
        told = []
        work(FeatureStore(folder, 2**20), seed, told)
        print(told, file=sys.stderr, flush=True)
        os._exit(type(told[0]) is not int)
    children.append(child)
store, told = FeatureStore(folder, 2**20), []
threads = [threading.Thread(target=work, args=(store, 9 + seed, told)) for seed in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(json.dumps([codes, told, store.hits, store.misses]))
"""
)

# Kills a fork of itself at its n-th file operation inside the folder, for every n there is.
KILL = (
    COMMON
    + """
class Killer:
    def __init__(self, step):
        self.left = step

    def __call__(self, event, arguments):
        changes = event in ("os.rename", "os.utime", "os.remove", "os.mkdir") or (
            event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and str(folder) in str(arguments[0]):
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

step, outcomes = 0, []
while True:
    for number in range(60):
        FeatureStore(folder, 2**30).put(f"{number:064x}", values(number))
    child = os.fork()
    if child == 0:
        store = FeatureStore(folder, 2**20)
        sys.addaudithook(Killer(step))
        number = 100 + len(outcomes)
        check(store, 59)
        # The limit is reached: it deletes before it writes.
        store.put(f"{number:064x}", values(number))
        assert check(store, number)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    store = FeatureStore(folder, 2**30)
    present = [number for number in range(100 + len(outcomes) + 1) if check(store, number)]
    outcomes.append([os.WIFSIGNALED(status), os.WEXITSTATUS(status), len(present)])
    if not os.WIFSIGNALED(status):
        break
    step += 1
print(json.dumps([outcomes, len(store)]))
"""
)


def _run(script: str, folder: Path) -> Any:
    command = [sys.executable, "-c", script, str(folder)]
    output = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_eight_threads_and_four_processes_share_a_store_too_small_for_all(tmp_path: Path) -> None:
    codes, told, hits, misses = _run(SHARE, tmp_path)
    assert codes == [0] * 4
    assert all(isinstance(found, int) for found in told), told
    assert len(told) == 8
    assert (hits, hits + misses) == (sum(told), 8 * 60)
    assert hits > 50
    store = FeatureStore(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        present = [n for n in range(80) if store.get(_key(n)) is not None]
    assert 20 < len(present) == len(store) < 80
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".unfinished")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_writer_killed_at_any_step_leaves_whole_records(tmp_path: Path) -> None:
    outcomes, count = _run(KILL, tmp_path)
    killed = [present for signalled, _, present in outcomes if signalled]
    # Reading, the counting, the deletions, the folder, the file, and its renaming.
    assert len(killed) > 16
    assert outcomes[-1][:2] == [False, 0]
    assert killed[0] == 60
    assert 30 < outcomes[-1][2] == count < 60


# --- the encoder -------------------------------------------------------------------------------


def _count_runs(encoder: SketchFusionEncoder) -> dict[str, int]:
    """Counts calls of the parts from now on."""
    runs = {"vae": 0, "semantic": 0, "unet": 0}
    parts = {
        "vae": encoder.diffusion.vae.encoder,
        "semantic": encoder.semantic,
        "unet": encoder.diffusion.denoiser.unet.conv_in,
    }

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            runs[name] += 1

        return hook

    for name, part in parts.items():
        assert isinstance(part, nn.Module)
        part.register_forward_pre_hook(count(name))
    return runs


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second) and first.dtype == second.dtype
    return all(_same(a, b) for a, b in zip(first, second, strict=True))


FOUNDATION_CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "ensemble": {"diffusion__ensemble": 3, "diffusion__ensemble_chunk": 2},
    "sampled": {"diffusion__posterior": "sample"},
    "bfloat16": {"foundation_dtype": "bfloat16"},
    "noise free": {"diffusion__noise_free": True},
    "no injection": {"injection__sites": ()},
    "grey": {"in_channels": 1},
}


def test_a_model_around_the_encoder_can_be_given(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    model = nn.Sequential(build())
    expected = model(sketches(2))
    use_cache(model, store)
    assert _same(model(sketches(2)), expected) and len(store) == 2
    use_cache(model, None)
    assert type(model[0]) is SketchFusionEncoder
    with pytest.raises(TypeError, match="one SketchFusionEncoder inside, got 0"):
        use_cache(nn.Linear(2, 2), store)


@pytest.mark.parametrize("case", FOUNDATION_CASES)
def test_training_is_the_same_to_the_last_bit_and_second_epochs_skip_both_encoders(
    case: str, build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder = build(**FOUNDATION_CASES[case]).train()
    images = [image[:, : encoder.config.in_channels] for image in sketches(2, 33, 57).split(1)]
    expected = [encoder(image, seed=seed) for seed, image in enumerate(images)]
    adapters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(expected[0].sum(), adapters)
    use_cache(encoder, store)
    assert isinstance(encoder, CachedEncoder)
    runs = _count_runs(encoder)
    for epoch in range(3):
        for seed, image in enumerate(images):
            assert _same(encoder(image, seed=seed), expected[seed])
        tokens = 0 if case == "no injection" else 2
        assert runs == {"vae": 2, "semantic": tokens, "unet": runs["unet"]}
        assert runs["unet"] >= 2 * (epoch + 1)
    result = encoder(images[0], seed=0)
    assert _same(torch.autograd.grad(result.sum(), adapters), grads)
    assert len(store) == 2


def test_a_batch_with_some_hits_computes_the_others(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, images = build(), sketches(4)
    expected = encoder.encode(images)
    use_cache(encoder, store)
    seen: list[int] = []
    encoder.semantic.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    encoder.encode(images[[2]])
    found = encoder.encode(images)
    encoder.encode(images[[3, 1]])
    assert seen == [1, 3]
    assert found.image_size == (64, 64)
    for got, wanted in zip(found[:2], expected[:2], strict=True):
        # Convolutions of other batch sizes may sum in another order.
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    again = encoder.encode(images[[3, 1]])
    assert _same(again[:2], tuple(part[[3, 1]] for part in found[:2]))
    assert (store.hits, store.misses) == (1 + 2 + 2, 1 + 3)


def test_foundations_serve_other_adapters_and_unets_and_other_processes(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    first, image = build(), sketches(1)
    use_cache(first, store)
    first(image)
    other = build(seed=8, diffusion__timestep=50, aggregation=None, injection__inject_skips=False)
    with torch.no_grad():
        other.diffusion.denoiser.unet.conv_in.weight.mul_(1.5)
    expected = other.forward_levels(image)
    use_cache(other, FeatureStore(store.folder))
    runs = _count_runs(other)
    assert _same(other.forward_levels(image).maps, expected.maps)
    assert runs["vae"] == runs["semantic"] == 0


def _change(part: Callable[[Any], Tensor]) -> Callable[[Any], None]:
    def change(encoder: Any) -> None:
        with torch.no_grad():
            part(encoder).add_(0.5)

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "VAE": _change(lambda e: e.diffusion.vae.encoder.conv_in.bias),
    "CLIP": _change(lambda e: e.semantic.model.encoder.layers[0].mlp.fc1.bias),
    "normalisation": lambda e: setattr(e.semantic, "mean", (0.1, 0.2, 0.3)),
    "scaling": lambda e: setattr(e.diffusion, "scaling_factor", 0.3),
    "more tokens": lambda e: setattr(e, "config", e.config.replace(semantic__shrink=False)),
    "precision": lambda e: [part.to(torch.bfloat16) for part in e.foundations()],
    "rounding": lambda e: [part.bfloat16().float() for part in e.foundations()],
    "loaded weights": lambda e: e.load_state_dict(
        {name: t + 0.5 for name, t in e.state_dict().items() if "vae" in name}, strict=False
    ),
    "new parameter": lambda e: setattr(
        e.diffusion.vae.encoder.conv_in, "bias", nn.Parameter(torch.ones(16), requires_grad=False)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_other_foundations_find_nothing(
    change: str, build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    use_cache(encoder, store)
    encoder(image)
    CHANGES[change](encoder)
    got = encoder(image)
    assert store.hits == 0
    use_cache(encoder, None)
    assert type(encoder) is SketchFusionEncoder
    assert torch.equal(got, encoder(image))


@torch.no_grad()
@pytest.mark.parametrize("other", ["activation", "heads"])
def test_other_activations_and_heads_find_nothing(
    other: str, build: Any, sketches: Any, store: FeatureStore
) -> None:
    # As with timm's vit_*_clip_* and vit_*_clip_quickgelu_*, weights and class are the same.
    first, second = build(), build()
    second.load_state_dict(first.state_dict())
    for layer in second.semantic.model.encoder.layers:
        if other == "activation":
            layer.mlp.activation_fn = nn.GELU()
        else:
            attention = layer.self_attn
            attention.num_heads, attention.head_dim = 2 * attention.num_heads, 8
    image = sketches(1)
    expected = second.encode(image).tokens
    for encoder in (first, second):
        use_cache(encoder, store)
    assert not torch.equal(first.encode(image).tokens, expected)
    assert torch.equal(second.encode(image).tokens, expected)
    assert store.hits == 0
    second.encode(image)
    assert store.hits == 1


@torch.no_grad()
def test_a_compiled_part_finds_what_it_was_before(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    use_cache(encoder, store)
    encoder.encode(image)
    layers = encoder.semantic.model.encoder.layers
    layers[0] = torch.compile(layers[0], backend="eager")
    encoder.encode(image)
    assert store.hits == 1


class LoraLike(nn.Linear):
    """What decides, in peft's layers, what is computed with the same weights."""

    merged_adapters: tuple[str, ...] = ()

    def __init__(self, inside: nn.Linear) -> None:
        super().__init__(inside.in_features, inside.out_features, inside.bias is not None)
        self.load_state_dict(inside.state_dict())
        self.requires_grad_(False)
        self.active_adapters, self.disable_adapters = ["default"], False
        self.scaling = {"default": 2.0, "other": 3.0}

    def forward(self, values: Tensor) -> Tensor:
        made = super().forward(values)
        if self.disable_adapters:
            return made
        return made * sum(self.scaling[name] for name in self.active_adapters)


@torch.no_grad()
@pytest.mark.parametrize("keep", ["foundations", "results"])
def test_lora_that_is_switched_is_seen(
    keep: Any, build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    layer = encoder.semantic.model.encoder.layers[0].mlp
    layer.fc1 = LoraLike(layer.fc1)
    plain = build()
    plain.semantic.model.encoder.layers[0].mlp.fc1 = layer.fc1
    use_cache(encoder, store, keep)
    changes: list[dict[str, Any]] = [
        {},
        {"active_adapters": ["other"]},
        {"scaling": {"default": 2.0, "other": 1.5}},
        {"disable_adapters": True},
    ]
    for change in changes:
        vars(layer.fc1).update(change)
        for _ in range(2):
            assert torch.equal(encoder(image), plain(image))
    assert store.hits == len(changes) == len(store)


@torch.no_grad()
@pytest.mark.parametrize("keep", ["foundations", "results"])
def test_an_exported_program_does_without(
    keep: Any, build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    use_cache(encoder, store, keep)
    expected = encoder(image)
    program = torch.export.export(encoder, (image,))
    torch.testing.assert_close(program.module()(image), expected)
    assert (store.hits, len(store)) == (0, 1)


@torch.no_grad()
def test_weights_written_past_torch_s_count_are_seen_when_the_cache_is_put_in_again(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    use_cache(encoder, store)
    encoder.encode(image)
    # As diffusers' EMAModel.copy_to writes.
    encoder.diffusion.vae.encoder.conv_in.bias.data.copy_(torch.ones(16))
    use_cache(encoder, store)
    encoder.encode(image)
    assert store.hits == 0 and len(store) == 2


def test_subclasses_are_refused(store: FeatureStore, build: Any) -> None:
    class Mine(SketchFusionEncoder):
        pass

    encoder = Mine(build().config)
    for asked in (store, None):
        with pytest.raises(TypeError, match="got its subclass Mine"):
            use_cache(encoder, asked)
    assert type(encoder) is Mine


@torch.no_grad()
@pytest.mark.parametrize("keep", ["foundations", "results"])
def test_replicas_pass_the_cache_by(
    keep: Any, build: Any, sketches: Any, store: FeatureStore, replicate: Any
) -> None:
    image = sketches(1)
    for seed in (0, 1):
        encoder = build(random_seed=seed)
        expected = encoder(image)
        use_cache(encoder, store, keep)
        assert torch.equal(replicate(encoder)(image), expected)
    assert len(store) == 0


@torch.no_grad()
def test_other_pixels_seeds_and_autocast_find_nothing(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(diffusion__posterior="sample"), sketches(1)
    use_cache(encoder, store)
    encoder(image)
    changed = image.clone()
    changed[0, 2, 63, 63] += 2**-20
    # The same bytes in another shape.
    for other in (changed, image.double(), image.mT, image.reshape(1, 3, 32, 128)):
        encoder(other)
    encoder(image, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        encoder(image)
    assert (store.hits, len(store)) == (0, 7)
    encoder(image, seed=0)
    assert store.hits == 1


def test_generators_and_gradients_to_pixels_pass_the_cache_by(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(diffusion__posterior="sample"), sketches(1)
    expected = encoder(image, generator=torch.Generator().manual_seed(4))
    use_cache(encoder, store)
    for _ in range(2):
        assert _same(encoder(image, generator=torch.Generator().manual_seed(4)), expected)
    pixels = image.clone().requires_grad_()
    encoder(pixels).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    assert len(store) == store.misses == 0
    # The mode is no draw: only the noise, which is added after, is the generator's.
    encoder = build()
    expected = encoder(image, generator=torch.Generator().manual_seed(4))
    use_cache(encoder, store)
    for _ in range(2):
        assert _same(encoder(image, generator=torch.Generator().manual_seed(4)), expected)
    assert (store.hits, store.misses) == (1, 1)


def test_damaged_records_are_computed_anew(build: Any, sketches: Any, store: FeatureStore) -> None:
    encoder, images = build(), sketches(2)
    expected = encoder(images)
    use_cache(encoder, store)
    encoder(images)
    path = next(store.folder.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="is damaged"):
        got = encoder(images)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        encoder(images)
    assert store.hits == 3


class PlainBranch:
    """A semantic branch that is no module: nothing tells one from another."""

    channels, patch_size, image_size = 3, 16, 64
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __call__(self, image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, 16)


def test_what_cannot_be_kept_is_refused(build: Any, config: Any, store: FeatureStore) -> None:
    with pytest.raises(ValueError, match="foundations may train"):
        use_cache(build(freeze_foundations=False), store)
    with pytest.raises(ValueError, match=r"PlainBranch.*Module"):
        use_cache(SketchFusionEncoder(config, semantic=PlainBranch()), store)
    with pytest.raises(ValueError, match="foundations, results, got 'levels'"):
        use_cache(build(), store, keep="levels")  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [torch.zeros(3, 64, 64), torch.full((1, 3, 64, 64), 255.0)])
@pytest.mark.parametrize("keep", ["foundations", "results"])
def test_bad_images_get_the_encoders_own_errors(
    image: Tensor, keep: Any, build: Any, store: FeatureStore
) -> None:
    encoder = build()
    with pytest.raises(ValueError) as plain:
        encoder(image)
    use_cache(encoder, store, keep)
    for method in (encoder, encoder.forward_levels):
        with pytest.raises(ValueError) as cached:
            method(image)
        assert str(cached.value) == str(plain.value)


# --- levels and maps ---------------------------------------------------------------------------

RESULT_CASES: dict[str, dict[str, Any]] = {
    "map": {},
    "pyramid": {"aggregation__stride": (4, 32)},
    "one level of a pyramid": {"aggregation__stride": (16,)},
    "dropout": {"aggregation__dropout": 0.5},
    "ensemble, sampled": {"diffusion__ensemble": 2, "diffusion__posterior": "sample"},
}


@pytest.mark.parametrize("case", RESULT_CASES)
def test_results_of_frozen_adapters_are_the_same_and_nothing_runs(
    case: str, build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, images = build(**RESULT_CASES[case]), sketches(2, 33, 57)
    with torch.no_grad():
        expected = [encoder(images, seed=seed) for seed in (0, 1)]
    use_cache(encoder, store, "results")
    runs = _count_runs(encoder.train())
    for _ in range(2):
        for seed in (0, 1):
            got = encoder(images, seed=seed)
            assert type(got) is type(expected[seed])
            assert _same(got, expected[seed])
        assert runs == {"vae": 2, "semantic": 2, "unet": runs["unet"]}
        assert runs["unet"] == 2
    # An image at two seeds each, and nothing beside it.
    assert len(store) == 4


def test_levels_of_frozen_injection(build: Any, sketches: Any, store: FeatureStore) -> None:
    encoder, image = build(aggregation=None), sketches(2, 33, 57)
    with torch.no_grad():
        expected = [encoder.forward_levels(image, fuse=fuse) for fuse in (True, False)]
    use_cache(encoder, store, "results")
    runs = _count_runs(encoder)
    for _ in range(2):
        for fuse, levels in zip((True, False), expected, strict=True):
            got = encoder.forward_levels(image, fuse=fuse)
            assert (got.names, got.strides) == (levels.names, levels.strides)
            assert _same(got.maps, levels.maps)
        assert runs["unet"] == 2
    with pytest.raises(ValueError, match="without aggregation"):
        encoder(image)


RESULT_CHANGES: dict[str, Callable[[Any], Any]] = {
    "injection": _change(lambda e: e.injector.projections["up0"].bias),
    "aggregation": _change(lambda e: e.aggregator.branch_logits[0]),
    "UNet": _change(lambda e: e.diffusion.denoiser.unet.conv_in.bias),
    "VAE": CHANGES["VAE"],
    "null prompt": _change(lambda e: e.diffusion.denoiser.null_embedding),
    "noise": lambda e: setattr(e.diffusion, "noise_scale", 0.9),
}


@pytest.mark.parametrize("change", RESULT_CHANGES)
@torch.no_grad()
def test_results_of_other_models_are_not_found(
    change: str, build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    use_cache(encoder, store, "results")
    encoder(image)
    RESULT_CHANGES[change](encoder)
    got = encoder(image)
    assert store.hits == 0
    use_cache(encoder, None)
    assert torch.equal(got, encoder(image))


@torch.no_grad()
@pytest.mark.parametrize("later", [False, True])
def test_results_of_ready_branches_are_told_apart(
    later: bool, build: Any, config: Any, randomize: Any, sketches: Any, store: FeatureStore
) -> None:
    image = sketches(1)
    for number, draws in enumerate((1, 4)):
        branch = build(diffusion__ensemble=draws).diffusion
        encoder = SketchFusionEncoder(config, diffusion=None if later else branch)
        encoder = randomize(encoder).eval()
        # A branch that is put in afterwards is another one than the configuration's.
        encoder.diffusion = branch
        expected = encoder(image)
        use_cache(encoder, store, "results")
        assert torch.equal(encoder(image), expected)
        assert (store.hits, store.misses) == (0, number + 1)


@torch.no_grad()
def test_results_know_their_seed_unless_nothing_is_drawn(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    image = sketches(1)
    for noise_free, found in ((False, 0), (True, 1)):
        encoder = build(diffusion__noise_free=noise_free)
        use_cache(encoder, store, "results")
        encoder(image, seed=1)
        hits = store.hits
        encoder(image, seed=2)
        assert store.hits - hits == found
    encoder = build()
    use_cache(encoder, store, "results")
    expected = encoder(image, generator=torch.Generator().manual_seed(4))
    before = len(store)
    assert torch.equal(encoder(image, seed=4), expected)
    assert len(store) == before + 1


@torch.no_grad()
@pytest.mark.parametrize("keep", ["foundations", "results"])
def test_whole_numbers_of_other_kinds_are_the_same_seeds(
    keep: Any, build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    use_cache(encoder, store, keep)
    expected = encoder(image, seed=3)
    other: Any
    for other in (np.int64(3), torch.tensor(3)):
        assert torch.equal(encoder(image, seed=other), expected)
    assert (store.hits, store.misses) == (2, 1)


def test_adapters_that_would_not_learn_are_refused(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    use_cache(encoder, store, "results")
    encoder(image)
    encoder.injector.requires_grad_(True)
    with pytest.raises(RuntimeError, match="keep='foundations'"):
        encoder(image)
    use_cache(encoder, store)
    encoder(image).sum().backward()
    assert encoder.injector.projections["up0"].weight.grad is not None


def test_encoded_images_are_computed_as_ever(
    build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    encoded = encoder.encode(image)
    assert isinstance(encoded, FoundationOutputs)
    with torch.no_grad():
        expected = encoder(image)
    for keep in ("foundations", "results"):
        use_cache(encoder, store, keep)
        assert torch.equal(encoder(encoded), expected)
    assert len(store) == 0


# --- inside other things -----------------------------------------------------------------------


@pytest.mark.parametrize("copy", [deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@torch.no_grad()
def test_copies_of_a_cached_encoder(
    copy: Any, build: Any, sketches: Any, store: FeatureStore
) -> None:
    encoder, image = build(), sketches(1)
    use_cache(encoder, store)
    expected = encoder(image)
    other = copy(encoder)
    runs = _count_runs(other)
    torch.testing.assert_close(other(image), expected)
    assert runs["vae"] == 0
    assert set(other.state_dict()) == set(encoder.state_dict())


def test_timm_model(store: FeatureStore) -> None:
    import timm

    model = timm.create_model("sketchfusion_tiny", num_classes=3).eval()
    image = torch.zeros(1, 3, 64, 40)
    with torch.no_grad():
        expected = model(image)
        use_cache(model.encoder, store)
        runs = _count_runs(model.encoder)
        assert torch.equal(model(image), expected)
        assert torch.equal(model(image), expected)
        assert model.forward_intermediates(image, intermediates_only=True)[0].shape[-1] == 10
    assert (runs["vae"], store.hits) == (1, 2)


def test_a_tasks_head_trains_on_kept_maps_and_is_saved_as_ever(
    build: Any, sketches: Any, store: FeatureStore, tmp_path: Path
) -> None:
    from sketchfusion_plugins.tasks.load import load_task
    from sketchfusion_plugins.tasks.recognition import Recognition

    batch = {"image": sketches(2), "label": torch.tensor([0, 1])}
    torch.manual_seed(0)
    task = Recognition(build(), ["a", "b"]).train()
    use_cache(task.encoder, store, "results")
    runs = _count_runs(task.encoder)
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    assert len(trained) == len(list(task.head.parameters())) == 2
    optimizer = torch.optim.SGD(trained, lr=1e-3)
    losses = []
    for _ in range(5):
        loss = task.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert runs == {"vae": 1, "semantic": 1, "unet": 1}
    task.save_pretrained(tmp_path / "task")
    again = load_task(tmp_path / "task")
    with torch.no_grad():
        torch.testing.assert_close(again(batch["image"]), task.eval()(batch["image"]))


def test_keys_stay() -> None:
    """A cache outlives a release: who changes what a key is made of raises FORMAT knowingly."""
    image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    (key,) = record_keys({"kind": "foundations", "seed": 0}, image)
    about = b'[3, {"kind": "foundations", "seed": 0}, "torch.float32", [3, 32, 32], "None"]'
    assert key == hashlib.sha256(about + image.numpy().tobytes()).hexdigest()
