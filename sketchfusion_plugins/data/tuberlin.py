"""TU-Berlin: 20,000 sketches, 80 in each of 250 categories (Eitz et al., SIGGRAPH 2012).

What is read, from https://cybertron.cg.tu-berlin.de/eitz/projects/classifysketch/ (CC BY 4.0):

    png/<category>/<number>.png
    png/filelist.txt            one <category>/<number>.png a line; checked where it is there

Retrieval searches TU-Berlin-Extended, 204,489 photos of the same categories (Zhang et al., CVPR
2016), in a folder of their own, usually called ImageResized:

    <category>/<photo>
"""

from __future__ import annotations

from pathlib import Path

from sketchfusion_plugins.data.pictures import Picture, read_list, scan

URL = "https://cybertron.cg.tu-berlin.de/eitz/projects/classifysketch/sketches_png.zip"
HOW_TO_GET = (
    f"TU-Berlin is downloaded from {URL} and unpacked so that png/<category>/<number>.png lie in "
    "the folder given."
)
HOW_TO_GET_EXTENDED = (
    "TU-Berlin-Extended's photos (Zhang et al., CVPR 2016) are linked from "
    "https://github.com/AnjanDutta/sem-pcyc (download_datasets.sh); give the folder in which "
    "<category>/*.jpg lie, usually ImageResized."
)
LIST = "filelist.txt"


def load_tuberlin(
    root: str | Path, extended: str | Path | None = None
) -> tuple[list[Picture], list[Picture]]:
    """List sketches and photos. Neither have instances: sketches were drawn from words.

    Args:
        root: Folder that holds ``png``, or that folder itself.
        extended: Folder of TU-Berlin-Extended's photos; None for none.

    Returns:
        Sketches, in the order of ``filelist.txt`` where there is one; and photos, empty without
        ``extended``.

    Raises:
        FileNotFoundError: A folder is missing or empty, or a listed sketch is missing.
        ValueError: A line of ``filelist.txt`` is malformed.
    """
    root = Path(root)
    folder = root / "png" if (root / "png").is_dir() else root
    if (folder / LIST).is_file():
        sketches = read_list(folder / LIST, folder, HOW_TO_GET)
    else:
        sketches = scan(folder, HOW_TO_GET)
    return sketches, [] if extended is None else scan(extended, HOW_TO_GET_EXTENDED)
