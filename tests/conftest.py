"""Small foundations in the libraries' own folder layouts, and those libraries as oracles."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

# huggingface_hub reads them once, when it is imported. No test finds what its user has downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_CACHE"] = str(Path(tempfile.gettempdir(), "sketchfusion-tests-no-models"))

import pytest
import torch
from torch import Tensor, nn

PROMPT_LENGTH = 8
WIDTH = 32
ATTENDING_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
ATTENDING_UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3

COMMON: dict[str, Any] = {
    "block_out_channels": (32, 64, 64, 64),
    "down_block_types": ATTENDING_DOWN,
    "up_block_types": ATTENDING_UP,
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "norm_num_groups": 16,
    "sample_size": 8,
}
UNETS: dict[str, dict[str, Any]] = {
    # Stable Diffusion 1.5: one number of heads, 1x1 convolutions around attention.
    "sd15": {**COMMON, "layers_per_block": 2, "attention_head_dim": 4, "norm_num_groups": 32},
    # Stable Diffusion 2.1: heads per block, linear layers around attention.
    "sd21": {
        **COMMON,
        "layers_per_block": 2,
        "attention_head_dim": [1, 2, 4, 4],
        "use_linear_projection": True,
    },
    # BK-SDM-small: one layer per block and no mid block.
    "bk_sdm": {
        **COMMON,
        "attention_head_dim": [1, 2, 4, 4],
        "use_linear_projection": True,
        "mid_block_type": None,
    },
    # SDXL: three blocks, several transformer layers, sizes in the time embedding.
    "sdxl": {
        **COMMON,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [1, 2, 4],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
}
UNETS["small"] = {**UNETS["sd21"], "layers_per_block": 1}
POOLED_WIDTH = 16
VAE: dict[str, Any] = {
    "block_out_channels": (16, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 64,
    "scaling_factor": 0.18215,
}
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
CLIP: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 64,
    "patch_size": 8,
    "projection_dim": 16,
}
CLIP_MEAN = [0.48, 0.46, 0.41]
CLIP_STD = [0.27, 0.26, 0.28]

Change = Callable[[str, Tensor], Tensor]


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test sees or fills the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKETCHFUSION_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads wait for each other longer than they compute on models this small."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test without a seed of its own draws the same, whatever ran before in its process."""
    torch.manual_seed(0)


def _varied(model: nn.Module, seed: int) -> nn.Module:
    """Give biases and norms values other than 0 and 1, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., Any]:
    """A diffusers UNet of a style: ``sd15``, ``sd21``, ``bk_sdm``, ``sdxl``, ``small``."""
    from diffusers import UNet2DConditionModel

    def make(style: str = "small", seed: int = 0, **changes: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _varied(UNet2DConditionModel(**{**UNETS[style], **changes}), seed).eval()

    return make


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., Any]:
    """A small diffusers autoencoder, ``AutoencoderKL`` or ``AutoencoderTiny``."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    def make(tiny: bool = False, seed: int = 1, **changes: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if not tiny:
                return _varied(AutoencoderKL(**{**VAE, **changes}), seed).eval()
            widths, ones = (16,) * 4, (1,) * 4
            vae = AutoencoderTiny(
                encoder_block_out_channels=widths,
                decoder_block_out_channels=widths,
                num_encoder_blocks=ones,
                num_decoder_blocks=ones,
                **changes,
            )
            return _varied(vae, seed).eval()

    return make


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Any]:
    """A small transformers CLIP vision tower."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    def make(seed: int = 2, **changes: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = CLIPVisionModel(CLIPVisionConfig(**{**CLIP, **changes}))
            # transformers' own initialisation is so small that tokens hardly depend on the image.
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter *= 3
            return _varied(model, seed).eval()

    return make


@pytest.fixture(scope="session")
def run_unet() -> Callable[..., dict[str, Tensor]]:
    """Block outputs inside diffusers' own forward pass, read by hooks."""

    def run(
        unet: Any,
        sample: Tensor,
        timestep: int,
        prompt: Tensor,
        change: Change | None = None,
        in_place: bool = True,
    ) -> dict[str, Tensor]:
        """Run ``unet``, optionally adding ``change(name, output)`` to every block's output.

        In place, a down block's addition reaches its last skip connection, which is the same
        tensor; out of place it does not.
        """
        outputs: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., Any]:
            def read(_: nn.Module, __: Any, output: Any) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                if change is not None:
                    addition = change(name, hidden)
                    if in_place:
                        hidden += addition
                    else:
                        hidden = hidden + addition
                outputs[name] = hidden.clone()
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            return read

        blocks = {f"down{index}": block for index, block in enumerate(unet.down_blocks)}
        if unet.mid_block is not None:
            blocks["mid"] = unet.mid_block
        blocks |= {f"up{index}": block for index, block in enumerate(unet.up_blocks)}
        handles = [block.register_forward_hook(hook(name)) for name, block in blocks.items()]
        conditions = None
        batch = sample.shape[0]
        if unet.config.addition_embed_type == "text_time":
            # What SDXL's pipeline passes for an empty prompt and an uncropped image.
            height, width = 8 * sample.shape[-2], 8 * sample.shape[-1]
            conditions = {
                "text_embeds": torch.zeros(batch, POOLED_WIDTH),
                "time_ids": torch.tensor([[height, width, 0, 0, height, width]] * batch),
            }
        unet(sample, timestep, prompt.expand(batch, -1, -1), added_cond_kwargs=conditions)
        for handle in handles:
            handle.remove()
        return outputs

    return run


@pytest.fixture(scope="session")
def prompt() -> Tensor:
    """Stands in for the empty prompt's embedding."""
    return torch.randn(1, PROMPT_LENGTH, WIDTH, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def schedule() -> dict[str, Any]:
    """Stable Diffusion's noise schedule."""
    return dict(SCHEDULE)


def _write_pipeline(folder: Path, unet: Any, vae: Any) -> None:
    """A Stable Diffusion repository as it lies on the hub."""
    from transformers import CLIPTextConfig, CLIPTextModel

    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    scheduler = folder / "scheduler"
    scheduler.mkdir()
    (scheduler / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "PNDMScheduler", "steps_offset": 1, **SCHEDULE})
    )
    words = ["<|startoftext|>", "<|endoftext|>", "a", "a</w>", "b</w>", "!</w>"]
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    vocabulary = {word: index for index, word in enumerate(words)}
    (tokenizer / "vocab.json").write_text(json.dumps(vocabulary))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    special = {
        "bos_token": words[0],
        "eos_token": words[1],
        "unk_token": words[1],
        "pad_token": "!</w>",
    }
    (tokenizer / "special_tokens_map.json").write_text(json.dumps(special))
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "CLIPTokenizer", "model_max_length": PROMPT_LENGTH, **special}
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        config = CLIPTextConfig(
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=len(words),
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=5,
        )
        encoder = _varied(CLIPTextModel(config), 4)
    encoder.save_pretrained(folder / "text_encoder")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, on which nothing is the same bit for bit, from all but the tests of ``-m gpu``."""
    if not config.option.markexpr.startswith("gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session")
def pipeline_folder(
    tmp_path_factory: pytest.TempPathFactory, make_unet: Any, make_vae: Any
) -> Path:
    """A Stable Diffusion 2.1-style pipeline; to be read only."""
    folder = tmp_path_factory.mktemp("pipeline")
    _write_pipeline(folder, make_unet("small"), make_vae())
    return folder


@pytest.fixture
def pipeline_copy(tmp_path: Path, pipeline_folder: Path) -> Path:
    """A copy of the pipeline for a test to spoil."""
    return Path(shutil.copytree(pipeline_folder, tmp_path / "pipeline"))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, make_clip: Any) -> Path:
    """A CLIP vision tower with its preprocessor's configuration; to be read only."""
    folder = tmp_path_factory.mktemp("clip")
    make_clip().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": CLIP_MEAN, "image_std": CLIP_STD})
    )
    return folder


@pytest.fixture(scope="session")
def config(pipeline_folder: Path, clip_folder: Path) -> Any:
    """Configuration of an encoder on the small folders."""
    from sketchfusion_plugins.config import (
        AggregationConfig,
        DiffusionConfig,
        EncoderConfig,
        SemanticConfig,
    )

    return EncoderConfig(
        diffusion=DiffusionConfig(source=str(pipeline_folder)),
        semantic=SemanticConfig(source=str(clip_folder)),
        aggregation=AggregationConfig(out_channels=64, norm_groups=8),
    )


@pytest.fixture(scope="session")
def randomize() -> Callable[..., Any]:
    """Gives adapters values, since injection starts at zero."""

    def fill(module: Any, seed: int = 5) -> Any:
        generator = torch.Generator().manual_seed(seed)
        parts = [module.injector, module.aggregator]
        with torch.no_grad():
            for parameter in (p for part in parts if part is not None for p in part.parameters()):
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
        return module

    return fill


@pytest.fixture(scope="session")
def build(config: Any, randomize: Any) -> Callable[..., Any]:
    """An encoder on the small folders, in eval mode, its own copy for every caller."""
    from sketchfusion_plugins.encoder import SketchFusionEncoder

    built: dict[Any, SketchFusionEncoder] = {}

    def make(untouched: bool = False, seed: int = 5, **changes: Any) -> SketchFusionEncoder:
        """``untouched`` leaves injection at zero; else adapters get values by ``seed``."""
        values = config.replace(**changes)
        if values not in built:
            built[values] = SketchFusionEncoder(values).eval()
        encoder = deepcopy(built[values])
        return encoder if untouched else randomize(encoder, seed)

    return make


@pytest.fixture
def two_processes() -> Any:
    """Runs a script with a folder and its rank, 0 and 1, while a block runs; both must succeed."""

    @contextmanager
    def run(script: str, folder: Path) -> Iterator[None]:
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(folder), str(rank)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        yield
        for worker in workers:
            # So that nothing hangs; a busy machine may need minutes.
            output, _ = worker.communicate(timeout=600)
            assert worker.returncode == 0, output

    return run


@pytest.fixture(scope="session")
def sketches() -> Callable[..., Tensor]:
    """A batch of different images in -1..1: white, with dark strokes."""

    def draw(count: int, height: int = 64, width: int | None = None, seed: int = 6) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (count, 3, height, height if width is None else width)
        pixels = torch.rand(shape, generator=generator)
        return torch.where(pixels > 0.3, 1.0, 2 * pixels - 1)

    return draw


@pytest.fixture(autouse=True)
def no_scope_left_behind() -> Iterator[None]:
    """Every Runner of mmengine leaves its scope to all that builds from a registry after it."""
    yield
    registry = sys.modules.get("mmengine.registry")
    if registry is not None:
        registry.DefaultScope._instance_dict.clear()


@pytest.fixture
def replicate() -> Callable[[torch.nn.Module], Any]:
    """Makes a replica as `torch.nn.DataParallel` does, which needs several GPUs.

    Its tensors are plain attributes: that is how torch.nn.parallel.replicate leaves it.
    """

    def copy(module: torch.nn.Module) -> Any:
        replica: Any = module._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else copy(child)
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, parameter.detach())
        return replica

    return copy


@pytest.fixture
def write_png(tmp_path: Path) -> Callable[..., Path]:
    """Writes a PNG of one row by hand, of samples that Pillow writes no files of."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    def write(
        row: bytes, *, width: int, depth: int, kind: int = 0, clear: Sequence[int] = ()
    ) -> Path:
        parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))]
        if clear:
            parts.append(chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
        parts += [chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
        path = tmp_path / f"{depth}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        return path

    return write
