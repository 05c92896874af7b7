"""No call that could run code out of data; exceptions are listed with their reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder in ("sketchfusion_plugins", "timm_adapters", "mmseg_configs", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn"}
# What it is, by file: reason.
ALLOWED = {
    ("sketchfusion_plugins/mm/safe_loading.py", "import pickle"): (
        "takes the exception class alone, to refuse what a checkpoint asks for"
    ),
}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _found(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
            yield from (f"import {root}" for root in sorted(roots & MODULES))
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in MODULES:
            yield f"import {str(node.module).split('.')[0]}"
        elif isinstance(node, ast.Call):
            name, options = _name(node.func), {item.arg: item.value for item in node.keywords}
            last = name.rpartition(".")[2]
            if name in CALLS:
                yield name
            if name in ("torch.load", "load_checkpoint") and not _is(
                options.get("weights_only"), True
            ):
                yield f"{name} without weights_only=True"
            if name in ("np.load", "numpy.load") and not _is(options.get("allow_pickle"), False):
                yield f"{name} without allow_pickle=False"
            if "trust_remote_code" in options and not _is(options["trust_remote_code"], False):
                yield "trust_remote_code"
            if "allow_pickle" in options and _is(options["allow_pickle"], True):
                yield "allow_pickle=True"
            if "shell" in options and not _is(options["shell"], False):
                yield "shell"
            program = name.startswith("subprocess.") or last in ("Popen", "check_output")
            if program and node.args and _is_text(node.args[0]):
                yield f"{name} of a text"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_code_out_of_data(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    wrong = [what for what in _found(ast.parse(path.read_text())) if (name, what) not in ALLOWED]
    assert not wrong, f"{name}: {', '.join(wrong)}"


def test_every_exception_is_needed() -> None:
    for name, what in ALLOWED:
        assert what in _found(ast.parse((ROOT / name).read_text())), f"{name} has no {what}"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "model(trust_remote_code=True)",
        "subprocess.run('ls')",
        "subprocess.run(f'ls {folder}')",
        "subprocess.run('ls ' + folder)",
        "subprocess.run(command, shell=True)",
        "load(path, allow_pickle=True)",
    ],
)
def test_the_scan_sees(code: str) -> None:
    assert list(_found(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "np.load(path, mmap_mode='r', allow_pickle=False)",
        "subprocess.run([program, argument])",
        "re.compile('a')",
    ],
)
def test_the_scan_lets_pass(code: str) -> None:
    assert not list(_found(ast.parse(code)))
