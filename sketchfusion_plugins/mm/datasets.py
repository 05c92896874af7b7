"""A segmentation data set that knows its own classes and refuses what cannot be right."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from sketchfusion_plugins.data.layout import META_FILE
from sketchfusion_plugins.data.pictures import SUFFIXES


@DATASETS.register_module()
class SketchParts(BaseSegDataset):  # type: ignore[misc]
    """Sketches and part masks in the layout of `sketchfusion_plugins.data.layout`.

    Classes and palette are read from ``meta.json`` in ``data_root``; for data of your own write one
    with ``{"classes": ["background", "wheel"]}``.

    Args:
        data_root: Folder of the data set.
        num_classes: Classes of the model's head.
        img_suffix: Suffix of the images.
        options: See `mmseg.datasets.BaseSegDataset`; all but ``metainfo``.

    Raises:
        FileNotFoundError: A folder or ``meta.json`` is missing, or there are no images.
        ValueError: ``meta.json`` names no classes, or another number of them; or ``metainfo`` is
            given. Reading a sample: its mask holds colours, or a label that is no class, or has
            another size than the picture.
    """

    def __init__(
        self, data_root: str, num_classes: int, img_suffix: str = ".png", **options: Any
    ) -> None:
        refuse_metainfo(options, META_FILE)
        path = Path(data_root) / META_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing. Write OpenMoji or SPG with `sketchfusion data`, or for data "
                'of your own a file such as {"classes": ["background", "wheel"]} beside images/ '
                "and annotations/."
            )
        meta = _read_meta(path)
        classes = meta["classes"]
        if len(classes) != num_classes:
            raise ValueError(
                f"{path} names {len(classes)} classes, the config has num_classes={num_classes}. "
                "Set num_classes of the data set and of every head to the former."
            )
        metainfo = {"classes": classes, **{k: meta[k] for k in ("palette",) if k in meta}}
        super().__init__(data_root=data_root, img_suffix=img_suffix, metainfo=metainfo, **options)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Pairs of an image and its mask."""
        for key in ("img_path", "seg_map_path"):
            folder = self.data_prefix.get(key)
            if folder and not Path(folder).is_dir():
                raise FileNotFoundError(
                    f"{folder} is missing; expected images/{{train,val}} and "
                    f"annotations/{{train,val}} in {self.data_root}."
                )
        pairs: list[dict[str, Any]] = super().load_data_list()
        if not pairs:
            raise FileNotFoundError(
                f"no file *{self.img_suffix} in {self.data_prefix['img_path']}. Set img_suffix to "
                "that of your images."
            )
        if not self.ann_file:
            self._tell_others()
        return pairs

    def _tell_others(self) -> None:
        """Warn of pictures that the suffix leaves out, masks in the same folder aside."""
        folder, masks = (self.data_prefix.get(key) for key in ("img_path", "seg_map_path"))
        others = sorted(
            path
            for path in Path(folder).rglob("[!.]*")
            if path.suffix.lower() in SUFFIXES
            and not path.name.endswith(self.img_suffix)
            and not (masks and path.is_relative_to(masks) and path.match(f"*{self.seg_map_suffix}"))
        )
        if others:
            warnings.warn(
                f"{len(others)} picture(s) in {folder} do not end in {self.img_suffix} and are "
                f"left out, the first: {others[0].name}. Give all the same suffix.",
                stacklevel=2,
            )

    def prepare_data(self, idx: int) -> Any:
        """One sample, or its views under test-time augmentation."""
        data = super().prepare_data(idx)
        samples = data.get("data_samples") if isinstance(data, dict) else None
        for sample in samples if isinstance(samples, list) else [samples]:
            if sample is not None and "gt_sem_seg" in sample:
                self._check(sample)
        return data

    def _check(self, sample: Any) -> None:
        labels = sample.gt_sem_seg.data
        # mmseg's packing makes one channel of a mask's rows and columns, and leaves its colours.
        if labels.ndim != 3 or len(labels) != 1:
            raise ValueError(
                f"{sample.seg_map_path} holds colours, expected a class's index in every pixel. "
                "Masks are one byte per pixel, without colour."
            )
        # Of the picture as the model gets it, or where masks are read after resizing, as it was.
        sizes = [sample.get(key) for key in ("img_shape", "ori_shape")]
        if not any(size is None or tuple(size[:2]) == tuple(labels.shape[-2:]) for size in sizes):
            height, width = sample.ori_shape[:2]
            raise ValueError(
                f"{sample.seg_map_path} does not fit {sample.img_path}, which has {width} x "
                f"{height} px (after its EXIF rotation). Masks are as large as their pictures."
            )
        count = len(self.metainfo["classes"])
        wrong = labels[(labels >= count) & (labels != self.ignore_index)]
        if len(wrong):
            raise ValueError(
                f"{sample.seg_map_path} holds label {int(wrong.max())}, expected 0..{count - 1}, "
                f"or {self.ignore_index} for pixels to ignore. Masks are one byte per pixel, "
                "without colour."
            )


def refuse_metainfo(options: Mapping[str, Any], source: str) -> None:
    """Refuse classes beside those of a data set's own files.

    Raises:
        ValueError: ``options`` holds ``metainfo``.
    """
    if "metainfo" in options:
        raise ValueError(
            f"got metainfo={options['metainfo']!r}; classes and palette are those of {source}. "
            "Leave metainfo out."
        )


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        # Windows' editors put a byte order mark first.
        meta: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    classes = meta.get("classes") if isinstance(meta, dict) else None
    if (
        isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and len(set(classes)) == len(classes)
    ):
        return dict(meta)
    raise ValueError(
        f"{path}: expected distinct names of classes, in the order of their values in the masks, "
        f'such as {{"classes": ["background", "wheel"]}}; got {meta}.'
    )
