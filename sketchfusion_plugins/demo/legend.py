"""What the page says of what it shows, by what the model has learned."""

from __future__ import annotations

from dataclasses import dataclass

from sketchfusion_plugins.demo.answers import POINTS, Demonstration


@dataclass(frozen=True)
class Legend:
    """Sentences beside the answers.

    Attributes:
        model: The model, as who wants to repeat a result must name it.
        classes: Where class names come from, and how often they are right.
        similar: What drawings are compared with.
        part: How the part of the photo is found.
        points: How points are found.
    """

    model: str
    classes: str
    similar: str
    part: str
    points: str

    @classmethod
    def of(cls, demonstration: Demonstration, model: str) -> Legend:
        """What is true of a model that is described as ``model``."""
        classes = (
            "Classes and probabilities that the model was trained for."
            if demonstration.learned_classes
            else "The model has learned no classes: the nearest pictures of the gallery vote with "
            "their names. Take them as hints."
        )
        similar = (
            "Found by the black line drawing of each, which is what your drawing is compared with."
            if demonstration.gallery.shown
            else "Your drawing is compared with these pictures themselves."
        )
        part = (
            "The part that the model was trained to find."
            if demonstration.learned_parts
            else "The model was not trained to find parts: outlined is the square of the photo "
            "whose descriptor is most like the drawing's."
        )
        points = (
            "Points of the drawing, and where features in the outlined part are most like theirs: "
            f"worth something where that part is the right one. Up to {POINTS} of your own."
        )
        return cls(model, classes, similar, part, points)
