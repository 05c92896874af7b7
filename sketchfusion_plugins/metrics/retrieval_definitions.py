"""Formulas behind mAP@k and P@k of sketch-based image retrieval.

The same names hide different formulas. What a published figure was computed with is a `Definition`:

- ``"standard"``: average precision is the sum of the precisions at relevant ranks over
  ``min(k, relevant)``, so that only a perfect top k gives 1 (TREC; scikit-learn for k = all).
- ``"sake"``: as SAKE's code (Liu et al., ICCV 2019), from which most zero-shot papers copied:
  precision is interpolated (the best at this or any later rank, as in PASCAL VOC 2010), which never
  lowers the figure; and the mean is over classes: ``RetrievalScores.mean(name, groups=labels)``.
- ``"zse-sbir"``: as ZSE-SBIR's code (Lin et al., CVPR 2023): SAKE's precision, and P@k looks no
  deeper than the number of relevant items, so that a small class can still reach 1.
- ``"torchmetrics"``: divides by the relevant items *found* in the top k, so one hit at rank 1 and
  none after it gives 1; P@k divides by k however small the gallery is. Code around CLIP uses it
  (Sain et al., CVPR 2023, and followers). torchmetrics 1.9 also counts items of score <= 0 as
  irrelevant, which depends on nothing but an offset of the scores; that is not reproduced here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Definition:
    """Formulas behind mAP@k and P@k.

    Attributes:
        interpolated: Precision at a rank is the best at that or any later rank of the top k.
        normaliser: What the sum of precisions is divided by: ``"min(k, relevant)"``, or
            ``"found"``, the relevant items within the top k.
        precision_depth: Ranks that P@k looks at and divides by: ``"min(k, gallery)"``,
            ``"min(k, relevant)"``, or ``"k"``.
        over_classes: Figures are means over the queries' classes, each the mean of its queries;
            `score_embeddings` and `score_rankings` leave that to `RetrievalScores`.
    """

    interpolated: bool = False
    normaliser: Literal["min(k, relevant)", "found"] = "min(k, relevant)"
    precision_depth: Literal["min(k, gallery)", "min(k, relevant)", "k"] = "min(k, gallery)"
    over_classes: bool = False

    def __post_init__(self) -> None:
        if self.normaliser not in ("min(k, relevant)", "found"):
            raise ValueError(
                f"normaliser must be 'min(k, relevant)' or 'found', got {self.normaliser!r}."
            )
        if self.precision_depth not in ("min(k, gallery)", "min(k, relevant)", "k"):
            raise ValueError(
                "precision_depth must be 'min(k, gallery)', 'min(k, relevant)' or 'k', "
                f"got {self.precision_depth!r}."
            )


DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {
        "standard": Definition(),
        "sake": Definition(interpolated=True, over_classes=True),
        "zse-sbir": Definition(interpolated=True, precision_depth="min(k, relevant)"),
        "torchmetrics": Definition(normaliser="found", precision_depth="k"),
    }
)


def find_definition(definition: str | Definition) -> Definition:
    """A definition by its name; one's own is returned as it is.

    Raises:
        ValueError: Unknown name.
    """
    if isinstance(definition, Definition):
        return definition
    if definition not in DEFINITIONS:
        raise ValueError(f"unknown definition {definition!r}; known: {', '.join(DEFINITIONS)}.")
    return DEFINITIONS[definition]
