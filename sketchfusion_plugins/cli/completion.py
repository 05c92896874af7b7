"""What the shell offers at the tab key; answers must come at once, so nothing heavy is imported."""

from __future__ import annotations

_BUNDLED = ("sketchfusion/tiny", "sketchfusion/tiny-retrieval")


def complete_model(incomplete: str) -> list[str]:
    """Names that ``--model`` takes, but for folders."""
    from sketchfusion_plugins.catalogue import CATALOGUE

    presets = [entry.preset for entry in CATALOGUE]
    parts = [f"{part}:{preset}" for part in ("clip", "sd", "sd+clip") for preset in presets]
    return _starting(incomplete, [*_BUNDLED, *presets, *parts, "hog", "pixels"])


def complete_trainable(incomplete: str) -> list[str]:
    """Names that ``train --model`` takes, but for folders."""
    from sketchfusion_plugins.catalogue import CATALOGUE

    names = [name for entry in CATALOGUE for name in (entry.preset, *entry.timm_names)]
    return _starting(incomplete, [*_BUNDLED, *names])


def complete_timm_name(incomplete: str) -> list[str]:
    """Our timm models, with and without tags."""
    from sketchfusion_plugins.catalogue import CATALOGUE

    return _starting(incomplete, [name for entry in CATALOGUE for name in entry.timm_names])


def complete_task(incomplete: str) -> list[str]:
    """The four sketch tasks."""
    return _starting(
        incomplete, ["recognition", "retrieval", "query_segmentation", "correspondence"]
    )


def complete_config(incomplete: str) -> list[str]:
    """Names of mmseg configs."""
    from sketchfusion_plugins.mmseg_scripts import list_configs

    return _starting(incomplete, list(list_configs()))


def _starting(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
