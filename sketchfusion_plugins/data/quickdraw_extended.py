"""QuickDraw-Extended: 330,000 sketches and 204,000 photos of 110 categories.

From "Doodle to Search" (Dey et al., CVPR 2019, https://github.com/sounakdey/doodle2search). The
sketches are Quick, Draw!'s, the photos Flickr's. What is read:

    QuickDraw_sketches_final/<category>/<sketch>.png
    QuickDraw_images_final/<category>/<photo>.jpg
"""

from __future__ import annotations

from pathlib import Path

from sketchfusion_plugins.data.pictures import Picture, scan

URL = "http://datasets.cvc.uab.es/QuickDraw"
SKETCHES = "QuickDraw_sketches_final"
PHOTOS = "QuickDraw_images_final"
HOW_TO_GET = (
    f"QuickDraw-Extended is downloaded from {URL}/{SKETCHES}.zip and {URL}/{PHOTOS}.zip and "
    f"unpacked so that {SKETCHES}/<category>/*.png and {PHOTOS}/<category>/*.jpg lie in the folder "
    "given."
)


def load_quickdraw_extended(root: str | Path) -> tuple[list[Picture], list[Picture]]:
    """List sketches and photos. Neither have instances: sketches were drawn from words.

    Args:
        root: Folder that holds both folders.

    Returns:
        Sketches and photos.

    Raises:
        FileNotFoundError: A folder is missing or empty.
    """
    root = Path(root)
    return scan(root / SKETCHES, HOW_TO_GET), scan(root / PHOTOS, HOW_TO_GET)
