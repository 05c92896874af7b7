"""Which OpenMMLab packages are installed, and whether they can work together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import StringIO

from sketchfusion_plugins.mm.compiled_operations import stand_in_for_compiled_operations
from sketchfusion_plugins.mmseg_scripts import INSTALL, INSTALL_UPSTREAM

FORKS = ("onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation")
UPSTREAM = ("mmengine", "mmcv", "mmcv-lite", "mmsegmentation")


def check_stack() -> None:
    """Refuse what cannot work, before a framework fails somewhere inside.

    OpenMMLab's own packages get a stand-in for compiled operations that mmcv-lite lacks.

    Raises:
        ModuleNotFoundError: mmengine is missing.
        ImportError: OpenMMLab's packages and their forks are mixed, or do not import together.
    """
    forks, upstream = _installed(FORKS), _installed(UPSTREAM)
    if forks and upstream:
        raise ImportError(
            f"expected either OpenMMLab's packages or their maintained forks, got both: "
            f"{_listing(forks)} and {_listing(upstream)}. They own the same folders. Uninstall "
            f"all of them, then {INSTALL}"
        )
    if find_spec("mmengine") is None:
        # It alone suffices for neither: each extra has it with what goes with it.
        raise ModuleNotFoundError(
            "sketchfusion_plugins.mm needs mmengine. To train sketch tasks: "
            f'pip install "sketchfusion-plugins[tasks]". To use MMSegmentation: {INSTALL}'
        )
    if upstream and find_spec("mmcv") is not None:
        stand_in_for_compiled_operations()
    # mmseg alone has demands on its companions that its own imports check, each in its own way.
    parts = ("mmcv", "mmseg", "mmseg.apis", "mmseg.datasets")
    for module in parts if find_spec("mmseg") is not None else ():
        try:
            with _without_known_messages():
                import_module(module)
        except (ImportError, AssertionError, AttributeError) as error:
            reason = " ".join(str(error).split())
            install = INSTALL_UPSTREAM if upstream else INSTALL
            raise ImportError(
                f"{module} cannot be imported with what is installed "
                f"({_listing(forks or upstream)}): {reason} Versions that work together: {install}"
            ) from error


@contextmanager
def _without_known_messages() -> Iterator[None]:
    """Imports without what mm-packages say of optional companions that nothing here uses."""
    warnings.filterwarnings("ignore", "Fail to import ``MultiScaleDeformableAttention``")
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            if line != "Could not import OneDL":
                print(line)


def _installed(distributions: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _listing(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items()) or "no distribution"
