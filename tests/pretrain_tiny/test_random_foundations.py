"""The control on random foundations: drawn from the run's seed, the same when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sketchfusion_plugins import SketchFusionEncoder, preset
from sketchfusion_plugins.hub import BUNDLED_WEIGHTS

Load = Callable[[str], ModuleType]
FOUNDATIONS = BUNDLED_WEIGHTS["sketchfusion/tiny"].parent
LOADING = {"foundations": FOUNDATIONS, "changes": {}}


def _foundations(encoder: SketchFusionEncoder) -> dict[str, Tensor]:
    """Weights and statistics of both foundations, with the scale of latents."""
    state = {
        f"{name}.{key}": value
        for name in ("diffusion", "semantic")
        for key, value in getattr(encoder, name).state_dict().items()
    }
    return {**state, "scale": torch.tensor(encoder.diffusion.scaling_factor)}


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_random_foundations_are_of_the_runs_seed(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = load("fusion_models")
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(models, "calibration_pictures", lambda work: images)
    frozen = models.FrozenMaps(load("foundations").load_foundations(**LOADING))

    def built(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        features: nn.Module = models.build("random", frozen, tmp_path, seed=seed, **LOADING)
        return features

    first, second = built(0), built(1)
    assert not _equal(_foundations(first.encoder), _foundations(second.encoder))
    # The first seed's are those that all seeds had: what was trained with it stays valid.
    config = preset("tiny").replace(
        weights="random",
        diffusion__source=str(FOUNDATIONS / "diffusion"),
        semantic__source=str(FOUNDATIONS / "semantic"),
    )
    encoder = SketchFusionEncoder(config).eval()
    models.calibrate(encoder, images)
    assert _equal(_foundations(first.encoder), _foundations(encoder))

    about = {"kind": "random", "seed": 1, "subgroups": 3, "sketches": 4, "changes": {}}
    about |= {"foundations": str(FOUNDATIONS), "work": str(tmp_path)}
    models.save(models.GeneralModel(second, 3, 4), tmp_path / "random-1", about)
    loaded = models.load_trained(tmp_path / "random-1").features
    assert _equal(loaded.state_dict(), second.state_dict())
    assert _equal(_foundations(loaded.encoder), _foundations(second.encoder))


def test_training_draws_random_foundations_from_its_seed(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion = load("fusion")
    seeds: list[tuple[str, int]] = []

    def build(kind: str, *_: object, seed: int, **__: object) -> nn.Module:
        seeds.append((kind, seed))
        raise KeyboardInterrupt

    class Batches:
        subgroups, classes = ("a",), ("b",)

        def __init__(self, *_: object) -> None: ...

    monkeypatch.setattr(fusion, "build", build)
    monkeypatch.setattr(fusion, "FusionBatches", Batches)
    given = [part for name in ("work", "quickdraw", "spg") for part in (f"--{name}", str(tmp_path))]
    given += ["--foundations", str(FOUNDATIONS), "--kinds", "random", "--seed", "5"]
    with pytest.raises(KeyboardInterrupt):
        fusion.main(given)
    assert seeds == [("random", 5)]
