"""Which combinations of OpenMMLab's packages are refused."""

from __future__ import annotations

import builtins
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

pytest.importorskip("mmseg")

from sketchfusion_plugins.mm import stack

FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmsegmentation": "1.4.2"}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that these distributions are installed, and these modules missing or broken."""

    def make(
        distributions: dict[str, str],
        missing: tuple[str, ...] = (),
        broken: dict[str, Exception] | None = None,
    ) -> None:
        def version(name: str) -> str:
            if name in distributions:
                return distributions[name]
            raise PackageNotFoundError(name)

        def import_module(name: str) -> Any:
            if broken and name in broken:
                raise broken[name]
            return builtins.__import__(name)

        monkeypatch.setattr(stack, "version", version)
        monkeypatch.setattr(stack, "find_spec", lambda name: None if name in missing else object())
        monkeypatch.setattr(stack, "import_module", import_module)

    return make


def test_what_is_installed_works() -> None:
    stack.check_stack()


def test_without_mmengine(pretend: Any) -> None:
    pretend({}, missing=("mmengine", "mmcv", "mmseg"))
    with pytest.raises(ModuleNotFoundError, match=r"needs mmengine: pip install .*\[mmseg\]"):
        stack.check_stack()


def test_without_mmseg_nothing_more_is_asked(pretend: Any) -> None:
    pretend({"onedl-mmengine": "0.10.12"}, missing=("mmcv", "mmseg"))
    stack.check_stack()


def test_both_stacks(pretend: Any) -> None:
    pretend({**FORKS, "mmcv-lite": "2.1.0"})
    with pytest.raises(
        ImportError, match=r"got both: onedl-mmengine 0\.10\.12.* mmcv-lite 2\.1\.0"
    ):
        stack.check_stack()


@pytest.mark.parametrize("error", [AssertionError("MMCV==2.2.0 is used"), ImportError("mmcv._ext")])
def test_versions_that_refuse_each_other(pretend: Any, error: Exception) -> None:
    upstream = {"mmengine": "0.10.7", "mmcv": "2.2.0", "mmsegmentation": "1.2.2"}
    pretend(upstream, broken={"mmseg": error})
    with pytest.raises(ImportError) as caught:
        stack.check_stack()
    message = str(caught.value)
    assert "mmseg cannot be imported" in message
    assert "mmcv 2.2.0" in message
    assert str(error) in message
