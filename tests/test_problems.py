"""What a job does with items that it cannot use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sketchfusion_plugins.problems import Problems, skipping, tell

PLACE = Path("table.csv")


def test_items_are_left_out_and_their_places_named_once() -> None:
    problems, done = Problems(), []
    for item in range(4):
        with skipping(problems, PLACE):
            if item == 1:
                raise ValueError("no number")
            if item == 2:
                raise OSError("table.csv is cut off")
            done.append(item)
    assert done == [0, 3]
    assert problems.found == ["table.csv: no number", "table.csv is cut off"]
    assert problems.first == "table.csv: no number"


def test_strict_stops_at_the_first() -> None:
    with pytest.raises(OSError, match=r"^table\.csv: no number$"), skipping(Problems(True), PLACE):
        raise ValueError("no number")


def test_without_a_collector_errors_pass_with_their_place() -> None:
    with pytest.raises(ValueError, match=r"^table\.csv: no number$"), skipping(None, PLACE):
        raise ValueError("no number")
    with pytest.raises(ValueError, match=r"^in table\.csv$"), skipping(None, PLACE):
        raise ValueError("in table.csv")
    with pytest.raises(FileNotFoundError, match=r"^gone$"), skipping(None, PLACE):
        raise FileNotFoundError("gone")


def test_errors_of_the_operating_system_name_the_file(tmp_path: Path) -> None:
    gone, folder = tmp_path / "gone", tmp_path / "folder"
    folder.mkdir()
    problems = Problems()
    with skipping(problems, gone):
        gone.read_text()
    assert problems.found == [f"{gone} does not exist."]
    with pytest.raises(FileExistsError) as caught:
        folder.mkdir()
    assert tell(caught.value) == f"{folder}: File exists."
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(IsADirectoryError) as unwritten:
        file.replace(folder)
    assert tell(unwritten.value) == f"{folder} is a folder, expected a file."
    with pytest.raises(NotADirectoryError) as unnamed:
        folder.replace(file)
    assert tell(unnamed.value) == f"{folder} -> {file}: Not a directory."
    with pytest.raises(OSError, match="Bad file") as unopened:
        os.fstat(2**30)
    assert tell(unopened.value) == str(unopened.value)
    assert tell(OSError("as it was said")) == "as it was said"


def test_errors_of_the_program_are_no_problems_of_the_data() -> None:
    problems = Problems()
    with pytest.raises(TypeError), skipping(problems, PLACE):
        raise TypeError
    assert not problems.found
