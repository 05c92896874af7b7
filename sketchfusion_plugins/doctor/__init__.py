"""Is this installation sound? Versions, extras, devices, weights and folders, examined.

Versions come from packaging's metadata, and torch is imported in a process of its own: an
examination also ends where torch cannot be imported.
"""

from __future__ import annotations

from collections.abc import Sequence

from sketchfusion_plugins.doctor.findings import Examination, Finding
from sketchfusion_plugins.doctor.machine import (
    examine_folders,
    examine_python,
    examine_torch,
    examine_weights,
)
from sketchfusion_plugins.doctor.packages import Installed, examine_packages

__all__ = ["Examination", "Finding", "examine"]


def examine(path: Sequence[str] | None = None) -> Examination:
    """Examine this installation.

    Args:
        path: Folders with packages' metadata; None for those that Python imports from.
    """
    return Examination(
        (
            examine_python(),
            *examine_packages(Installed(path)),
            *examine_torch(),
            *examine_weights(),
            *examine_folders(),
        )
    )
