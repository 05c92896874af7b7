"""Picture files, read for OpenMMLab's transforms as the rest of the package reads them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import NoReturn

from mmengine.fileio import BaseStorageBackend, get_local_path, register_backend

from sketchfusion_plugins.images import open_image

PICTURES = "sketchfusion_pictures"


# mmseg's inference looks for a LoadImageFromFile of that very name and keeps its arguments: what
# reads for it can be ours, but it cannot.
@register_backend(PICTURES)
class PictureBackend(BaseStorageBackend):  # type: ignore[misc]
    """Gives any picture as `sketchfusion_plugins.images.open_image` reads it.

    mmcv's own way drops transparency, which turns black strokes on nothing into a black picture.
    With this backend it decodes what `open_image` read, to the pixel:

        dict(type="LoadImageFromFile", backend_args=dict(backend="sketchfusion_pictures"))
    """

    def get(self, filepath: str | Path) -> bytes:
        """An uncompressed picture file: RGB, transparency on white, EXIF rotation applied.

        Args:
            filepath: Path, or an address that mmengine has a backend for.

        Raises:
            OSError: See `open_image`.
        """
        content = BytesIO()
        with get_local_path(filepath) as path:
            open_image(path).save(content, "BMP")
        return content.getvalue()

    def get_text(self, filepath: str | Path, encoding: str = "utf-8") -> NoReturn:
        """Refused: a picture is no text."""
        raise NotImplementedError(f"{filepath} is to be read as a picture, not as text.")
