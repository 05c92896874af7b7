"""Line icons and coloured pictures of the same name, by different artists."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from data import Leaks, Pictures
from sources import words
from torch import Tensor

COLOURED = 0.7


class NamedPairs:
    """Draws pairs of one name.

    Args:
        lines: Line icons.
        pictures: Coloured pictures.
        leaks: Tells the names to leave out.

    Attributes:
        names: Those of a line icon that another artist drew too, in colour or as a line icon.
    """

    def __init__(self, lines: Pictures, pictures: Pictures, leaks: Leaks) -> None:
        self.lines, self.pictures = lines, pictures
        drawn, coloured = _by_name(lines), _by_name(pictures)
        # Line icons of a name, each with its partners, coloured ones and line icons.
        self.partners: dict[str, list[tuple[int, list[int], list[int]]]] = defaultdict(list)
        for name, own in drawn.items():
            for index in () if leaks(name) else own:
                artist = lines.rows[index].source
                found = [
                    # Coloured sets are named after their artist's set of line icons.
                    [i for i in members if not of.rows[i].source.startswith(artist)]
                    for of, members in ((pictures, coloured.get(name, [])), (lines, own))
                ]
                if any(found):
                    self.partners[name].append((index, *found))
        self.names = list(self.partners)

    def __call__(self, name: str, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A line icon and its partner, uint8 ``[3, S, S]`` each."""
        own = self.partners[name]
        index, coloured, others = own[int(draw.integers(len(own)))]
        if coloured and (not others or draw.random() < COLOURED):
            return self.lines.pixels[index], self.pictures.pixels[int(draw.choice(coloured))]
        return self.lines.pixels[index], self.lines.pixels[int(draw.choice(others))]


def _by_name(pictures: Pictures) -> dict[str, list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(pictures.rows):
        members[" ".join(words(row.name))].append(index)
    return members
