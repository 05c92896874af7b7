"""What this machine has: libraries that import, devices, weights, folders to write to."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sketchfusion_plugins.catalogue import CATALOGUE, PartWeights, hub_cache
from sketchfusion_plugins.doctor.findings import Finding, State
from sketchfusion_plugins.files import cache_folder

TIMEOUT = 600.0
"""Seconds after which importing the libraries is given up."""

# Changes of these explain most surprises; a token's value is nobody's business.
VARIABLES = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "SKETCHFUSION_CACHE",
    "CUDA_VISIBLE_DEVICES",
)


def examine_python() -> Finding:
    """The interpreter and its system."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("packages", "python", "ok", f"{found}, {sys.executable}")


def examine_torch(timeout: float = TIMEOUT) -> Iterator[Finding]:
    """Import torch and what stands on it, in a process of their own with this one's path."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from sketchfusion_plugins.doctor.probe import main; main()"
    )
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout
        )
        output = ended.stdout
        end = f"ended with status {ended.returncode}" if ended.returncode else ""
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        end = f"gave no answer for {timeout:g} seconds"
    # Libraries may print too.
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"name": ')]
    for line in lines:
        if "error" not in line:
            yield Finding("torch", line["name"], "ok", line["found"])
            continue
        advice = "reinstall it" if line["name"] != "devices" else "check the driver"
        yield Finding("torch", line["name"], "broken", line["error"], advice)
    if end:
        after = lines[-1]["name"] if lines else "the start"
        found = f"the process that imports the libraries {end} after {after}"
        yield Finding("torch", "imports", "broken", found, "reinstall torch and what follows it")


def examine_weights() -> Iterator[Finding]:
    """Every preset's weights, once each, and twice where they are here for some presets alone."""
    try:
        cache = hub_cache()
    except ImportError as error:
        advice = "pip install --force-reinstall huggingface-hub"
        yield Finding("weights", "Hugging Face's cache", "broken", str(error), advice)
        cache = Path(os.devnull)
    found: dict[tuple[str, str], PartWeights] = {}
    users: dict[tuple[str, str], list[str]] = {}
    for entry in CATALOGUE:
        for weights in entry.weights(cache):
            found[weights.source, weights.state] = weights
            users.setdefault((weights.source, weights.state), []).append(entry.preset)
    for key, weights in found.items():
        source, presets = weights.source, ", ".join(users[key])
        if weights.state != "missing":
            place = f"{weights.state}, {weights.place}, for {presets}"
            yield Finding("weights", source, "ok", place)
        elif source.count("/") == 1 and not source.startswith("sketchfusion/"):
            offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
            advice = "HF_HUB_OFFLINE forbids to download it" if offline else "downloaded at need"
            yield Finding("weights", source, "note", f"not in {cache}, for {presets}", advice)
        else:
            advice = "install the package's wheel or a complete checkout"
            yield Finding("weights", source, "broken", "not in this installation", advice)


def examine_folders() -> Iterator[Finding]:
    """Whether caches can be written to, and the variables that move them."""
    folders = {"sketchfusion's cache": (cache_folder(), "SKETCHFUSION_CACHE")}
    with suppress(ImportError):
        folders["Hugging Face's cache"] = (hub_cache(), "HF_HUB_CACHE")
    for name, (folder, variable) in folders.items():
        # A path's own exists() raises where a folder may not be looked into.
        nearest = next(p for p in (folder, *folder.absolute().parents) if os.access(p, os.F_OK))
        if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
            free = shutil.disk_usage(nearest).free / 1e9
            yield Finding("folders", name, "ok", f"{folder}, {free:.0f} GB free")
            continue
        # Who names a folder wants it used; a home that is read-only may be meant so.
        state: State = "broken" if os.environ.get(variable) else "warning"
        found = f"{folder} cannot be written to"
        yield Finding("folders", name, state, found, f"set {variable} to a folder of yours")
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if "HF_TOKEN" in given:
        given["HF_TOKEN"] = "set"
    if given:
        listing = ", ".join(f"{name}={value}" for name, value in given.items())
        yield Finding("folders", "environment", "ok", listing)
