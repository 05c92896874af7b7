"""Sketches with photos drawn anew, and masks with ignored pixels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sketchfusion_plugins.data.pictures import NO_INSTANCE, Picture, PictureDataset
from sketchfusion_plugins.data.task_data import (
    SketchPhotoPairs,
    TaskData,
    labelled_mask,
    sum_of_files,
)


class Numbered(torch.utils.data.Dataset[dict[str, Any]]):
    """Items whose image holds their own index."""

    def __init__(self, labels: list[int], instances: list[int], offset: int) -> None:
        self.labels, self.instances = torch.tensor(labels), torch.tensor(instances)
        self.offset = offset

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": torch.full((3, 2, 2), float(self.offset + index)),
            "label": int(self.labels[index]),
            "instance": int(self.instances[index]),
            "key": f"{self.offset + index}",
        }


SKETCHES = Numbered([2, 0, 1, 0, 3], [40, 10, 30, 11, 99], 0)
# Out of order, and some wanted by no sketch.
PHOTOS = Numbered([0, 2, 1, 0, 1, 7, 0], [11, 40, 31, 10, 30, 70, 10], 100)


def test_sums_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one.png", "two.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    paths = (tmp_path / "one.png", Path("two.png"))
    mixed = PictureDataset([Picture(path, "a") for path in paths])
    whole = PictureDataset([Picture(tmp_path / path.name, "a") for path in reversed(paths)])
    assert sum_of_files(mixed, None) == sum_of_files(whole)
    # Another's data set may have whatever attribute it likes.
    SKETCHES.files = ["one.png"]
    assert sum_of_files(SKETCHES) is None


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("instance", {0: {101}, 1: {103, 106}, 2: {104}, 3: {100}}),
        ("label", {0: {101}, 1: {100, 103, 106}, 2: {102, 104}, 3: {100, 103, 106}}),
    ],
)
def test_photos_match_and_all_are_used(by: str, expected: dict[int, set[int]]) -> None:
    pairs = SketchPhotoPairs(SKETCHES, PHOTOS, by)
    assert len(pairs) == 4, "the last sketch has no photo"
    torch.manual_seed(0)
    seen: dict[int, set[int]] = {}
    for _ in range(60):
        for index in range(len(pairs)):
            sample = pairs[index]
            sketch = int(sample["sketch"][0, 0, 0])
            assert sample["key"] == str(sketch)
            assert sample["label"] == SKETCHES.labels[sketch]
            assert sample["instance"] == SKETCHES.instances[sketch]
            seen.setdefault(sketch, set()).add(int(sample["photo"][0, 0, 0]))
    assert seen == expected


def test_pairs_follow_from_the_seed() -> None:
    pairs = SketchPhotoPairs(SKETCHES, PHOTOS, "label")

    def draw(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [float(pairs[index % 4]["photo"][0, 0, 0]) for index in range(40)]

    assert draw(0) == draw(0) != draw(1)


def test_hashes_that_fill_63_bits_are_told_apart() -> None:
    big = 2**63 - 1
    sketches, photos = Numbered([0, 0], [big, big - 1], 0), Numbered([0, 0], [big - 1, big], 100)
    pairs = SketchPhotoPairs(sketches, photos)
    assert [int(pairs[index]["photo"][0, 0, 0]) for index in (0, 1)] == [101, 100]


def test_sketches_without_photos_are_refused() -> None:
    photos = SimpleNamespace(labels=torch.tensor([8, 9]), instances=torch.tensor([1, 2]))
    with pytest.raises(
        ValueError, match="none of 5 sketches has a photo of the same label among 2 photos"
    ):
        SketchPhotoPairs(SKETCHES, photos, "label")
    with pytest.raises(ValueError, match="by must be 'instance' or 'label', got 'category'"):
        SketchPhotoPairs(SKETCHES, PHOTOS, "category")


def test_pictures_without_an_instance_have_no_photo() -> None:
    sketches = Numbered([0, 0, 1], [NO_INSTANCE, 10, NO_INSTANCE], 0)
    photos = Numbered([0, 0, 1], [NO_INSTANCE, 10, NO_INSTANCE], 100)
    pairs = SketchPhotoPairs(sketches, photos)
    assert len(pairs) == 1
    assert pairs[0]["key"] == "1" and pairs[0]["photo"][0, 0, 0] == 101
    assert len(SketchPhotoPairs(sketches, photos, "label")) == 3
    alone = Numbered([0, 1], [NO_INSTANCE, NO_INSTANCE], 0)
    with pytest.raises(
        ValueError, match="none of 2 sketches has a photo of the same instance among 3 photos"
    ):
        SketchPhotoPairs(alone, photos)


def test_invalid_pixels_are_ignored_labels() -> None:
    mask = torch.tensor([[[True, False, True]]])
    valid = torch.tensor([[[True, True, False]]])
    assert labelled_mask({"mask": mask, "valid": valid}).tolist() == [[[1, 0, 255]]]
    assert labelled_mask({"mask": mask}).tolist() == [[[1, 0, 1]]]
    assert labelled_mask({"mask": mask}).dtype == torch.int64


@pytest.mark.parametrize("part", ["train", "test", "fit", "gallery"])
def test_empty_parts_are_refused(part: str) -> None:
    parts = {"train": PHOTOS, "test": PHOTOS, part: Numbered([], [], 0)}
    with pytest.raises(ValueError, match=rf"here has nothing for the part '{part}' of retrieval"):
        TaskData("retrieval", "here", 2, **parts)
