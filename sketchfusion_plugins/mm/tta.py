"""Test-time augmentation that keeps what strokes are judged by."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models import SegTTAModel
from mmseg.structures import SegDataSample


@MODELS.register_module()
class AveragedTTAModel(SegTTAModel):  # type: ignore[misc]
    """Averages the shares that views of a picture give to each class.

    mmseg's own returns the last view, which may be flipped, with the logits of that view alone.
    Here the first view gets the average and is returned with its own labels, points and meta
    information: put the picture as it is first.
    """

    def merge_preds(
        self, data_samples_list: Sequence[Sequence[SegDataSample]]
    ) -> list[SegDataSample]:
        """Merge the views of each picture.

        Args:
            data_samples_list: Views by picture, each with ``seg_logits`` [C, H, W] of the
                original size, as mmseg's segmentors return them.

        Returns:
            The first view of each picture: ``seg_logits`` are average shares [C, H, W], 0..1;
            ``pred_sem_seg`` [1, H, W] is the class of the largest.
        """
        return [self._merge(views) for views in data_samples_list]

    def _merge(self, views: Sequence[SegDataSample]) -> SegDataSample:
        several = self.module.out_channels > 1
        # Of one channel mmseg has made shares already.
        total = sum(
            view.seg_logits.data.softmax(0) if several else view.seg_logits.data for view in views
        )
        shares = total / len(views)
        if several:
            label = shares.argmax(0, keepdim=True)
        else:
            label = (shares > self.module.decode_head.threshold).to(shares)
        first = views[0]
        first.set_data(
            {"seg_logits": PixelData(data=shares), "pred_sem_seg": PixelData(data=label)}
        )
        return first
