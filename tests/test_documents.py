"""Every code block of the documents: Python is executed, commands are read by what they call."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from sketchfusion_plugins.cli import app
from sketchfusion_plugins.mmseg_scripts import list_configs

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "examples/README.md",
    "examples/RESULTS.md",
    "examples/benchmarks/README.md",
    "examples/pretrain_tiny/README.md",
    "mmseg_configs/README.md",
    "sketchfusion_plugins/weights/tiny/README.md",
)
COMMAND = typer.main.get_command(app)


class Block(NamedTuple):
    document: str
    line: int
    language: str
    text: str


def _blocks() -> Iterator[Block]:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for found in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
            line = text[: found.start()].count("\n") + 1
            yield Block(document, line, found[2], textwrap.dedent(found[3]))


BLOCKS = list(_blocks())


def _commands() -> list[tuple[str, list[str]]]:
    """Commands of all bash blocks, where they stand; one that goes on in the next line is one."""
    found = []
    for block in BLOCKS:
        if block.language != "bash":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            for words in _split(shlex.split(line, comments=True)):
                found.append((f"{block.document}:{block.line} {' '.join(words)}", words))
    return found


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, "&&"]:
        if word != "&&":
            command.append(word)
        elif command:
            yield command
            command = []


COMMANDS = _commands()


def test_blocks_are_found_and_of_a_language_that_is_tested() -> None:
    assert {block.document for block in BLOCKS} >= {"README.md", "examples/README.md"}
    assert {block.language for block in BLOCKS} == {"bash", "bibtex", "python"}
    assert len(COMMANDS) > 25


def _parse(arguments: list[str]) -> None:
    """Let Typer read a command of ours as far as calling it."""
    command: Any = COMMAND
    trail = "sketchfusion"
    while hasattr(command, "commands"):
        trail, *arguments = arguments
        assert trail in command.commands, trail
        command = command.commands[trail]
    with command.make_context(trail, list(arguments)) as context:
        assert context.params
        name = context.params.get("name", "")
    # These pass on what they do not know, a config's name included.
    if trail in ("mm-train", "mm-test") and not name.endswith(".py"):
        assert name in list_configs(), name


def _check(words: list[str]) -> None:
    program, *arguments = words
    name = Path(program).name
    if name == "sketchfusion":
        _parse(arguments)
    elif name == "torchrun":
        place = arguments.index("-m")
        assert arguments[place + 1] == "sketchfusion_plugins"
        _parse(arguments[place + 2 :])
    elif name == "bash":
        recipe = (ROOT / arguments[0]).read_text(encoding="utf-8")
        usage = re.findall(r"usage: [\w.]+((?: [A-Z]+)+)\}", recipe)
        assert len(arguments) - 1 == len(usage[0].split())
    elif name == "pip":
        assert arguments[0] == "install"
        for extra in re.findall(r"\[(.+)\]", " ".join(arguments)):
            declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
            for one in extra.split(","):
                assert f"\n{one} = [" in declared
    elif name.startswith("python") and arguments[0] == "-m":
        assert arguments[1] == "venv"
    elif name.startswith("python"):
        script = ROOT / arguments[0]
        source = script.read_text(encoding="utf-8")
        beside = (script.with_stem(name) for name in re.findall(r"^from (\w+) ", source, re.M))
        read = [source, *(path.read_text(encoding="utf-8") for path in beside if path.is_file())]
        for flag in (word for word in arguments[1:] if word.startswith("--")):
            assert any(f'"{flag}"' in text for text in read), flag
    else:
        assert name == "pytest", f"nothing tests {name}"


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=[t for t, _ in COMMANDS])
def test_commands_are_read_by_what_they_call(words: list[str]) -> None:
    _check(words)


@pytest.mark.parametrize(
    "command",
    [
        "sketchfusion nonsense",
        "rm -r .",
        'pip install ".[nonsense]"',
        "python examples/match.py --nonsense",
        "python examples/match.py --limit 3",
        "sketchfusion mm-train nonsense",
        "bash examples/recipes/quickdraw.sh one",
    ],
)
def test_a_wrong_command_is_noticed(command: str) -> None:
    with pytest.raises(AssertionError):
        _check(shlex.split(command))


def test_a_wrong_argument_is_noticed() -> None:
    with pytest.raises(Exception, match=r"(?i)missing"):
        _check(["sketchfusion", "match", "a.png", "--model", "tiny"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documents' Python finds the files that it names."""
    from PIL import Image, ImageDraw

    from sketchfusion_plugins import SketchFusionEncoder
    from sketchfusion_plugins.tasks.load import build_task

    tmp_path = tmp_path_factory.mktemp("documents")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "mmseg_configs").symlink_to(ROOT / "mmseg_configs")
    drawing = Image.new("RGB", (200, 131), "white")
    ImageDraw.Draw(drawing).ellipse((30, 20, 150, 110), outline="black", width=4)
    drawing.save(tmp_path / "sketch.png")
    drawing.rotate(10, fillcolor="grey").save(tmp_path / "photo.jpg")
    encoder = SketchFusionEncoder.from_pretrained("sketchfusion/tiny")
    folders = {
        "recognition": "recognition",
        "retrieval": "retrieval",
        "query_segmentation": "segmentation",
        "correspondence": "correspondence",
    }
    for task, name in folders.items():
        settings = {"classes": ["cat", "dog", "owl"]} if task == "recognition" else {}
        built = build_task(task, encoder, **settings).eval()
        built.save_pretrained(tmp_path / "runs" / name / "adapters")
    return tmp_path


@pytest.fixture
def folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a document's Python."""
    monkeypatch.chdir(files)
    return files


@pytest.mark.parametrize("document", DOCUMENTS[:2])
def test_python_runs_from_the_first_block_to_the_last(document: str, folder: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    blocks = [b for b in BLOCKS if b.document == document and b.language == "python"]
    assert blocks
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks:
        # Lines are counted as in the document, for whoever reads the traceback.
        code = "\n" * block.line + block.text
        exec(compile(code, str(ROOT / document), "exec"), names)
    expected = {
        "README.md": {"descriptor": (1, 192, 32, 32)},
        "examples/README.md": {
            "probabilities": (3,),
            "similarity": (1,),
            "mask": (128, 128),
            "found": (1, 2, 2),
            "logits": (1, 10),
            "masks": (1, 4, 128, 128),
        },
    }[document]
    assert {name: tuple(names[name].shape) for name in expected} == expected


def test_python_of_other_documents_configures(folder: Path) -> None:
    pytest.importorskip("mmseg")
    from mmengine.config import Config

    from sketchfusion_plugins import EncoderConfig, preset

    blocks = [b for b in BLOCKS if b.document not in DOCUMENTS[:2] and b.language == "python"]
    assert len(blocks) == 3
    for block in blocks:
        if "custom_imports" in block.text:
            _check_own_config(block.text, folder)
        elif "_base_" in block.text:
            (folder / "config.py").write_text(block.text)
            config = Config.fromfile(folder / "config.py")
            assert config.model.backbone.type == "SketchFusion"
            assert config.model.decode_head.num_classes == 2
        else:
            names: dict[str, Any] = {"preset": preset}
            exec(block.text, names)
            assert isinstance(names["config"], EncoderConfig)


def _check_own_config(text: str, folder: Path) -> None:
    """It makes a model of one that has another backbone, and that model trains."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import DefaultScope, init_default_scope
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    # As mmseg's own _base_/models/fpn_r50.py, made for crops.
    base = {
        "model": {
            "type": "EncoderDecoder",
            "pretrained": "open-mmlab://resnet50_v1c",
            "data_preprocessor": {
                "type": "SegDataPreProcessor",
                "mean": [123.675, 116.28, 103.53],
                "std": [58.395, 57.12, 57.375],
                "bgr_to_rgb": True,
                "pad_val": 0,
                "seg_pad_val": 255,
                "size": (512, 512),
            },
            "backbone": {"type": "ResNetV1c", "depth": 50, "out_indices": (0, 1, 2, 3)},
            "neck": {"type": "FPN", "in_channels": [256, 512, 1024, 2048], "num_outs": 4},
            "decode_head": {
                "type": "FPNHead",
                "in_channels": [256] * 4,
                "in_index": [0, 1, 2, 3],
                "feature_strides": [4, 8, 16, 32],
                "channels": 8,
                "num_classes": 3,
                "norm_cfg": {"type": "BN"},
                "align_corners": False,
            },
            "test_cfg": {"mode": "whole"},
        },
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.1}},
    }
    Config(base).dump(folder / "base.py")
    (folder / "own.py").write_text(f'_base_ = "./base.py"\n{text}')
    config = Config.fromfile(folder / "own.py")
    register_all_modules(init_default_scope=False)
    scopes = dict(DefaultScope._instance_dict)
    init_default_scope("mmseg")
    model = MODELS.build(config.model)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 70, 50, dtype=torch.int64)))
    white = torch.full((3, 70, 50), 255, dtype=torch.uint8)
    made = model.data_preprocessor({"inputs": [white], "data_samples": [sample]}, training=True)
    assert made["inputs"].shape == (1, 3, 96, 64) and (made["inputs"] == 1).all()
    logits = model(made["inputs"])
    assert logits.shape == (1, 3, 24, 16) and logits.requires_grad
    assert config.optim_wrapper.constructor == "AdapterOptimWrapperConstructor"


LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        place = (path.parent / target).resolve() if target else path
        assert place.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in anchors, anchor
