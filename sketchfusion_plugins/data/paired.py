"""Paired folders: your own sketches and photos, matched by category and by file name.

sketches/<category>/<photo>.png, or <photo>-<number>.png for several sketches of one photo
photos/<category>/<photo>.jpg

Photos of a category without sketches are only searched.
"""

from __future__ import annotations

import re
from pathlib import Path

from sketchfusion_plugins.data.pictures import Picture, scan

HOW_TO_GET = (
    "Paired folders hold sketches/<category>/<photo>.png or <photo>-<number>.png, and "
    "photos/<category>/<photo>.jpg."
)
_NUMBER = re.compile(r"-\d+$")


def load_paired(root: str | Path) -> tuple[list[Picture], list[Picture]]:
    """List sketches and photos.

    A sketch belongs to the photo of its own stem in its category or, without one, to that of its
    stem less ``-<number>``. A sketch of neither is kept without an instance.

    Args:
        root: Folder that holds both folders.

    Returns:
        Sketches and photos; the instance is the stem of the photo's file.

    Raises:
        FileNotFoundError: A folder is missing or empty.
        ValueError: A category has sketches but no photo, or two photos of one stem.
    """
    root = Path(root)
    photos = scan(root / "photos", HOW_TO_GET, lambda path: path.stem)
    known = {(photo.category, photo.instance) for photo in photos}
    if len(known) < len(photos):
        seen: set[tuple[str, str | None]] = set()
        for photo in photos:
            if (photo.category, photo.instance) in seen:
                raise ValueError(
                    f"{photo.path}: another photo of {photo.category} has the same stem, so "
                    "sketches cannot tell them apart. Rename one."
                )
            seen.add((photo.category, photo.instance))
    sketches = []
    for sketch in scan(root / "sketches", HOW_TO_GET):
        stems = (sketch.path.stem, _NUMBER.sub("", sketch.path.stem))
        instance = next((stem for stem in stems if (sketch.category, stem) in known), None)
        sketches.append(Picture(sketch.path, sketch.category, instance))
    lacking = {sketch.category for sketch in sketches} - {photo.category for photo in photos}
    if lacking:
        raise ValueError(
            f"{root / 'photos'} has no photo of {', '.join(sorted(lacking))}, which are sketched. "
            "Add photos or remove the sketches."
        )
    return sketches, photos
