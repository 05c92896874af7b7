"""What a job does with items that it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

from sketchfusion_plugins.problems import Problems, skipping

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


def test_errors_of_the_program_are_no_problems_of_the_data() -> None:
    problems = Problems()
    with pytest.raises(TypeError), skipping(problems, PLACE):
        raise TypeError
    assert not problems.found
