"""Adapters on disk: ``adapters.safetensors``, described within, and a readable ``config.json``.

Only what trains is written: injection, aggregation and, for a model around the encoder, its head.
A frozen foundation never is. The description inside the safetensors file is the one that counts,
so the two files cannot disagree after a crash between their writes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sketchfusion_plugins.config import EncoderConfig
from sketchfusion_plugins.files import write_safetensors, write_text
from sketchfusion_plugins.hub import bundled_weights, explain_loading

if TYPE_CHECKING:
    from sketchfusion_plugins.encoder import SketchFusionEncoder

WEIGHTS_FILE = "adapters.safetensors"
CONFIG_FILE = "config.json"
FORMAT = "sketchfusion-adapters"
FORMAT_VERSION = 1
SAMPLES_PER_TENSOR = 16
FOUNDATION_KEYS = (
    "diffusion",
    "diffusion_revision",
    "unet_file",
    "semantic",
    "semantic_revision",
    "weights",
    "fingerprint",
)


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another kind, or made for another model."""


class MisfitError(CheckpointError):
    """A sound checkpoint that was made for another model."""


def find_encoder(module: nn.Module) -> tuple[str, SketchFusionEncoder]:
    """The encoder inside a module, with the prefix of its keys (empty, or ending in a dot).

    Raises:
        TypeError: There is none, or more than one.
    """
    # Known by its class's method: the encoder lies a floor above this file, and a compiled module
    # passes on whatever attribute of the module inside it is asked for.
    found: list[tuple[str, Any]] = [
        (f"{name}." if name else "", child)
        for name, child in module.named_modules()
        if hasattr(type(child), "foundation_names")
    ]
    if len(found) != 1:
        raise TypeError(
            f"expected a module with one SketchFusionEncoder inside, got {len(found)} in "
            f"{type(module).__name__}."
        )
    prefix, encoder = found[0]
    return prefix, encoder


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of a module without its encoder's frozen foundations.

    Foundations that were unfrozen are part of it: they may have been trained.
    """
    _, encoder = find_encoder(module)
    return _state(module, with_foundations=not encoder.config.freeze_foundations)


def fingerprint(encoder: SketchFusionEncoder) -> str:
    """Short hash that tells foundations apart, the same for every precision they are held in."""
    return fingerprint_modules(
        {name: getattr(encoder, name) for name in encoder.foundation_names()}
    )


def fingerprint_modules(modules: Mapping[str, nn.Module]) -> str:
    """Short hash of modules' weights, the same for every precision they are held in.

    It reads a few evenly spaced values of every tensor, rounded to bfloat16.
    """
    digest = hashlib.sha256()
    for name, module in modules.items():
        for key, tensor in sorted(module.state_dict().items()):
            flat = tensor.detach().flatten()
            count = min(SAMPLES_PER_TENSOR, flat.numel())
            index = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64).long()
            values = flat[index.to(flat.device)].to("cpu", torch.bfloat16)
            digest.update(f"{name}.{key}{tuple(tensor.shape)}".encode())
            digest.update(values.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def describe(module: nn.Module) -> dict[str, Any]:
    """What ``config.json`` holds."""
    from sketchfusion_plugins import __version__

    prefix, encoder = find_encoder(module)
    diffusion, semantic = encoder.config.diffusion, encoder.config.semantic
    # A task, known by its attributes: its class lies floors above this file.
    name, settings = getattr(module, "name", None), getattr(module, "settings", None)
    task: dict[str, Any] | None = None
    if isinstance(name, str) and isinstance(settings, dict):
        image_size = getattr(module, "image_size", None)
        task = {"name": name, "settings": settings, "image_size": image_size}
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sketchfusion_plugins": __version__,
        "prefix": prefix,
        "task": task,
        "foundations": {
            "diffusion": diffusion.source,
            "diffusion_revision": diffusion.revision,
            "unet_file": diffusion.unet_file,
            "semantic": semantic.source,
            "semantic_revision": semantic.revision,
            "weights": encoder.config.weights,
            "fingerprint": fingerprint(encoder),
        },
        "config": encoder.config.to_dict(),
    }


def save_adapters(module: nn.Module, folder: str | Path) -> None:
    """Write a module's adapters to a folder, atomically.

    Args:
        module: A `SketchFusionEncoder`, or a module with one inside.
        folder: Folder to write; other files in it are left alone.

    Raises:
        OSError: The folder cannot be written; what it held is untouched.
    """
    folder = Path(folder)
    description = describe(module)
    write_safetensors(
        adapter_state(module), folder / WEIGHTS_FILE, {"sketchfusion": json.dumps(description)}
    )
    write_text(json.dumps(description, indent=2) + "\n", folder / CONFIG_FILE)


def load_adapters(
    module: nn.Module, source: str | Path, *, revision: str | None = None, strict: bool = True
) -> list[str]:
    """Load adapters into a module; everything is checked before anything is changed.

    Args:
        module: A `SketchFusionEncoder`, or a module with one inside, with the foundations that the
            adapters were trained on.
        source: Folder, safetensors file, Hugging Face id, or ``"sketchfusion/tiny"`` for the
            packaged ones.
        revision: Branch, tag or commit of a hub id.
        strict: Whether what lies outside the encoder (a head) must fit too. If not, it is loaded
            where it fits, and the encoder may sit elsewhere in the module than it did.

    Returns:
        Names of the module's adapters and heads that the checkpoint did not have or fit.

    Raises:
        CheckpointError: Damaged file.
        MisfitError: Other architecture, or other foundations.
        OSError: Not found.
    """
    path = _locate(source, revision)
    description, tensors = _read(path)
    prefix, encoder = find_encoder(module)
    # Foundations that were trained are in the file; frozen ones must be the module's own.
    holds_foundations = not _parse_config(path, description).freeze_foundations
    if not holds_foundations:
        _check_foundations(path, description["foundations"], encoder)
    expected = _state(module, with_foundations=holds_foundations)
    if strict:
        _check_tensors(path, tensors, expected)
    else:
        saved = description["prefix"]
        head = {name: tensor for name, tensor in tensors.items() if not name.startswith(saved)}
        tensors = {
            prefix + name.removeprefix(saved): tensor
            for name, tensor in tensors.items()
            if name.startswith(saved)
        }
        inside = {name: tensor for name, tensor in expected.items() if name.startswith(prefix)}
        _check_tensors(path, tensors, inside)
        tensors |= {
            name: tensor
            for name, tensor in head.items()
            if prefix and name in expected and tensor.shape == expected[name].shape
        }
    module.load_state_dict(tensors, strict=False)
    return sorted(set(expected) - set(tensors))


def read_config(source: str | Path, *, revision: str | None = None) -> EncoderConfig:
    """Configuration of the encoder whose adapters a checkpoint holds.

    Raises:
        CheckpointError: Damaged file.
        OSError: Not found.
    """
    path = _locate(source, revision)
    description, _ = _read(path, tensors=False)
    return _parse_config(path, description)


def read_task(
    source: str | Path, *, revision: str | None = None
) -> tuple[str, dict[str, Any]] | None:
    """Name and settings of the task whose head a checkpoint holds; None if it holds none.

    Raises:
        CheckpointError: Damaged file.
        OSError: Not found.
    """
    path = _locate(source, revision)
    description, _ = _read(path, tensors=False)
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
    path = _locate(source, revision)
    description, _ = _read(path, tensors=False)
    task = description.get("task")
    size = task.get("image_size") if isinstance(task, dict) else None
    if size is not None and (type(size) is not int or size < 1):
        raise CheckpointError(
            f"{path} has an unreadable image size, expected pixels of at least 1, got {size!r}."
        )
    return size


def push_adapters(
    module: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload SketchFusion adapters",
) -> str:
    """Upload a module's adapters to the Hugging Face hub, creating the repository if needed.

    Returns:
        Address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_adapters(module, folder)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        write_text(_model_card(module, repo_id), Path(folder) / "README.md")
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message
        )
    return str(commit.commit_url)


def _state(module: nn.Module, with_foundations: bool) -> dict[str, Tensor]:
    prefix, encoder = find_encoder(module)
    foundations = tuple(f"{prefix}{name}." for name in encoder.foundation_names())
    return {
        name: tensor
        for name, tensor in module.state_dict().items()
        if with_foundations or not (foundations and name.startswith(foundations))
    }


def _locate(source: str | Path, revision: str | None) -> Path:
    path = bundled_weights(str(source)) or Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / WEIGHTS_FILE).is_file():
            held = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
            raise OSError(f"expected {WEIGHTS_FILE} in {path}, which holds {held}.")
        return path / WEIGHTS_FILE
    if path.is_absolute() or len(Path(source).parts) != 2:
        raise OSError(
            f"no adapters at {source}. Give a folder written by save_pretrained, or a Hugging Face "
            "id 'owner/name'."
        )
    from huggingface_hub import hf_hub_download

    with explain_loading("adapters", str(source), revision):
        return Path(hf_hub_download(str(source), WEIGHTS_FILE, revision=revision))


def _read(path: Path, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has an unreadable description: {error!r}.") from error
    return description, state


def _parse_config(path: Path, description: dict[str, Any]) -> EncoderConfig:
    try:
        return EncoderConfig.from_dict(description["config"])
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a configuration that this version does not read: {error} It was written "
            f"by version {description.get('sketchfusion_plugins')}."
        ) from error


def _check_foundations(path: Path, expected: dict[str, Any], encoder: SketchFusionEncoder) -> None:
    found = fingerprint(encoder)
    if expected["fingerprint"] == found:
        return
    diffusion, semantic = encoder.config.diffusion, encoder.config.semantic
    raise MisfitError(
        f"{path} was trained on other foundations than this model has. Expected "
        f"{expected['diffusion']} (revision {expected['diffusion_revision']}, UNet file "
        f"{expected['unet_file']}) and {expected['semantic']} (revision "
        f"{expected['semantic_revision']}), {expected['weights']} weights, fingerprint "
        f"{expected['fingerprint']}. Got {diffusion.source} (revision {diffusion.revision}, UNet "
        f"file {diffusion.unet_file}) and {semantic.source} (revision {semantic.revision}), "
        f"{encoder.config.weights} weights, fingerprint {found}. Build the model with the expected "
        "foundations."
    )


def _check_tensors(path: Path, got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    problems = []
    for title, names in (
        ("missing", sorted(set(expected) - set(got))),
        ("unexpected", sorted(set(got) - set(expected))),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            problems.append(f"{title} {', '.join(names[:4])}{more}")
    problems += [
        f"{name} is {list(got[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(set(got) & set(expected))
        if got[name].shape != expected[name].shape
    ][:4]
    problems += [
        f"{name} is {got[name].dtype}, expected {expected[name].dtype}"
        for name in sorted(set(got) & set(expected))
        # Precisions are converted; numbers of another kind are other values.
        if got[name].dtype.is_floating_point != expected[name].dtype.is_floating_point
    ][:4]
    if problems:
        raise MisfitError(
            f"{path} does not fit this model: {'; '.join(problems)}. "
            "Build the model with the configuration and number of classes that it was saved with."
        )


def _model_card(module: nn.Module, repo_id: str) -> str:
    _, encoder = find_encoder(module)
    config = encoder.config
    return (
        "---\nlibrary_name: sketchfusion-plugins\n"
        "tags:\n- sketch\n- image-feature-extraction\n---\n\n"
        "# SketchFusion adapters\n\n"
        f"Injection and aggregation weights for `{config.diffusion.source}` and "
        f"`{config.semantic.source}`, which are not included and keep their own licences.\n\n"
        "```python\nfrom sketchfusion_plugins import SketchFusionEncoder\n\n"
        f'encoder = SketchFusionEncoder.from_pretrained("{repo_id}")\n```\n'
    )
