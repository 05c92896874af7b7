"""Which held-out concepts the bundled weights saw by another name, and in how many pictures.

python examples/pretrain_tiny/seen_by_another_name.py --work DIR --quickdraw DIR --spg DIR

Their training held names of pictures and of Quick, Draw!'s classes against Unicode's old names
alone, and took all classes of SPG. What such a filter lets through and `data.py` leaves out since
is drawn anew from the packages: it counts whether or not it lies in ``DIR``. Prints the counts and
writes seen_by_another_name.json, which is committed, for ``evaluate.py --without``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from data import Leaks, draw_item, load_rows, names_of, stems
from sources import EMOJI, Item, fetch, list_items
from tqdm import tqdm

from sketchfusion_plugins.data.openmoji import Concept, held_out_concepts, load_concepts
from sketchfusion_plugins.data.quickdraw import QuickDraw
from sketchfusion_plugins.files import write_text

OUT = Path(__file__).with_suffix(".json")


def drawn_items(
    sources: Iterable[str],
    work: Path,
    concepts: Sequence[Concept],
    wanted: Callable[[str], bool],
) -> Iterator[Item]:
    """Pictures of wanted names, held-out concepts' own left out, of which `data.py` has a use."""
    hidden = held_out_concepts()
    for source in tqdm(sorted(sources), desc="sources", disable=None):
        for item in list_items(source, work / "packages", concepts):
            asked = item.concept not in hidden and wanted(item.name)
            if asked and draw_item(item, source) is not None:
                yield item


def sketch_names(quickdraw: Path, spg: Path, former: Leaks) -> list[str]:
    """Names of the classes of sketches that were trained on."""
    parts = json.loads((spg / "parts.json").read_text(encoding="utf-8"))
    classes = [name for name in QuickDraw(quickdraw).categories if not former(name)]
    return [*classes, *(name.replace("_", " ") for name in parts)]


def seen_concepts(
    held: Sequence[Concept], names: Iterable[str], work: Path
) -> dict[str, list[str]]:
    """Names that are a held-out concept's own, plurals alike, by its hexcode.

    Args:
        held: Held-out concepts.
        names: What was trained on.
        work: Folder that `data.py` filled.
    """
    trained: dict[frozenset[str], set[str]] = defaultdict(set)
    for name in names:
        trained[frozenset(stems(name))].add(name)
    found = {}
    for concept in held:
        own = {frozenset(stems(name)) for name in names_of([concept], work)}
        if seen := sorted(set().union(*(trained[name] for name in own & trained.keys()))):
            found[concept.hexcode] = seen
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder that data.py filled")
    parser.add_argument("--quickdraw", type=Path, required=True, help="Quick, Draw! drawings")
    parser.add_argument("--spg", type=Path, required=True, help="SPG drawings")
    parser.add_argument("--out", type=Path, default=OUT, help="the list; by default beside this")
    options = parser.parse_args(arguments)
    work: Path = options.work
    for source in EMOJI:
        fetch(source, work / "packages")
    concepts = load_concepts()
    held = [concept for concept in concepts if concept.hexcode in held_out_concepts()]
    former, present = Leaks([concept.name for concept in held]), Leaks(names_of(held, work))

    def let_through(name: str) -> bool:
        return present(name) and not former(name)

    names = sketch_names(options.quickdraw, options.spg, former)
    counts = []
    for folder, what in (("pictures", "pictures"), ("lines", "line icons")):
        rows = load_rows(work, folder)
        sources = {row.source for row in rows}
        left_out = list(drawn_items(sources, work, concepts, let_through))
        # An emoji of another concept may have such a word in its name: that is no leak.
        seen = [item.name for item in left_out if item.concept is None]
        names += seen
        others = sum(not row.held_out and not present(row.name) for row in rows)
        counts.append(f"{len(seen)} of {others + len(left_out)} {what}")
    found = seen_concepts(held, names, work)
    for concept in held:
        if concept.hexcode in found:
            print(f"{concept.hexcode} {concept.name}: {', '.join(found[concept.hexcode])}")
    what = "held-out concepts that the shipped weights saw by another name, in icons, clip art"
    listed = {"what": f"{what} or sketches", "hexcodes": sorted(found)}
    write_text(json.dumps(listed, indent=0) + "\n", options.out)
    print(
        f"{len(found)} of {len(held)} held-out concepts were seen by these names, as listed in "
        f"{options.out}; {' and '.join(counts)} have names that contain a held-out concept's"
    )


if __name__ == "__main__":
    main()
