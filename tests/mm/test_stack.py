"""Which combinations of OpenMMLab's packages are refused."""

from __future__ import annotations

import builtins
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from typing import Any

import pytest

pytest.importorskip("mmseg")

from sketchfusion_plugins.mm import compiled_operations, stack

UPSTREAM = {"mmengine": "0.10.7", "mmcv-lite": "2.1.0", "mmsegmentation": "1.2.2"}
FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmsegmentation": "1.4.2"}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that these distributions are installed, and these modules missing or broken.

    Returns how often compiled operations were replaced.
    """
    stood_in: list[int] = []

    def make(
        distributions: dict[str, str],
        missing: tuple[str, ...] = (),
        broken: dict[str, Exception] | None = None,
    ) -> list[int]:
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
        monkeypatch.setattr(stack, "stand_in_for_compiled_operations", lambda: stood_in.append(1))
        return stood_in

    return make


def test_what_is_installed_works() -> None:
    stack.check_stack()


def test_without_mmengine(pretend: Any) -> None:
    pretend({}, missing=("mmengine", "mmcv", "mmseg"))
    with pytest.raises(
        ModuleNotFoundError, match=r"needs mmengine.*tasks: pip .*\[tasks\].*MMSeg.*\[mmseg\]"
    ):
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
    assert "[mmseg-upstream]" in message


@pytest.mark.parametrize(("distributions", "expected"), [(UPSTREAM, 1), (FORKS, 0)])
def test_upstream_alone_gets_a_stand_in_for_compiled_operations(
    pretend: Any, distributions: dict[str, str], expected: int
) -> None:
    stood_in = pretend(distributions)
    stack.check_stack()
    assert len(stood_in) == expected


@pytest.fixture
def no_compiled_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, compiled_operations.MODULE, raising=False)
    monkeypatch.setattr(compiled_operations, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_compiled_operations")
def test_stand_in_is_found_by_mmcv_and_refuses_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcv.utils.ext_loader import load_ext

    compiled_operations.stand_in_for_compiled_operations()
    module = sys.modules[compiled_operations.MODULE]
    assert load_ext("_ext", ["nms", "roi_align_forward"]) is module
    with pytest.raises(NotImplementedError, match="operation nms was called, but mmcv-lite has"):
        module.nms(1, scores=2)
    assert not hasattr(module, "__path__")
    assert find_spec(compiled_operations.MODULE).loader is None
    compiled_operations.stand_in_for_compiled_operations()
    assert sys.modules[compiled_operations.MODULE] is module
    monkeypatch.delitem(sys.modules, compiled_operations.MODULE)


def test_compiled_operations_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, compiled_operations.MODULE, raising=False)
    monkeypatch.setattr(compiled_operations, "find_spec", lambda name: object())
    compiled_operations.stand_in_for_compiled_operations()
    assert compiled_operations.MODULE not in sys.modules


def test_importing_says_nothing_of_what_nothing_uses() -> None:
    code = "import sketchfusion_plugins.mm"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_other_words_of_an_import_are_passed_on(
    pretend: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(FORKS)
    monkeypatch.setattr(stack, "import_module", lambda name: print(f"{name} is\nold"))
    stack.check_stack()
    parts = ("mmcv", "mmseg", "mmseg.apis", "mmseg.datasets")
    assert capsys.readouterr().out == "".join(f"{name} is\nold\n" for name in parts)
