"""SVG documents of strangers: cut off from all files, and refused where drawing them has no end.

A renderer follows references (``use``, patterns, masks, clips, filters, markers) as often as they
are made: a document of 1 kB can ask for 10^8 shapes, or for recursion that overflows the stack and
ends the process. What drawing would cost is therefore added up first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"

# OpenMoji nests 8 levels deep; resvg's stack overflows between 200 and 300.
DEEPEST = 64
# One unit is some 0.1 ms at 128 px. OpenMoji's drawings cost up to 3,500.
DEAREST = 100_000
# Filters whose cost grows with a number, and the largest that is drawn.
ENDLESS = {"feTurbulence": ("numOctaves", 16.0), "feMorphology": ("radius", 100.0)}
# What a reference costs besides its target: a layer to draw it on.
LAYER = 20
NOT_INHERITED = frozenset({"clip-path", "filter", "mask"})
GRADIENTS = frozenset({"linearGradient", "radialGradient", "stop"})
PICTURES = frozenset({"feImage", "image"})

_NAME = re.compile(r"[\w.:-]+")
_REFERENCE = re.compile(r"#([\w.:-]+)")
_SHEET_REFERENCE = re.compile(r"""url\(\s*['"]?\s*([^)]*)""", re.IGNORECASE)

# Without a registered prefix every element would be written as <ns0:path>, which is valid XML but
# not understood once the drawing is pasted into an HTML page.
ElementTree.register_namespace("", SVG)


def parse_svg(svg: bytes) -> ElementTree.Element:
    """Parse an SVG and drop references that leave the document, and pictures.

    Raises:
        ValueError: ``svg`` is no well-formed SVG, declares a document type, or would keep a
            renderer busy for long or overflow its stack.
    """
    try:
        root = ElementTree.fromstring(svg, ElementTree.XMLParser(target=_TreeBuilder()))
    # An unknown encoding is a LookupError.
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"not a well-formed SVG: {error}") from error
    if root.tag != f"{{{SVG}}}svg":
        raise ValueError(f"not an SVG: the root element is {root.tag}")
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            # resvg opens files named by <image href>, also "#name", so a picture could show private
            # ones.
            outside = local_name(element.tag) in PICTURES or not value.startswith("#")
            # Names with other characters could be referred to unseen.
            unseen = local_name(name) == "id" and not _NAME.fullmatch(value)
            if (local_name(name) == "href" and outside) or unseen:
                del element.attrib[name]
    _Cost(root).check()
    return root


def local_name(name: str) -> str:
    """Name of an element or attribute without its namespace, which resvg does not look at."""
    return str(name).rpartition("}")[2]


class _TreeBuilder(ElementTree.TreeBuilder):
    """Tree builder that refuses document type declarations, the only place to declare entities."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("the SVG has a document type declaration, which is not accepted")


@dataclass(frozen=True)
class _Drawn:
    """What it takes to draw an element: levels of recursion, units of time, points with paint."""

    height: int
    units: int
    painted: int


class _Cost:
    """Adds up what drawing a document takes."""

    def __init__(self, root: ElementTree.Element) -> None:
        self.root = root
        self.named: dict[str, list[ElementTree.Element]] = {}
        self.marked = False
        for element in root.iter():
            self.marked |= local_name(element.tag) == "marker"
            for name in _values(element, "id"):
                self.named.setdefault(name, []).append(element)
        self.known: dict[ElementTree.Element, _Drawn] = {}
        self.inherited: dict[ElementTree.Element, tuple[ElementTree.Element, ...]] = {}
        self.layers = 0

    def check(self) -> None:
        """Refuse what would take too long, or the whole stack, which ends the process."""
        sheets = ["".join(e.itertext()) for e in self.root.iter() if local_name(e.tag) == "style"]
        for text in sheets:
            self._check_sheet(text)
        self._inherit(self.root, (), 0)
        # Every rule is held against every element.
        matching = sum(map(len, sheets)) * len(self.inherited) // 10_000
        _refuse_dear(self._drawn(self.root, 0).units + matching)

    def _check_sheet(self, text: str) -> None:
        for found in _SHEET_REFERENCE.findall(text):
            for name in _REFERENCE.findall(found):
                if any(local_name(e.tag) not in GRADIENTS for e in self.named.get(name, ())):
                    raise ValueError(
                        f"a style sheet of the SVG refers to #{name}, which is followed from "
                        "attributes alone. Write it into the elements."
                    )

    def _inherit(
        self, element: ElementTree.Element, above: tuple[ElementTree.Element, ...], depth: int
    ) -> None:
        """Note which paint every element has from itself and those around it."""
        if depth > DEEPEST:
            raise ValueError(f"the SVG nests over {DEEPEST} levels deep")
        own = (target for target, passed_on in self._references(element) if passed_on)
        self.inherited[element] = tuple(dict.fromkeys((*above, *own)))
        self.layers += len(self.inherited[element])
        _refuse_dear(LAYER * self.layers)
        for child in element:
            self._inherit(child, self.inherited[element], depth + 1)

    def _references(
        self, element: ElementTree.Element
    ) -> Iterator[tuple[ElementTree.Element, bool]]:
        """Targets of an element's references but ``href``, and whether those below inherit them."""
        for key, value in element.items():
            declared = [(local_name(key), value)]
            if declared[0][0] == "style":
                declared = [(d.partition(":")[0].strip(), d) for d in value.split(";")]
            for name, text in declared:
                if name in ("href", "id"):
                    continue
                for found in _REFERENCE.findall(text):
                    for target in self.named.get(found, ()):
                        # Stops of a gradient refer to nothing, and are cheap.
                        if local_name(target.tag) not in GRADIENTS:
                            yield target, name not in NOT_INHERITED

    def _drawn(self, element: ElementTree.Element, above: int) -> _Drawn:
        if above > DEEPEST:
            raise ValueError(f"the SVG nests, or refers to itself, over {DEEPEST} levels deep")
        if element not in self.known:
            used = [
                target
                for reference in _values(element, "href")
                for target in self.named.get(reference[1:], ())
            ]
            below = [self._drawn(item, above + 1) for item in (*element, *used)]
            own = [target for target, passed_on in self._references(element) if not passed_on]
            layers = [self._drawn(t, above + 1) for t in (*own, *self.inherited[element])]
            # Markers are drawn at every point, of which two characters can make one.
            outline = sum(map(len, (*_values(element, "d"), *_values(element, "points"))))
            painted = 1 + (outline // 2 if self.marked else 0)
            reused = sum(self._drawn(target, above + 1).painted for target in used)
            units = _own_units(element) + sum(item.units for item in below)
            units += (painted + reused) * sum(LAYER + item.units for item in layers)
            # All that is in the document is part of its sum.
            _refuse_dear(units)
            height = 1 + max((item.height for item in (*below, *layers)), default=0)
            painted += sum(item.painted for item in below)
            self.known[element] = _Drawn(height, units, painted)
        if above + self.known[element].height > DEEPEST:
            raise ValueError(f"the SVG nests, or refers to itself, over {DEEPEST} levels deep")
        return self.known[element]


def _own_units(element: ElementTree.Element) -> int:
    """Units of an element without what it holds and refers to, measured with resvg."""
    tag = local_name(element.tag)
    units = 1 + sum(map(len, element.attrib.values())) // 10
    if not tag.startswith("fe"):
        return units
    name, largest = ENDLESS.get(tag, ("", 0.0))
    numbers = []
    for text in re.findall(r"[^\s,]+", " ".join(_values(element, name))):
        # Written so that what is no number is refused too.
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]*)?", text) or float(text) > largest:
            raise ValueError(
                f"the SVG has a filter with {name} {text}, which may take hours to draw; "
                f"expected at most {largest:.0f}"
            )
        numbers.append(float(text))
    if tag == "feTurbulence":
        units += round(50 * max(numbers, default=1))
    if tag == "feMorphology":
        units += round((2 * max(numbers, default=0)) ** 2 / 10)
    return units + LAYER + sum(map(len, _values(element, "kernelMatrix")))


def _refuse_dear(units: int) -> None:
    if units > DEAREST:
        raise ValueError(
            f"the SVG takes {units:.1e} units of work or more, and may take hours to draw; "
            f"expected at most {DEAREST:.0e}. Simplify it."
        )


def _values(element: ElementTree.Element, attribute: str) -> list[str]:
    """Values of an attribute in any namespace."""
    return [value for name, value in element.items() if local_name(name) == attribute]
