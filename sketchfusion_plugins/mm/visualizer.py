"""mmseg's drawings over pictures as the model was given them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.registry import VISUALIZERS
from mmseg.visualization import SegLocalVisualizer
from numpy.typing import NDArray

from sketchfusion_plugins.images import open_image


@VISUALIZERS.register_module()
class PictureVisualizer(SegLocalVisualizer):  # type: ignore[misc]
    """mmseg's visualiser, for configs whose pictures `PictureBackend` reads.

    mmseg's inferencer reads a file again to draw on it, in mmcv's way, which drops transparency.
    Its `show_result_pyplot` does too, with a visualiser that no config chooses: give it the picture
    itself, ``np.array(open_image(path))``.
    """

    def add_datasample(
        self, name: str, image: NDArray[np.uint8], data_sample: Any = None, **options: Any
    ) -> None:
        """Draw on what `open_image` reads where given what mmcv reads of the sample's file.

        Args:
            name: Of the drawing.
            image: RGB ``[H, W, 3]``, 0..255; what is not mmcv's reading is drawn on as it is.
            data_sample: What to draw.
            options: See mmseg's.
        """
        path = None if data_sample is None else data_sample.get("img_path")
        # Where samples have no picture file, their path is but a name.
        if path and Path(path).is_file():
            read = mmcv.imread(path, channel_order="rgb")
            if np.array_equal(image, read):
                image = np.array(open_image(path))
        super().add_datasample(name, image, data_sample, **options)
