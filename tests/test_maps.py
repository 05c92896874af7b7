"""Every map of an encoder by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sketchfusion_plugins.maps import all_maps


@torch.no_grad()
def test_maps_are_those_of_the_encoder(build: Any, sketches: Any) -> None:
    encoder, image = build(), sketches(2, 64, 96)
    maps = all_maps(encoder, image, seed=3)
    plain = encoder.forward_levels(image, seed=3, fuse=False)
    fused = encoder.forward_levels(image, seed=3)
    names = [f"stride {stride}" for stride in plain.strides]
    assert list(maps) == [
        *(f"SD, {name}" for name in names),
        "CLIP",
        *(f"fused, {name}" for name in names),
        "aggregated",
    ]
    for name, own, other in zip(names, plain.maps, fused.maps, strict=True):
        assert torch.equal(maps[f"SD, {name}"], own)
        assert torch.equal(maps[f"fused, {name}"], other)
        assert not torch.equal(own, other)
    assert torch.equal(maps["CLIP"], encoder.forward_tokens(image))
    assert torch.equal(maps["aggregated"], encoder(image, seed=3))


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"injection__sites": ()}, {"diffusion__posterior": "sample", "diffusion__ensemble": 2}],
    ids=["usual", "nothing injected", "sampled"],
)
def test_foundations_run_once_and_give_what_separate_calls_give(
    build: Any, sketches: Any, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, image = build(**changes), sketches(2, 72, 56)
    plain = encoder.forward_levels(image, seed=3, fuse=False)
    fused = encoder.forward_levels(image, seed=3)
    expected = [*plain.maps, encoder.forward_tokens(image), *fused.maps, encoder(image, seed=3)]
    ran: list[str] = []
    encoder.semantic.register_forward_hook(lambda *_: ran.append("CLIP"))
    encode = encoder.diffusion.encode
    monkeypatch.setattr(
        encoder.diffusion, "encode", lambda *given: ran.append("VAE") or encode(*given)
    )
    found = list(all_maps(encoder, image, seed=3).values())
    assert sorted(ran) == ["CLIP", "VAE"]
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@torch.no_grad()
def test_pyramids_have_a_map_per_stride(build: Any, sketches: Any) -> None:
    encoder, image = build(aggregation__stride=(8, 16)), sketches(1)
    maps = all_maps(encoder, image)
    for stride, own in zip((8, 16), encoder(image), strict=True):
        assert torch.equal(maps[f"aggregated, stride {stride}"], own)


@torch.no_grad()
def test_no_aggregation_is_no_map(build: Any, sketches: Any) -> None:
    assert not [
        name for name in all_maps(build(aggregation=None), sketches(1)) if "aggregated" in name
    ]


@torch.no_grad()
def test_levels_of_one_stride_are_told_apart(build: Any, sketches: Any) -> None:
    encoder = build(taps=("down0", "up1"), aggregation=None)
    strides = encoder.forward_levels(sketches(1)).strides
    assert len(set(strides)) == 1
    maps = all_maps(encoder, sketches(1))
    assert len(maps) == 5
    assert {name for name in maps if name.startswith("SD")} == {
        f"SD, {block}, stride {strides[0]}" for block in ("down0", "up1")
    }


def test_what_is_no_image_is_refused(build: Any) -> None:
    with pytest.raises(ValueError, match="image batch"):
        all_maps(build(), torch.zeros(3, 64, 64))
