"""Zero-shot splits: which categories the literature holds out, by the name of the protocol.

``zero_shot.json`` lists facts gathered from the repositories that it names. Two lists of 25 classes
of Sketchy and two of 30 classes of TU-Berlin are in use: those of SEM-PCYC (``sketchy_25``,
``tuberlin_30``) and those of ZSE-SBIR (``sketchy_25_zse``, ``tuberlin_30_zse``). Figures of one
must not be held against the other's.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from typing import Any

FILE = "zero_shot.json"
VERSION = 1


def protocols() -> tuple[str, ...]:
    """Names of the protocols."""
    return tuple(_load())


def describe(protocol: str) -> str:
    """Counts and metrics of a protocol, and where its list comes from.

    Raises:
        ValueError: The protocol is unknown.
    """
    entry = _entry(protocol)
    return f"{entry['protocol']} ({entry['source']})"


def unseen_classes(protocol: str) -> tuple[str, ...]:
    """Classes that a protocol holds out, in lower case with underscores.

    Args:
        protocol: One of `protocols`.

    Raises:
        ValueError: The protocol is unknown.
    """
    return tuple(_entry(protocol)["classes"])


def split_categories(categories: Iterable[str], protocol: str) -> tuple[list[str], list[str]]:
    """Split a data set's categories into seen and unseen ones.

    Names are compared in lower case, with everything but letters and digits as an underscore, so
    that ``"jack-o-lantern"`` and ``"hot air balloon"`` are found however they are spelt.

    Args:
        categories: All categories, as the data set spells them.
        protocol: One of `protocols`.

    Returns:
        Seen and unseen categories, as the data set spells them, in its order.

    Raises:
        ValueError: The protocol is unknown, an unseen class is not among the categories, or two
            categories are the same name.
    """
    names = list(dict.fromkeys(categories))
    by_canonical = {canonical(name): name for name in names}
    if len(by_canonical) < len(names):
        twice = sorted(name for name in names if by_canonical[canonical(name)] != name)
        raise ValueError(f"two categories are the same name but for its spelling: {twice}.")
    lacking = [name for name in unseen_classes(protocol) if name not in by_canonical]
    if lacking:
        hints = []
        for name in lacking:
            near = difflib.get_close_matches(name, by_canonical, n=2)
            suffix = f" (near: {', '.join(by_canonical[n] for n in near)})" if near else ""
            hints.append(name + suffix)
        raise ValueError(
            f"{protocol} holds out {len(lacking)} classes that are not among the {len(names)} "
            f"categories: {'; '.join(hints)}. Is it the right protocol for this data set, and is "
            "the data set complete?"
        )
    unseen = {by_canonical[name] for name in unseen_classes(protocol)}
    return [n for n in names if n not in unseen], [n for n in names if n in unseen]


def canonical(name: str) -> str:
    """Category name in lower case, with everything but letters and digits as an underscore."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _entry(protocol: str) -> dict[str, Any]:
    known = _load()
    if protocol not in known:
        raise ValueError(f"unknown protocol {protocol!r}, valid: {', '.join(known)}.")
    return known[protocol]


@lru_cache(maxsize=1)
def _load() -> dict[str, dict[str, Any]]:
    text = (resources.files(__package__) / FILE).read_text(encoding="utf-8")
    return check(text)


def check(text: str) -> dict[str, dict[str, Any]]:
    """Protocols from the text of ``zero_shot.json``, after its version and checksum are verified.

    The checksum is SHA-256 of ``protocols`` as JSON with sorted keys, no blanks, in UTF-8.

    Raises:
        ValueError: Another version, or a class list that was changed.
    """
    content = json.loads(text)
    if content.get("version") != VERSION:
        raise ValueError(
            f"{FILE} has version {content.get('version')!r}, expected {VERSION}. Reinstall the "
            "package."
        )
    known: dict[str, dict[str, Any]] = content["protocols"]
    plain = json.dumps(known, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(plain.encode()).hexdigest()
    if digest != content.get("sha256"):
        raise ValueError(
            f"{FILE} was changed: its lists have SHA-256 {digest}, expected "
            f"{content.get('sha256')}. Reinstall the package."
        )
    return known
