"""Quick, Draw!: 50 million sketches of 345 categories (Google, CC BY 4.0).

https://github.com/googlecreativelab/quickdraw-dataset describes the data. A folder holds one of

    cat.ndjson, dog.ndjson, ...                 Google's simplified or raw drawings, one a line
    cat.npy, dog.npy, ...                       Google's bitmaps of 28 x 28 pixels
    quickdraw.csv and quickdraw_strokes.npz     a selection; see `data.compact_strokes`

Fetch single files from

    https://storage.googleapis.com/quickdraw_dataset/full/simplified/<category>.ndjson
    https://storage.googleapis.com/quickdraw_dataset/full/raw/<category>.ndjson
    https://storage.googleapis.com/quickdraw_dataset/full/numpy_bitmap/<category>.npy

or all with ``gsutil -m cp 'gs://quickdraw_dataset/full/simplified/*.ndjson' FOLDER``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from sketchfusion_plugins.data.quickdraw_sources import (
    BASE,
    COMPACT_FILES,
    BitmapDrawings,
    Choice,
    CompactDrawings,
    NdjsonDrawings,
)
from sketchfusion_plugins.data.strokes import Strokes, StrokeStyle, render
from sketchfusion_plugins.images import to_tensor
from sketchfusion_plugins.problems import Problems

if TYPE_CHECKING:
    from PIL import Image

Drawings = NdjsonDrawings | BitmapDrawings | CompactDrawings
LAYOUTS: dict[str, type[Drawings]] = {
    "*.ndjson": NdjsonDrawings,
    "*.npy": BitmapDrawings,
    COMPACT_FILES[0]: CompactDrawings,
}


class QuickDraw(Dataset[dict[str, Any]]):
    """Sketches with their category.

    Samples are dictionaries: ``image``, what ``transform`` returns; ``label``, the category's index
    in ``categories``; ``key``, ``"category/key_id"``, of bitmaps ``"category/row"``.

    Args:
        root: Folder in one of the layouts above.
        style: How vector drawings are rendered; bitmaps keep their 28 x 28 pixels. A style that
            varies draws every visit anew, by torch's random numbers; another always the same.
        transform: Turns an RGB Pillow image into the sample's image; must be picklable for worker
            processes. By default `to_tensor`.
        categories: Names to read; by default all that are there. Labels follow their sorted order.
        recognized: Only drawings that Google's classifier recognised (True) or did not (False).
        split: Name in the csv file's column ``split``; Google's own files have none.
        limit: Drawings per category, the first ones.
        problems: Collects drawings that cannot be read, which are left out; lines of ndjson files
            are all read once for that. Without it they are errors: a bad line of an ndjson file
            when its sample is read, all others, and blank lines, at once.

    Attributes:
        categories: Sorted names.
        labels: Label of every sample, ``[N]``.

    Raises:
        FileNotFoundError: No such folder, or a file is missing.
        OSError: A drawing cannot be read, and ``problems`` is strict.
        ValueError: A file is malformed, or a choice does not fit the layout. Reading a sample: its
            line is malformed.
    """

    def __init__(
        self,
        root: str | Path,
        style: StrokeStyle | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        categories: Sequence[str] | None = None,
        recognized: bool | None = None,
        split: str | None = None,
        limit: int | None = None,
        problems: Problems | None = None,
    ) -> None:
        root = Path(root)
        chosen = None if categories is None else tuple(categories)
        if chosen is not None and (not chosen or len(set(chosen)) < len(chosen)):
            raise ValueError(f"expected different categories, at least one, got {list(chosen)}.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}.")
        self.drawings = _layout(root)(root, Choice(chosen, recognized, split, limit), problems)
        if not len(self.drawings.labels):
            bad = f" The first bad one: {problems.first}" if problems and problems.found else ""
            raise ValueError(
                f"no drawing in {root} has recognized={recognized} and split={split}.{bad}"
            )
        self.style = style or StrokeStyle()
        self.transform = to_tensor if transform is None else transform
        self.categories = self.drawings.categories
        self.labels = torch.from_numpy(self.drawings.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image

        key, drawing = self.drawings.read(range(len(self))[index])
        if isinstance(drawing, Strokes):
            seed = int(torch.randint(2**63 - 1, ())) if self.style.varies else 0
            image = Image.fromarray(render(drawing, self.style, seed))
        else:
            image = Image.fromarray(drawing).convert("RGB")
        label = int(self.labels[index])
        return {"image": self.transform(image), "label": label, "key": key}

    def restyled(self, style: StrokeStyle) -> QuickDraw:
        """The same drawings in another style; no file is scanned for them again."""
        other = copy(self)
        other.style = style
        return other


def _layout(root: Path) -> type[Drawings]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder. Make it and fetch files such as {_EXAMPLE}.")
    # Not what macOS keeps beside files on other systems' drives, "._cat.ndjson".
    found = [p for p in LAYOUTS if any(not path.name.startswith(".") for path in root.glob(p))]
    if len(found) != 1:
        raise FileNotFoundError(
            f"expected one of {', '.join(LAYOUTS)} in {root}, found {', '.join(found) or 'none'}. "
            f"Keep each in a folder of its own; fetch files such as {_EXAMPLE}."
        )
    return LAYOUTS[found[0]]


_EXAMPLE = f"{BASE}/simplified/cat.ndjson"
