"""Adapters on disk: ``adapters.safetensors``, described within, and a readable ``config.json``.

Only what trains is written: injection, aggregation and, for a model around the encoder, its head.
A frozen foundation is not, unless it came from a checkpoint itself: there it may have been trained.
The description inside the safetensors file is the one that counts, so the two files cannot disagree
after a crash between their writes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sketchfusion_plugins.adapter_file import (
    CONFIG_FILE,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    CheckpointError,
    MisfitError,
    locate,
    parse_config,
    read,
    show_foundations,
)
from sketchfusion_plugins.files import write_safetensors, write_text
from sketchfusion_plugins.fingerprint import (
    COMPUTED,
    fingerprint_modules,
    plain_name,
    sample_modules,
)
from sketchfusion_plugins.foundation_settings import (
    NULL_PROMPT,
    describe_difference,
    read_settings,
)
from sketchfusion_plugins.timm_entries import timm_entries
from sketchfusion_plugins.wrappers import find_encoder, unwrap

if TYPE_CHECKING:
    from sketchfusion_plugins.encoder import SketchFusionEncoder


def adapter_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of a module without its encoder's frozen foundations.

    Foundations that were unfrozen are part of it: they may have been trained. Names are those of
    the module as it is without `torch.compile` and data parallelism.
    """
    module = unwrap(module)
    _, encoder = find_encoder(module)
    return _state(module, with_foundations=not encoder.config.freeze_foundations)


def sample_foundations(encoder: SketchFusionEncoder) -> dict[str, Tensor]:
    """Values by which `fingerprint` knows frozen foundations again when their precision changes.

    None for those that may train, which are what they are, and for those without values.
    """
    if not encoder.config.freeze_foundations or any(p.is_meta for p in encoder.parameters()):
        return {}
    return sample_modules(_foundations(encoder))


def fingerprint(encoder: SketchFusionEncoder) -> str:
    """Short hash that tells foundations apart.

    The same for every precision that frozen ones are held in; those that may train are hashed as
    they are.
    """
    return fingerprint_modules(_foundations(encoder), encoder.foundation_samples)


def describe(module: nn.Module) -> dict[str, Any]:
    """What ``config.json`` holds."""
    from sketchfusion_plugins import __version__

    module = unwrap(module)
    prefix, encoder = find_encoder(module)
    # A task, known by its attributes: its class lies floors above this file.
    name, settings = getattr(module, "name", None), getattr(module, "settings", None)
    task: dict[str, Any] | None = None
    if isinstance(name, str) and isinstance(settings, dict):
        image_size, split = getattr(module, "image_size", None), getattr(module, "split", None)
        task = {
            "name": name,
            "settings": settings,
            "image_size": image_size,
            "split": None if split is None else split.as_json(),
        }
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "sketchfusion_plugins": __version__,
        "prefix": plain_name(prefix),
        "task": task,
        "foundations": {
            **_whereabouts(encoder),
            "fingerprint": fingerprint(encoder),
            "settings": read_settings(encoder),
        },
        "config": encoder.config.to_dict(),
    }


def save_adapters(module: nn.Module, folder: str | Path) -> None:
    """Write a module's adapters to a folder, atomically.

    Foundations that were trained, now or before they were loaded from a checkpoint, go with them,
    and with a warning those that a state dict has put in the place of the ones that were built, or
    that something was added to, such as LoRA; they are known by a few values of every tensor. The
    folder is a model of timm's too,
    ``local-dir:FOLDER``, with its classifier if timm made it; unless levels are not aggregated to
    one map.

    Args:
        module: A `SketchFusionEncoder`, or a module with one inside, compiled or wrapped for data
            parallelism or not. One with a method ``config_entries`` says itself what other
            libraries look for in ``config.json``, which this one never reads.
        folder: Folder to write; other files in it are left alone.

    Raises:
        CheckpointError: Parameters are spread over processes, as by FSDP.
        OSError: The folder cannot be written; what it held is untouched.
    """
    folder = Path(folder)
    module = unwrap(module)
    if any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):
        raise CheckpointError(
            "the model's parameters are spread over processes (fully_shard), expected them whole. "
            "Gather them in every process with torch.distributed.checkpoint.state_dict."
            "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), load "
            "them into a model that is not spread, and save that one."
        )
    description = describe(module)
    _, encoder = find_encoder(module)
    if _are_replaced(encoder):
        warnings.warn(
            f"the model was built with {encoder.config.weights} foundations and others were loaded "
            f"or put into it, so {folder} holds them too. To write adapters alone, build the model "
            "with those foundations before its state dict is loaded: pretrained=True (timm) or "
            "weights='pretrained'. What was added to them, such as LoRA, has to be added again "
            "before this file is loaded.",
            stacklevel=2,
        )
    own: Callable[[], Mapping[str, Any]] | None = getattr(module, "config_entries", None)
    others = timm_entries(encoder.config, description["task"]) if own is None else own()
    told = json.dumps({**others, **description}, indent=2)
    write_safetensors(
        _state(module, with_foundations=writes_foundations(encoder)),
        folder / WEIGHTS_FILE,
        {"sketchfusion": json.dumps(description)},
    )
    write_text(told + "\n", folder / CONFIG_FILE)


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
    path = locate(source, revision)
    description, tensors = read(path)
    module = unwrap(module)
    prefix, encoder = find_encoder(module)
    prefix = plain_name(prefix)
    saved, tensors = _unwrap_names(description["prefix"], tensors, prefix)
    # Foundations that were trained are in the file; frozen ones must be the module's own.
    inner = tuple(f"{saved}{name}." for name in encoder.foundation_names())
    unfrozen = not parse_config(path, description).freeze_foundations
    holds_foundations = unfrozen or any(name.startswith(inner) for name in tensors)
    if not holds_foundations:
        _check_foundations(path, description, encoder)
    settings = dict(description["foundations"].get("settings", {}))
    if any(name.startswith(inner) and name.endswith(COMPUTED) for name in tensors):
        settings.pop(NULL_PROMPT, None)
    # Not even a file that holds foundations holds the others.
    difference = describe_difference(settings, encoder)
    if difference:
        raise MisfitError(f"{path} {difference}")
    expected = _state(module, with_foundations=holds_foundations)
    if strict:
        _check_tensors(path, tensors, expected)
    else:
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
    names = {plain_name(name): name for name in _whole_state(module)}
    module.load_state_dict({names[name]: value for name, value in tensors.items()}, strict=False)
    if holds_foundations:
        encoder.holds_trained_foundations = True
        encoder.foundation_samples = sample_foundations(encoder)
    return sorted(set(expected) - set(tensors))


def _foundations(encoder: SketchFusionEncoder) -> dict[str, nn.Module]:
    return {name: getattr(encoder, name) for name in encoder.foundation_names()}


@contextmanager
def forgetting_what_goes(encoder: SketchFusionEncoder) -> Iterator[None]:
    """What is deleted from the foundations inside was not replaced: it is no longer looked for."""
    before = _foundation_names(encoder)
    yield
    gone = before - _foundation_names(encoder)
    encoder.foundation_samples = {
        title: values
        for title, values in encoder.foundation_samples.items()
        if title.partition("(")[0] not in gone
    }


def _foundation_names(encoder: SketchFusionEncoder) -> set[str]:
    return {
        plain_name(f"{branch}.{name}").replace(".base_layer", "")  # LoRA's name of what it wraps
        for branch, module in _foundations(encoder).items()
        for name in module.state_dict()
    }


def writes_foundations(encoder: SketchFusionEncoder) -> bool:
    """Whether `save_adapters` writes an encoder's foundations too."""
    trained = not encoder.config.freeze_foundations or encoder.holds_trained_foundations
    return trained or _are_replaced(encoder)


def _are_replaced(encoder: SketchFusionEncoder) -> bool:
    """Whether frozen foundations have other weights than they were built with, more or fewer.

    Not of those that were trained, which are written in any case.
    """
    if encoder.holds_trained_foundations:
        return False
    built = encoder.foundation_samples
    if not built:
        # Built on the meta device, they were given values since: not those of the random seed.
        given = not any(parameter.is_meta for parameter in encoder.parameters())
        return given and encoder.config.weights == "random"
    found = sample_modules(_foundations(encoder), built)
    return found.keys() != built.keys() or any(found[title] is not built[title] for title in built)


def _whole_state(module: nn.Module) -> dict[str, Tensor]:
    prefix, encoder = find_encoder(module)
    # A module may hide its encoder's foundations.
    return {**module.state_dict(), **encoder.state_dict(prefix=prefix)}


def _state(module: nn.Module, with_foundations: bool) -> dict[str, Tensor]:
    prefix, encoder = find_encoder(module)
    foundations = tuple(f"{prefix}{name}." for name in encoder.foundation_names())
    return {
        plain_name(name): tensor
        for name, tensor in _whole_state(module).items()
        if with_foundations or not name.startswith(foundations)
    }


def _unwrap_names(
    saved: str, tensors: dict[str, Tensor], prefix: str
) -> tuple[str, dict[str, Tensor]]:
    """Prefix and names without the wrappers that earlier versions wrote down."""
    saved = plain_name(saved)
    tensors = {plain_name(name): tensor for name, tensor in tensors.items()}
    outer = "module."
    known = prefix.startswith(outer) or not saved.startswith(outer)
    if not known and all(name.startswith(outer) for name in tensors):
        saved = saved.removeprefix(outer)
        tensors = {name.removeprefix(outer): tensor for name, tensor in tensors.items()}
    return saved, tensors


def _check_foundations(
    path: Path, description: dict[str, Any], encoder: SketchFusionEncoder
) -> None:
    expected, found = description["foundations"], fingerprint(encoder)
    if expected["fingerprint"] == found:
        return
    saved, config = parse_config(path, description), encoder.config
    here = _whereabouts(encoder)
    advice = "Build the model with the expected foundations."
    if any(_is_lora(name) for part in _foundations(encoder).values() for name in part.state_dict()):
        advice = "LoRA was added to them: load this file before."
    elif config.weights == saved.weights == "random":
        advice = f"Random ones come from random_seed: expected {saved.random_seed}."
    elif saved.semantic == config.semantic and here == {key: expected.get(key) for key in here}:
        advice = (
            "What these names stand for may have changed since: give an earlier revision or copy."
        )
    raise MisfitError(
        f"{path} was trained on other foundations than this model has. Expected "
        f"{show_foundations(expected)}. Got {show_foundations({**here, 'fingerprint': found})}. "
        f"{advice}"
    )


def _is_lora(name: str) -> bool:
    return "lora_" in name or ".base_layer." in name


def _whereabouts(encoder: SketchFusionEncoder) -> dict[str, str | None]:
    diffusion, semantic = encoder.config.diffusion, encoder.config.semantic
    return {
        "diffusion": diffusion.source,
        "diffusion_revision": diffusion.revision,
        "diffusion_variant": diffusion.variant,
        "unet_file": diffusion.unet_file,
        "semantic": semantic.source,
        "semantic_revision": semantic.revision,
        "semantic_variant": semantic.variant,
        "weights": encoder.config.weights,
    }


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
        advice = (
            "Build the model with the configuration and number of classes that it was saved with."
        )
        if any(_is_lora(name) for name in set(got) ^ set(expected)):
            advice = "One has LoRA and the other has not: before loading, make them alike."
        raise MisfitError(f"{path} does not fit this model: {'; '.join(problems)}. {advice}")
