"""Zero-shot splits: known facts, spelling, checksums, and what is refused."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from sketchfusion_plugins.data.zero_shot import (
    canonical,
    check,
    describe,
    protocols,
    split_categories,
    unseen_classes,
)

COUNTS = {
    "sketchy_21": 21,
    "sketchy_25": 25,
    "sketchy_25_zse": 25,
    "tuberlin_30": 30,
    "tuberlin_30_zse": 30,
    "quickdraw_30": 30,
}


@pytest.fixture
def content() -> Any:
    folder = resources.files("sketchfusion_plugins.data")
    return json.loads((folder / "zero_shot.json").read_text(encoding="utf-8"))


def test_lists_are_whole_and_canonical() -> None:
    assert {name: len(set(unseen_classes(name))) for name in protocols()} == COUNTS
    for name in protocols():
        assert list(unseen_classes(name)) == sorted(unseen_classes(name))
        assert all(canonical(c) == c for c in unseen_classes(name))
        assert f"/ {COUNTS[name]} unseen" in describe(name)


def test_facts() -> None:
    # The 21 are absent from ImageNet-1k: "bat" and "dolphin" are, "banana" is not.
    assert {"bat", "dolphin"} <= set(unseen_classes("sketchy_21"))
    assert "banana" not in unseen_classes("sketchy_21")
    assert "banana" in unseen_classes("quickdraw_30")
    # Two lists of Sketchy and two of TU-Berlin are in use.
    assert set(unseen_classes("sketchy_25")).isdisjoint({"swan", "harp", "cup"})
    assert {"swan", "harp", "cup"} <= set(unseen_classes("sketchy_25_zse"))
    assert "dolphin" in unseen_classes("tuberlin_30")
    assert "dolphin" not in unseen_classes("tuberlin_30_zse")


def test_spelling_does_not_matter_and_is_kept() -> None:
    names = [name.replace("_", " ") for name in unseen_classes("tuberlin_30_zse")]
    names[names.index("t shirt")] = "T-shirt"
    names.insert(3, "mouse (animal)")
    seen, unseen = split_categories([*names, *names], "tuberlin_30_zse")
    assert seen == ["mouse (animal)"]
    assert unseen == [name for name in names if name != "mouse (animal)"]
    assert canonical("Mouse (animal)") == "mouse_animal"
    assert canonical("jack-o-lantern") == "jack_o_lantern"


def test_missing_classes_are_named_with_near_ones() -> None:
    names = [n for n in unseen_classes("sketchy_21") if n != "raccoon"] + ["Racoon", "owl"]
    with pytest.raises(ValueError, match=r"1 classes .* 22 categories: raccoon \(near: Racoon\)"):
        split_categories(names, "sketchy_21")
    with pytest.raises(ValueError, match="21 classes that are not among the 1 categories"):
        split_categories(["owl"], "sketchy_21")


def test_bad_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown protocol 'sketchy', valid: sketchy_21, "):
        unseen_classes("sketchy")
    with pytest.raises(ValueError, match=r"but for its spelling: \['hot dog'\]"):
        split_categories(["hot dog", "hot-dog"], "sketchy_21")


def test_changed_lists_are_refused(content: Any) -> None:
    assert check(json.dumps(content)).keys() == COUNTS.keys()
    content["protocols"]["sketchy_21"]["classes"][0] = "cat"
    with pytest.raises(ValueError, match=r"was changed: its lists have SHA-256 [0-9a-f]{64}"):
        check(json.dumps(content))


def test_other_versions_are_refused(content: Any) -> None:
    with pytest.raises(ValueError, match="version 2, expected 1"):
        check(json.dumps({**content, "version": 2}))
