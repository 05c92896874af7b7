"""A module that comes with another one, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOOK = "from sketchfusion_plugins.import_hooks import follow_import\n"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "leader.py").write_text("value = 1\n")
    (tmp_path / "follower.py").write_text("import leader\nprint('follows', leader.value)\n")
    return tmp_path


def _python(code: str, folder: Path) -> str:
    paths = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", paths + HOOK + code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "code",
    [
        "follow_import('leader', 'follower'); print('before'); import leader; print('after')",
        "import leader; print('before'); follow_import('leader', 'follower'); print('after')",
    ],
)
def test_follower_is_imported_when_the_leader_is_complete(code: str, modules: Path) -> None:
    assert _python(code, modules).splitlines() == ["before", "follows 1", "after"]


def test_looking_for_the_leader_imports_nothing_and_forgets_nothing(modules: Path) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "follow_import('leader', 'follower')\n"
        "spec = find_spec('leader')\n"
        "print(type(spec.loader).__name__, 'leader' in sys.modules)\n"
        "import leader\n"
        "print(sum(getattr(f, 'leader', None) == 'leader' for f in sys.meta_path))\n"
    )
    found = _python(code, modules).splitlines()
    assert found == ["SourceFileLoader False", "follows 1", "0"]


def test_two_followers_and_a_second_call_are_imported_once(modules: Path) -> None:
    (modules / "second.py").write_text("print('second')\n")
    code = (
        "follow_import('leader', 'follower'); follow_import('leader', 'follower')\n"
        "import leader\n"
        "follow_import('leader', 'second')\n"
    )
    assert _python(code, modules).splitlines() == ["follows 1", "second"]


def test_missing_leader_is_python_s_own_error(modules: Path) -> None:
    (modules / "leader.py").unlink()
    code = (
        "follow_import('leader', 'follower')\n"
        "try:\n    import leader\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    )
    assert _python(code, modules).strip() == "No module named 'leader'"


def test_an_error_of_the_follower_is_shown_at_every_try(modules: Path) -> None:
    (modules / "follower.py").write_text("raise ImportError('too old')\n")
    code = (
        "follow_import('leader', 'follower')\n"
        "for _ in range(2):\n"
        "    try:\n        import leader\n    except ImportError as error:\n        print(error)\n"
    )
    assert _python(code, modules).splitlines() == ["too old", "too old"]


@pytest.mark.parametrize(
    "statement",
    [
        "import sketchfusion_plugins, timm",
        "import timm, sketchfusion_plugins",
        "import timm_adapters, timm",
    ],
)
def test_timm_knows_our_models(statement: str, tmp_path: Path) -> None:
    code = f"{statement}\nprint(timm.is_model('sketchfusion_tiny'))"
    assert _python(code, tmp_path).strip() == "True"


def test_our_package_alone_needs_neither_torch_nor_timm(tmp_path: Path) -> None:
    for name in ("torch", "timm"):
        (tmp_path / f"{name}.py").write_text("raise OSError('libcudart.so.13 not found')\n")
    code = "import sketchfusion_plugins.cli; print(sorted({'torch', 'timm'} & set(sys.modules)))"
    assert _python(code, tmp_path).strip() == "[]"
