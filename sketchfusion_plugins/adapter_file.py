"""The file that adapters lie in: what it holds, where it is found, and how it is read.

``adapters.safetensors`` describes itself in its header. A ``config.json`` beside it is for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.hub import bundled_weights, explain_loading

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "config.json"
FORMAT = "sketchfusion-adapters"
FORMAT_VERSION = 1
BUNDLED = ("sketchfusion/tiny", "sketchfusion/tiny-retrieval")
FOUNDATION_KEYS = (
    "diffusion",
    "diffusion_revision",
    "unet_file",
    "semantic",
    "semantic_revision",
    "weights",
    "fingerprint",
)


class Split(NamedTuple):
    """Which part of its data a task was trained on.

    Attributes:
        source: Name of the data source, without its folder, which differs between machines.
        seed: Seed of the split into a training and a held-out part, at least 0.
        before: Task, source and seed of every training that its adapters had been through before.
    """

    source: str
    seed: int
    before: tuple[tuple[str, str, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """JSON values, which say nothing of ``before`` where there was nothing."""
        return {key: value for key, value in self._asdict().items() if value != ()}


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another kind, or made for another model."""


class MisfitError(CheckpointError):
    """A sound checkpoint that was made for another model."""


def read_config(source: str | Path, *, revision: str | None = None) -> EncoderConfig:
    """Configuration of the encoder whose adapters a checkpoint holds.

    Raises:
        CheckpointError: Damaged file.
        OSError: Not found.
    """
    path, description = _describe(source, revision)
    return parse_config(path, description)


def read_task(
    source: str | Path, *, revision: str | None = None
) -> tuple[str, dict[str, Any]] | None:
    """Name and settings of the task whose head a checkpoint holds; None if it holds none.

    Raises:
        CheckpointError: Damaged file.
        OSError: Not found.
    """
    path, description = _describe(source, revision)
    task = description.get("task")
    if task is None:
        return None
    try:
        return str(task["name"]), dict(task["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has an unreadable task {task!r}: {error!r}.") from error


def read_image_size(source: str | Path, *, revision: str | None = None) -> int | None:
    """Side, in pixels, of the square images that a checkpoint's task was trained on.

    None if the checkpoint holds no task, or one that does not say: it was not trained by
    `sketchfusion train`, or by a version that did not write it down.

    Raises:
        CheckpointError: Damaged file.
        OSError: Not found.
    """
    path, description = _describe(source, revision)
    task = description.get("task")
    size = task.get("image_size") if isinstance(task, dict) else None
    if size is not None and (type(size) is not int or size < 1):
        raise CheckpointError(
            f"{path} has an unreadable image size, expected pixels of at least 1, got {size!r}."
        )
    return size


def read_split(source: str | Path, *, revision: str | None = None) -> Split | None:
    """The split that a checkpoint's task was trained on.

    None if the checkpoint holds no task, or one that does not say; see `read_image_size`.

    Raises:
        CheckpointError: Damaged file.
        OSError: Not found.
    """
    path, description = _describe(source, revision)
    task = description.get("task")
    found = task.get("split") if isinstance(task, dict) else None
    if found is None:
        return None
    try:
        split = Split(**found)
        split = split._replace(
            before=tuple((task, name, seed) for task, name, seed in split.before)
        )
        runs = [("", split.source, split.seed), *split.before]
        sound = all(map(_is_training, runs))
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(
            f"{path} has an unreadable split, expected the name of a data source and a seed of at "
            f"least 0, got {found!r}."
        )
    return split


def locate(source: str | Path, revision: str | None) -> Path:
    """Path of a safetensors file: given, in a folder, packaged, or fetched from the hub.

    Raises:
        OSError: Not found.
    """
    path = bundled_weights(str(source)) or Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            held = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
            inner = path / "adapters"
            hint = f" Did you mean {inner}?" if (inner / WEIGHTS_FILE).is_file() else ""
            raise OSError(f"expected {WEIGHTS_FILE} in {path}, which holds {held}.{hint}")
        return path / WEIGHTS_FILE
    if path.is_absolute() or len(Path(source).parts) != 2:
        raise OSError(
            f"no adapters at {source}. Give a folder written by save_pretrained, a Hugging Face id "
            f"'owner/name', or one of this package's: {', '.join(BUNDLED)}."
        )
    from huggingface_hub import hf_hub_download

    try:
        with explain_loading("adapters", str(source), revision):
            return Path(hf_hub_download(str(source), WEIGHTS_FILE, revision=revision))
    except OSError as error:
        raise OSError(f"{error} Adapters of this package: {', '.join(BUNDLED)}.") from error


def read(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description in a file, checked, and its tensors, none unless asked for.

    Raises:
        CheckpointError: Damaged file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get("sketchfusion")
            state = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118
    # torch has not every type that a header may name.
    except (SafetensorError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({error}). Copy or train it again."
        ) from error
    if text is None:
        raise CheckpointError(
            f"{path} holds no SketchFusion adapters: its safetensors header lacks the "
            "'sketchfusion' entry that save_pretrained writes."
        )
    try:
        description = json.loads(text)
        found = description["format"], description["format_version"]
        # Before the rest is looked at: another version may have it otherwise.
        if found != (FORMAT, FORMAT_VERSION):
            raise CheckpointError(
                f"{path} is of format {found}, expected {(FORMAT, FORMAT_VERSION)}. "
                "Upgrade sketchfusion-plugins."
            )
        _ = description["config"]
        if not isinstance(description["prefix"], str):
            raise TypeError(f"prefix is {description['prefix']!r}")
        _ = [description["foundations"][key] for key in FOUNDATION_KEYS]
        settings = description["foundations"].get("settings", {})
        if not (isinstance(settings, dict) and all(_is_numbers(v) for v in settings.values())):
            raise TypeError(f"settings of foundations are {settings!r}")
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has an unreadable description: {error!r}.") from error
    return description, state


def parse_config(path: Path, description: dict[str, Any]) -> EncoderConfig:
    """Configuration in a file's description.

    Raises:
        CheckpointError: This version does not read it.
    """
    try:
        return EncoderConfig.from_dict(description["config"])
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a configuration that this version does not read: {error} It was written "
            f"by version {description.get('sketchfusion_plugins')}."
        ) from error


def show_foundations(foundations: Mapping[str, Any]) -> str:
    """A description's foundations in a message: where they come from, and their fingerprint."""
    found = {"diffusion_variant": None, "semantic_variant": None, **foundations}
    return (
        "{diffusion} (revision {diffusion_revision}, variant {diffusion_variant}, UNet file "
        "{unet_file}) and {semantic} (revision {semantic_revision}, variant {semantic_variant}), "
        "{weights} weights, fingerprint {fingerprint}".format_map(found)
    )


def _is_training(values: tuple[object, ...]) -> bool:
    task, source, seed = values
    return type(task) is type(source) is str and type(seed) is int and seed >= 0


def _is_numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _describe(source: str | Path, revision: str | None) -> tuple[Path, dict[str, Any]]:
    path = locate(source, revision)
    return path, read(path, tensors=False)[0]
