"""One import that another one brings with it.

timm has no discovery of plugins, so models are registered by importing a module. Importing timm
takes seconds, which nobody should wait for who asks the command line for help.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def follow_import(leader: str, follower: str) -> None:
    """Import ``follower`` whenever ``leader`` is imported, and now if it already was.

    Args:
        leader: Name of a top-level module.
        follower: Dotted name of a module, which is imported when ``leader`` is complete. An error
            in it is the error of importing ``leader``.
    """
    if leader in sys.modules:
        import_module(follower)
    else:
        sys.meta_path.insert(0, _Follower(leader, follower))


class _Follower(MetaPathFinder):
    """Finds the leader where all others find it, and lets its loader do one thing more."""

    def __init__(self, leader: str, follower: str) -> None:
        self.leader = leader
        self.follower = follower

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.leader:
            return None
        for finder in sys.meta_path:
            if isinstance(finder, _Follower):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self._extend(spec)
                return spec
        return None

    def _extend(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if loader is None:
            return
        execute = loader.exec_module

        def execute_both(module: ModuleType) -> None:
            execute(module)
            import_module(self.follower)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        # The loader stays what it was to whoever looks at it: only this spec's copy is changed.
        loader.exec_module = execute_both  # type: ignore[method-assign]
