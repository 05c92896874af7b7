"""The page in a real browser: drawn on with the mouse, by two people at once, on a phone.

Screenshots go to the folder named by SKETCHFUSION_SCREENSHOTS, else to pytest's temporary one.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright import sync_api as api

from sketchfusion_plugins.demo.answers import Demonstration
from sketchfusion_plugins.demo.serve import prepare, serving

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.usefixtures("patient_gradio"),
]

# Without these, Chromium looks for its maker's servers at every start.
SILENT = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Gradio takes its mark of waiting away with the first of two answers that are asked for at once.
COUNT_ANSWERS = """
const plain = window.fetch;
window.answered = 0;
window.fetch = async (...asked) => {
  const reply = await plain(...asked);
  if (!reply.url.includes("/queue/data")) return reply;
  const [own, theirs] = reply.body.tee();
  const events = own.pipeThrough(new TextDecoderStream()).getReader();
  const count = async (rest) => {
    const { done, value } = await events.read().catch(() => ({ done: true }));
    if (done) return;
    const parts = (rest + value).split('"msg":"process_completed"');
    window.answered += parts.length - 1;
    count(parts.at(-1).slice(-40));
  };
  count("");
  return new Response(theirs, reply);
};
"""
PATIENCE = 240_000
Stroke = list[tuple[float, float]]


def _circle(x: float, y: float, radius: float, count: int = 24) -> Stroke:
    angles = [2 * math.pi * number / count for number in range(count + 1)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


# In shares of the canvas.
CAT: list[Stroke] = [
    _circle(0.5, 0.57, 0.3),
    [(0.28, 0.38), (0.24, 0.12), (0.42, 0.29)],
    [(0.58, 0.29), (0.76, 0.12), (0.72, 0.38)],
    _circle(0.4, 0.5, 0.025, 8),
    _circle(0.6, 0.5, 0.025, 8),
    [(0.5, 0.6), (0.5, 0.65), (0.43, 0.7)],
    [(0.5, 0.65), (0.57, 0.7)],
]
FISH: list[Stroke] = [
    [(0.3 + 0.25 * math.cos(t / 6) + 0.15, 0.5 + 0.14 * math.sin(t / 6)) for t in range(39)],
    [(0.7, 0.5), (0.9, 0.35), (0.86, 0.5), (0.9, 0.65), (0.7, 0.5)],
    _circle(0.3, 0.47, 0.015, 6),
]


@pytest.fixture(scope="module")
def address(prepared: Any) -> Iterator[str]:
    with serving(*prepared, port=None) as place:
        yield place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(SILENT))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = os.environ.get("SKETCHFUSION_SCREENSHOTS")
    path = Path(folder) if folder else tmp_path_factory.mktemp("screenshots")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page as somebody new."""
    contexts = []

    def open_page(place: str = address, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.add_init_script(COUNT_ANSWERS)
        page.problems, page.asked, page.drawn = [], [], ""
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: _refuse_strangers(page, request.url, place))
        page.on("request", lambda request: _remember_asked(page, request))
        page.goto(place)
        # The paper is there before its script: a line drawn in between is lost.
        page.locator("#canvas .hint").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


def _refuse_strangers(page: Any, url: str, address: str) -> None:
    if not url.startswith((address.rstrip("/"), "data:", "blob:")):
        page.problems.append(f"asked {url}")


def _remember_asked(page: Any, request: Any) -> None:
    if "queue/join" in request.url:
        page.asked.append(request.post_data)


def _draw(page: Any, strokes: list[Stroke]) -> None:
    box = page.locator("#canvas canvas").bounding_box()
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place)
        page.mouse.up()
    _look_at_paper(page)


def _look_at_paper(page: Any) -> None:
    page.drawn = page.locator("#canvas canvas").evaluate("canvas => canvas.toDataURL()")


def _settle(page: Any, since: dict[str, Any] | None = None, what: str = "maps") -> dict[str, Any]:
    """What is shown once all strokes are answered, and ``what`` is no longer as it was."""
    found: dict[str, Any] = {}
    for _ in range(PATIENCE // 700):
        page.wait_for_timeout(700)
        former, found = found, _shown(page)
        changed = since is None or found[what] != since[what]
        answered = page.drawn in (page.asked or [""])[-1] and not found["awaited"]
        # On a busy machine a picture may take longer to load than two looks are apart.
        loaded = all(found["gallery"] + found["part"] + found["points"])
        answered &= loaded and found["status"].startswith("Answered")
        if changed and answered and found == former:
            return found
    raise AssertionError(f"{what} did not settle: {found}")


def _shown(page: Any) -> dict[str, Any]:
    sources = "nodes => nodes.map(node => node.naturalWidth ? node.src : '')"
    return {
        "status": page.locator("#status").inner_text(),
        # The answer shown may be to the strokes before.
        "awaited": page.evaluate("answered") < len(page.asked),
        "classes": page.locator("#classes").inner_text() if _visible(page, "#classes") else "",
        "gallery": page.locator("#similar img").evaluate_all(sources),
        "part": page.locator("#part img").evaluate_all(sources),
        "points": page.locator("#photo-points img").evaluate_all(sources),
        "maps": page.locator("[id^=map-] img").evaluate_all(sources),
    }


def _visible(page: Any, selector: str) -> bool:
    return bool(page.locator(selector).count() and page.locator(selector).is_visible())


def test_answers_appear_and_change_with_the_drawing(
    visit: Callable[..., Any], screenshots: Path
) -> None:
    page = visit(viewport={"width": 1120, "height": 900})
    assert "Draw something" in page.locator("#status").inner_text()
    assert not _visible(page, "#classes")
    page.screenshot(path=screenshots / "demo-start.png", full_page=True)
    place = page.locator("#canvas canvas").bounding_box()
    _draw(page, CAT[:1])
    circle = _settle(page)
    assert page.locator("#canvas canvas").bounding_box() == place
    assert len(circle["gallery"]) == 8
    assert len(circle["maps"]) == 3
    assert all(circle["gallery"] + circle["maps"] + circle["part"] + circle["points"])
    assert re.search(r"\d+%", circle["classes"])
    _draw(page, CAT[1:])
    cat = _settle(page, circle, "classes")
    for name in ("classes", "gallery", "points", "maps"):
        assert cat[name] != circle[name], name
    page.screenshot(path=screenshots / "demo.png", full_page=True)

    # A point of one's own, then another picture to look into.
    page.locator("#sketch-points img").click(position={"x": 120, "y": 150})
    own = _settle(page, cat, "points")
    page.locator("#similar img").first.click()
    other = _settle(page, own, "part")

    # Without the ears and the face it is the circle again; without that, nothing.
    for _ in CAT[1:]:
        page.locator(".undo").click()
    _look_at_paper(page)
    assert _settle(page, other, "classes")["classes"] == circle["classes"]
    page.locator(".clear").click()
    page.get_by_text("Nothing is drawn yet").wait_for()
    assert not _visible(page, "#classes")
    _draw(page, [[(0.5, 0.5), (0.501, 0.5)]])
    page.get_by_text("That is a dot so far").wait_for()
    _draw(page, [[(0.02 + 0.96 * (row % 2), 0.01 + row / 62) for row in range(61)]])
    page.get_by_text("Hardly any paper is left").wait_for()
    assert page.problems == []


def test_a_quick_stroke_asks_once_at_its_end(visit: Callable[..., Any]) -> None:
    page = visit()
    # However long this machine takes, no time passes.
    page.evaluate("const now = Date.now(); Date.now = () => now;")
    _draw(page, CAT[:1])
    _settle(page)
    assert len(page.asked) == 1


def test_uploads_are_shown_and_bad_ones_explained(
    visit: Callable[..., Any], tmp_path: Path, face: Any
) -> None:
    page = visit()
    files = page.locator("input[type=file]")
    face.save(tmp_path / "face.png")
    files.first.set_input_files(tmp_path / "face.png")
    first = _settle(page)
    photo = files.nth(1)
    (tmp_path / "text.png").write_text("hello")
    photo.set_input_files(tmp_path / "text.png")
    page.get_by_text("This file is no picture").wait_for()
    (tmp_path / "huge.png").write_bytes(bytes(11 * 2**20))
    photo.set_input_files(tmp_path / "huge.png")
    page.get_by_text(re.compile("exceeds|too large|maximum", re.IGNORECASE)).first.wait_for()
    face.rotate(20, fillcolor="white").save(tmp_path / "photo.png")
    photo.set_input_files(tmp_path / "photo.png")
    second = _settle(page, first, "part")
    assert second["classes"] == first["classes"]
    assert page.problems == []


def test_two_people_get_their_own_answers(visit: Callable[..., Any]) -> None:
    one, two = visit(), visit()
    _draw(one, CAT[:3])
    _draw(two, FISH[:1])
    _draw(one, CAT[3:])
    _draw(two, FISH[1:])
    cat, fish = _settle(one), _settle(two)
    assert cat["classes"] != fish["classes"]
    for person, strokes, found in ((one, CAT, cat), (two, FISH, fish)):
        alone = visit()
        _draw(alone, strokes)
        assert alone.drawn == person.drawn
        assert _settle(alone)["classes"] == found["classes"]


def test_another_model_without_trained_weights_answers(visit: Callable[..., Any]) -> None:
    with serving(*prepare("sketchfusion_tiny", weights="random", concepts=3), port=None) as place:
        page = visit(place)
        words = page.locator("main").inner_text()
        assert "sketchfusion_tiny (random foundations) at 128 px on cpu; 3 OpenMoji" in words
        assert "Its weights are random" in words
        _draw(page, CAT)
        found = _settle(page)
        assert (len(found["gallery"]), len(found["maps"])) == (3, 3)
        assert re.search(r"\d+%", found["classes"])
        assert page.get_by_text("Found by the black line drawing").is_visible()
        assert page.problems == []


def test_the_page_says_that_an_answer_is_awaited(
    visit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, seen = Demonstration.answer, threading.Event()

    def slow(self: Demonstration, *asked: Any) -> Any:
        seen.wait(60)
        return answer(self, *asked)

    monkeypatch.setattr(Demonstration, "answer", slow)
    page = visit()
    assert not page.locator("#status .pending").count()
    try:
        _draw(page, CAT[:1])
        page.locator("#status .pending").wait_for(state="attached")
    finally:
        seen.set()
    _settle(page)
    assert page.problems == []


def test_a_phone_is_wide_enough(visit: Callable[..., Any], screenshots: Path) -> None:
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Example drawing").tap()
    _settle(page)
    # Pictures are loaded when they come into sight.
    for number in range(3):
        page.locator(f"#map-{number} img").scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(image => image.naturalWidth)")
    page.screenshot(path=screenshots / "demo-phone.png", full_page=True)
    assert page.locator("#similar img").count() == 8
    bottom = page.locator("#similar").bounding_box()
    last = page.locator("#similar img").last.bounding_box()
    assert last["y"] + last["height"] <= bottom["y"] + bottom["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("#canvas canvas", "#similar", "#part img", "#map-0 img"):
        box = page.locator(name).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert page.problems == []
