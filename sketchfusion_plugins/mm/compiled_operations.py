"""Stands in for the compiled operations of OpenMMLab's mmcv where they are not installed.

mmsegmentation imports ``mmcv.ops`` whatever model it builds, and OpenMMLab's mmcv-lite, which comes
without compiled operations, then fails. None of our models uses one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

MODULE = "mmcv._ext"


def stand_in_for_compiled_operations() -> None:
    """Make ``mmcv.ops`` importable; what is missing is refused when it is called instead."""
    if MODULE not in sys.modules and find_spec(MODULE) is None:
        module = _MissingOperations(MODULE)
        # Without a loader: so mmengine still sees that there are no compiled operations.
        module.__spec__ = ModuleSpec(MODULE, loader=None)
        sys.modules[MODULE] = module


class _MissingOperations(ModuleType):
    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(
                f"mmcv's compiled operation {name} was called, but mmcv-lite has none. Install "
                "mmcv 2.1.0 with its operations, or choose a model that needs none."
            )

        return refuse
