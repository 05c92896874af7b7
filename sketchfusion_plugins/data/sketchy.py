"""Sketchy: 75,471 sketches of 12,500 photos in 125 categories (Sangkloy et al., SIGGRAPH 2016).

Every sketch was drawn from one photo, so retrieval can be judged by category and by instance. What
is read, from https://sketchy.eye.gatech.edu ("sketches and photos", 256x256):

    256x256/photo/tx_000000000000/<category>/n02691156_10151.jpg
    256x256/sketch/tx_000000000000/<category>/n02691156_10151-1.png     first sketch of that photo

``tx_000100000000`` holds the same pictures, centred and scaled. Zero-shot retrieval by category
searches the extended photos too: 73,002 (Liu et al., CVPR 2017), of which 60,502 have no sketches
and the others are Sketchy's own once more, under the same names. They have a folder of their own:

    <category>/<photo>
"""

from __future__ import annotations

from pathlib import Path

from sketchfusion_plugins.data.pictures import Picture, read_list, scan

URL = "https://sketchy.eye.gatech.edu"
HOW_TO_GET = (
    f"Sketchy is downloaded from {URL} (sketches and photos, 256x256) and unpacked so that "
    "256x256/photo/tx_000000000000/<category>/*.jpg and "
    "256x256/sketch/tx_000000000000/<category>/*.png lie in the folder given."
)
HOW_TO_GET_EXTENDED = (
    "The extended photos (Liu et al., CVPR 2017) are linked from "
    "https://github.com/AnjanDutta/sem-pcyc (download_datasets.sh); give the folder in which "
    "<category>/*.jpg lie."
)


def load_sketchy(
    root: str | Path,
    augmentation: str = "tx_000000000000",
    extended: str | Path | None = None,
) -> tuple[list[Picture], list[Picture]]:
    """List sketches and photos.

    Args:
        root: Folder that holds ``256x256``, or that folder itself.
        augmentation: Which rendering: ``"tx_000000000000"`` or ``"tx_000100000000"``.
        extended: Folder of the extended photos, of which those that are not Sketchy's own are
            appended, without instances; None for none.

    Returns:
        Sketches and photos; a sketch's instance is the stem of its photo's file.

    Raises:
        FileNotFoundError: A folder is missing or empty.
        ValueError: A sketch's file is not named ``<photo>-<number>``.
    """
    base = _base(Path(root))
    sketches = scan(base / "sketch" / augmentation, HOW_TO_GET, photo_of_sketch)
    photos = scan(base / "photo" / augmentation, HOW_TO_GET, _stem)
    if extended is not None:
        own = {(photo.category, photo.instance) for photo in photos}
        more = scan(extended, HOW_TO_GET_EXTENDED)
        photos += [photo for photo in more if (photo.category, photo.path.stem) not in own]
    return sketches, photos


def load_sketchy_list(path: str | Path, root: str | Path, sketches: bool) -> list[Picture]:
    """List what a published file list names, such as ZSE-SBIR's ``zeroshot1`` lists.

    Args:
        path: Text file of lines ``256x256/photo/tx_.../<category>/<file> <label>``.
        root: Folder that the lines are relative to.
        sketches: Whether the list names sketches.

    Raises:
        FileNotFoundError: The list, or a picture that it names, is missing.
        ValueError: A line is malformed.
    """
    return read_list(path, root, HOW_TO_GET, photo_of_sketch if sketches else _stem)


def photo_of_sketch(sketch: Path) -> str:
    """Stem of the photo that a sketch was drawn from: its own stem without ``-<number>``.

    Raises:
        ValueError: The file is not named so.
    """
    photo, _, number = sketch.stem.rpartition("-")
    if not photo or not number.isdigit():
        raise ValueError(
            f"{sketch}: expected a sketch named <photo>-<number>.png, as in n02691156_10151-1.png."
        )
    return photo


def _stem(photo: Path) -> str:
    return photo.stem


def _base(root: Path) -> Path:
    return root / "256x256" if (root / "256x256").is_dir() else root
