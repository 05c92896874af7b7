"""Installed packages against what they ask of each other; read from metadata, nothing is imported.

Packaging's metadata say more than a table of our own could: our lower bounds, every extra's
content, and which torch a torchvision was built for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sketchfusion_plugins.doctor.findings import Finding, State

OWN = "sketchfusion-plugins"

UNLOCKS = {
    "all": "everything below but dev, docs and mmseg-upstream",
    "demo": "sketchfusion demo: a page to draw on",
    "dev": "tests, lint and types",
    "docs": "API reference: python .ci/build_api.py",
    "mmseg": "MMSegmentation by its maintained forks: mm-train, mm-test, mm-export",
    "mmseg-upstream": "MMSegmentation by OpenMMLab's last releases, instead of mmseg",
    "parquet": "features --out FILE.parquet",
    "quickstart": "sketchfusion quickstart, data openmoji-seg, pictures of features",
    "tasks": "train, evaluate, index and the four sketch tasks",
}
"""What every extra is good for."""


class Installed:
    """Installed distributions by name.

    Args:
        path: Folders with metadata; None for those that Python imports from.
    """

    def __init__(self, path: Sequence[str] | None = None) -> None:
        self._found: dict[str, Distribution] = {}
        for found in distributions() if path is None else distributions(path=list(path)):
            # Broken installations leave folders without a name behind. Of two with one name,
            # Python imports the first.
            name = found.metadata["Name"]
            if name:
                self._found.setdefault(canonicalize_name(name), found)

    def version(self, name: str) -> str | None:
        """Version of a distribution; None where it is not installed."""
        found = self._found.get(canonicalize_name(name))
        return None if found is None else found.version

    def extras(self, name: str) -> list[str]:
        """Extras that a distribution offers."""
        return sorted(self._found[canonicalize_name(name)].metadata.get_all("Provides-Extra") or [])

    def requirements(self, name: str, extra: str = "") -> list[Requirement]:
        """What an installed distribution asks for here, or what one of its extras adds.

        Extras of its own that an extra asks for are resolved.
        """
        found = []
        for text in self._found[canonicalize_name(name)].requires or []:
            try:
                wanted = Requirement(text)
            except InvalidRequirement:
                continue
            marker = wanted.marker
            always = marker is None or marker.evaluate({"extra": ""})
            if extra and (always or marker is None or not marker.evaluate({"extra": extra})):
                continue
            if not extra and not always:
                continue
            if canonicalize_name(wanted.name) == canonicalize_name(name):
                for inner in sorted(wanted.extras):
                    found += self.requirements(name, inner)
            else:
                found.append(wanted)
        return found


@dataclass(frozen=True)
class Clash:
    """Distributions that must not be installed together.

    Attributes:
        name: What they are.
        sides: Requirements; they clash where two sides or more have something installed.
        state: How bad it is.
        reason: Why they do not go together.
        mend: What to do.
    """

    name: str
    sides: tuple[tuple[str, ...], ...]
    state: State
    reason: str
    mend: str

    def check(self, installed: Installed) -> Finding | None:
        """A finding where they clash, otherwise None."""
        found = []
        for side in self.sides:
            wanted = [Requirement(text) for text in side]
            here = [(want.name, installed.version(want.name), want.specifier) for want in wanted]
            there = [f"{name} {have}" for name, have, spec in here if have and _fits(spec, have)]
            if there:
                found.append(" and ".join(there))
        if len(found) < 2:
            return None
        got = f"{' beside '.join(found)}: {self.reason}"
        return Finding("combinations", self.name, self.state, got, self.mend)


_OVERWRITTEN = "they own the same folder, and the one installed last overwrote the other"
CLASHES = (
    Clash(
        "OpenMMLab and its forks",
        (
            ("onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation", "onedl-mmpretrain"),
            ("mmengine", "mmcv", "mmcv-lite", "mmcv-full", "mmsegmentation", "mmpretrain"),
        ),
        "broken",
        "they own the same folders, and each overwrites parts of the other",
        f'uninstall all of them, then pip install "{OWN}[mmseg]" or "{OWN}[mmseg-upstream]"',
    ),
    Clash(
        "kinds of mmcv",
        (("mmcv",), ("mmcv-lite",), ("mmcv-full",)),
        "broken",
        _OVERWRITTEN,
        f'pip uninstall mmcv mmcv-lite mmcv-full, then pip install "{OWN}[mmseg-upstream]"',
    ),
    Clash(
        "mmsegmentation with mmcv 2.2",
        (("mmsegmentation",), ("mmcv>=2.2.0rc1", "mmcv-lite>=2.2.0rc1")),
        "broken",
        "mmsegmentation refuses it",
        'pip install "mmcv-lite>=2.1.0,<2.2"',
    ),
    Clash(
        "kinds of OpenCV",
        (
            ("opencv-python",),
            ("opencv-python-headless",),
            ("opencv-contrib-python",),
            ("opencv-contrib-python-headless",),
        ),
        "warning",
        _OVERWRITTEN,
        "uninstall all of them, then install one",
    ),
    Clash(
        "kinds of FAISS",
        (("faiss-cpu",), ("faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12")),
        "warning",
        _OVERWRITTEN,
        "uninstall both, then install one",
    ),
)
"""What is known to go wrong and no package's own requirements tell."""


def examine_packages(installed: Installed) -> Iterator[Finding]:
    """Our requirements, those of what we require, our extras, and what must not be mixed."""
    own = installed.version(OWN)
    if own is None:
        yield Finding(
            "packages", OWN, "broken", "runs, but is not installed", "pip install . where it lies"
        )
    else:
        yield Finding("packages", OWN, "ok", own)
        wanted = installed.requirements(OWN)
        for requirement in wanted:
            yield _check(requirement, installed)
        present = list(wanted)
        for extra in installed.extras(OWN):
            finding, added = _check_extra(extra, installed)
            yield finding
            present += added
        yield from _check_companions(present, installed)
    for clash in CLASHES:
        finding_or_none = clash.check(installed)
        if finding_or_none is not None:
            yield finding_or_none


def _fits(specifier: SpecifierSet, version: str) -> bool:
    try:
        return specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _check(wanted: Requirement, installed: Installed) -> Finding:
    version = installed.version(wanted.name)
    mend = f'pip install "{wanted.name}{wanted.specifier}"'
    if version is None:
        return Finding("packages", wanted.name, "broken", "is missing", mend)
    if not _fits(wanted.specifier, version):
        found = f"{version}, expected {wanted.specifier}"
        return Finding("packages", wanted.name, "broken", found, mend)
    return Finding("packages", wanted.name, "ok", version)


def _check_extra(extra: str, installed: Installed) -> tuple[Finding, list[Requirement]]:
    """A finding about an extra, and its requirements where all are there."""
    wanted = {wanted.name: wanted for wanted in installed.requirements(OWN, extra)}
    have = {name: installed.version(name) for name in wanted}
    missing = sorted(name for name, version in have.items() if version is None)
    unlocks = UNLOCKS.get(extra, "")
    install = f'pip install "{OWN}[{extra}]"'
    if missing:
        found = f"missing: {', '.join(missing)}"
        advice = f"{unlocks}: {install}" if unlocks else install
        return Finding("extras", extra, "note", found, advice), []
    wrong = [
        f"{name} {version}, expected {wanted[name].specifier}"
        for name, version in have.items()
        if version is not None and not _fits(wanted[name].specifier, version)
    ]
    if wrong:
        return Finding("extras", extra, "broken", "; ".join(wrong), install), []
    versions = ", ".join(f"{name} {version}" for name, version in sorted(have.items()))
    return Finding("extras", extra, "ok", versions, unlocks), list(wanted.values())


def _check_companions(packages: list[Requirement], installed: Installed) -> Iterator[Finding]:
    """What our packages ask of others, such as torchvision of torch, and do not get."""
    for name in dict.fromkeys(package.name for package in packages):
        if installed.version(name) is None:
            continue
        for wanted in installed.requirements(name):
            version = installed.version(wanted.name)
            title = f"{name} {installed.version(name)}"
            mend = f'pip install "{wanted.name}{wanted.specifier}" {name}'
            if version is None:
                # A conda or system package may bring it under another name.
                found = f"asks for {wanted.name}, which is missing"
                yield Finding("combinations", title, "warning", found, mend)
            elif not _fits(wanted.specifier, version):
                found = f"asks for {wanted.name}{wanted.specifier}, got {version}"
                yield Finding("combinations", title, "broken", found, mend)
