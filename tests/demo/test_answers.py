"""What the page shows for a drawing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sketchfusion_plugins.demo import answers
from sketchfusion_plugins.demo.answers import CLASSES, FUSION, POINTS, Demonstration, add_point
from sketchfusion_plugins.demo.gallery import Gallery, draw_concept, gallery_concepts
from sketchfusion_plugins.demo.legend import Legend
from sketchfusion_plugins.demo.pictures import CANVAS, PictureError, find_ink, read_upload
from sketchfusion_plugins.demo.scenes import example_sketch, scene_concepts
from sketchfusion_plugins.demo.serve import prepare
from sketchfusion_plugins.features import ClipFeatures, DiffusionFeatures
from sketchfusion_plugins.inference.answers import features_of
from sketchfusion_plugins.maps import all_maps
from sketchfusion_plugins.tasks.query_segmentation import QuerySegmentation
from sketchfusion_plugins.tasks.recognition import Recognition
from sketchfusion_plugins.viz.figures import PALETTE


def _centre(picture: Image.Image, colour: str) -> tuple[float, float]:
    """Where a dot of a colour is in a picture, its number left out."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    rows, columns = np.nonzero((np.asarray(picture) == wanted).all(2))
    return float(np.ptp(columns) / 2 + columns.min()), float(np.ptp(rows) / 2 + rows.min())


def test_the_drawn_concept_is_outlined_in_the_scene(prepared: Any, scene: Any) -> None:
    demonstration, _ = prepared
    concepts = scene_concepts()
    pixels = np.asarray(scene.image)
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    for place, concept in enumerate(concepts):
        part = np.asarray(demonstration.answer(example_sketch(concept), scene).part)
        row, column = divmod(place, 2)
        # The photo is as large as it is shown, so nothing was resized. Ink stays black where found.
        kept = [
            [
                (part[y : y + height, x : x + width].max(2) < 30).sum()
                / (pixels[y : y + height, x : x + width].max(2) < 30).sum()
                for x in (0, width)
            ]
            for y in (0, height)
        ]
        assert np.argmax(kept) == place, concept.name
        assert kept[row][column] > 0.8


def test_an_answer_is_complete_and_of_the_drawing(
    prepared: Any, scene: Any, face: Image.Image
) -> None:
    demonstration, _ = prepared
    answer = demonstration.answer(face, scene)
    assert 1 <= len(answer.classes) <= CLASSES
    shares = [share for _, share in answer.classes]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1.000001
    scores = [score for _, _, score, _ in answer.similar]
    assert scores == sorted(scores, reverse=True)
    assert tuple(answer.maps) == demonstration.map_names == ("Stable Diffusion", "CLIP", "Fused")
    assert all(np.asarray(picture).std() > 10 for picture in answer.maps.values())
    again = demonstration.answer(face, scene)
    assert again.classes == answer.classes
    assert again.photo_points.tobytes() == answer.photo_points.tobytes()
    other = demonstration.answer(example_sketch(scene_concepts()[1]), scene)
    assert other.classes != answer.classes
    assert other.maps["Fused"].tobytes() != answer.maps["Fused"].tobytes()


def test_maps_are_those_of_separate_calls(
    prepared: Any, scene: Any, face: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    demonstration, _ = prepared
    fused = features_of(demonstration.model)
    coloured: list[torch.Tensor] = []
    asked: list[torch.Tensor] = []
    real = answers.pca_rgb
    monkeypatch.setattr(answers, "pca_rgb", lambda maps: coloured.append(maps) or real(maps))
    monkeypatch.setattr(
        answers, "all_maps", lambda encoder, pair: asked.append(pair) or all_maps(encoder, pair)
    )
    demonstration.answer(face, scene)
    (pair,) = asked
    separate = (DiffusionFeatures(fused.encoder), ClipFeatures(fused.encoder), fused)
    with torch.inference_mode():
        expected = [part(pair) for part in separate]
    assert len(coloured) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(coloured, expected, strict=True))


def test_coloured_pictures_are_shown_and_looked_into(
    prepared: Any, scene: Any, face: Image.Image
) -> None:
    demonstration, legend = prepared
    concepts = {concept.name: concept for concept in gallery_concepts(10_000)}
    for place, name, _, picture in demonstration.answer(face, scene).similar:
        expected = np.asarray(draw_concept(concepts[name], "color", 128))
        np.testing.assert_array_equal(np.asarray(picture), expected)
        np.testing.assert_array_equal(np.asarray(read_upload(place)), expected)
    assert "line drawing" in legend.similar


def test_where_a_drawing_lies_on_the_canvas_does_not_matter(
    prepared: Any, scene: Any, face: Image.Image
) -> None:
    demonstration, _ = prepared
    moved = Image.new("RGB", face.size, "white")
    moved.paste(face, (60, -30))
    here, there = (demonstration.answer(sketch, scene) for sketch in (face, moved))
    assert [name for name, _ in here.classes] == [name for name, _ in there.classes]
    np.testing.assert_allclose(
        [share for _, share in here.classes], [share for _, share in there.classes], rtol=1e-5
    )


def test_points_are_found_where_they_are_in_the_same_picture(
    prepared: Any, face: Image.Image
) -> None:
    demonstration, _ = prepared
    # The photo shows the drawing alone, as the drawing is cut out: the whole photo is the part.
    cut = find_ink(face).crop(face)
    photo = demonstration.photo(cut)
    box = find_ink(face)
    asked = [(120.0, 90.0), (195.0, 315.0)]
    answer = demonstration.answer(face, photo, asked)
    scale = answer.photo_points.width / cut.width
    for (x, y), colour in zip(asked, PALETTE, strict=False):
        assert _centre(answer.sketch_points, colour) == pytest.approx((x, y), abs=1.5)
        expected = ((x - box.left) * scale, (y - box.top) * scale)
        # Within a cell of 8 px at 128 px.
        assert _centre(answer.photo_points, colour) == pytest.approx(expected, abs=8 * 384 / 128)


def test_points_of_another_drawing_are_not_asked_for(
    prepared: Any, scene: Any, face: Image.Image
) -> None:
    demonstration = prepared[0]
    expected = demonstration.answer(face, scene, [(150.0, 200.0)])
    # The last drawing was elsewhere; if all were, points are chosen anew.
    found = demonstration.answer(face, scene, [(2.0, 380.0), (150.0, 200.0)])
    assert found.sketch_points.tobytes() == expected.sketch_points.tobytes()
    chosen = demonstration.answer(face, scene)
    anew = demonstration.answer(face, scene, [(2.0, 380.0)])
    assert anew.sketch_points.tobytes() == chosen.sketch_points.tobytes()


def test_pale_thin_lines_have_points(prepared: Any, scene: Any) -> None:
    pale = Image.new("RGB", (CANVAS, CANVAS), "white")
    ImageDraw.Draw(pale).ellipse((20, 20, 360, 350), outline=(215, 215, 215))
    answer = prepared[0].answer(pale, scene)
    for colour in PALETTE[:POINTS]:
        x, y = _centre(answer.sketch_points, colour)
        assert ((x - 190) / 170) ** 2 + ((y - 185) / 165) ** 2 == pytest.approx(1, abs=0.2)


def test_points_away_from_the_drawing_are_refused_and_old_ones_forgotten(
    face: Image.Image,
) -> None:
    points: list[tuple[float, float]] = []
    for number in range(POINTS + 2):
        points = add_point(points, (150.0 + number, 200.0), face)
    assert points == [(150.0 + number, 200.0) for number in range(2, POINTS + 2)]
    with pytest.raises(PictureError, match="Click on the drawing"):
        add_point(points, (1.0, 383.0), face)


@pytest.mark.parametrize("size", [(384, 20), (33, 700), (9, 9)])
def test_photos_of_any_shape_are_answered(
    prepared: Any, face: Image.Image, size: tuple[int, int]
) -> None:
    demonstration, _ = prepared
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    answer = demonstration.answer(face, demonstration.photo(Image.fromarray(pixels)))
    ratio = answer.part.width / answer.part.height
    assert ratio == pytest.approx(size[0] / size[1], rel=0.1)
    assert max(answer.part.size) >= CANVAS


def test_a_picture_that_was_deleted_is_left_out(
    prepared: Any, scene: Any, face: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    demonstration, _ = prepared
    before = [place for place, *_ in demonstration.answer(face, scene).similar]
    real = Gallery.picture

    def moved(gallery: Gallery, key: str) -> str:
        place = real(gallery, key)
        return "/gone.png" if place == before[0] else place

    monkeypatch.setattr(Gallery, "picture", moved)
    after = [place for place, *_ in demonstration.answer(face, scene).similar]
    assert after == before[1:]


def test_what_was_learned_replaces_what_is_nearest(
    prepared: Any, scene: Any, face: Image.Image
) -> None:
    demonstration, legend = prepared
    encoder = features_of(demonstration.model).encoder
    size = demonstration.size
    task = Recognition(encoder, ["cat", "dog"]).eval()
    knowing = Demonstration(task, demonstration.gallery, size)
    classes = knowing.answer(face, scene).classes
    assert {name for name, _ in classes} == {"cat", "dog"}
    assert sum(share for _, share in classes) == pytest.approx(1, abs=1e-5)
    assert "was trained for" in Legend.of(knowing, "").classes
    assert "learned no classes" in legend.classes

    finding = Demonstration(QuerySegmentation(encoder).eval(), demonstration.gallery, size)
    with torch.no_grad():
        finding.model.head.threshold.fill_(1.0)
    nothing = np.asarray(finding.answer(face, scene).part)
    with torch.no_grad():
        finding.model.head.threshold.fill_(-1.0)
    everything = np.asarray(finding.answer(face, scene).part)
    np.testing.assert_array_equal(everything, np.asarray(scene.image))
    # Black at a quarter of its strength.
    assert nothing.min() == 191
    assert "trained to find" in Legend.of(finding, "").part


@pytest.mark.parametrize(
    ("model", "weights", "told"),
    [
        ("hog", "pretrained", "`hog` at 64 px on cpu; 3 OpenMoji pictures (CC BY-SA 4.0)."),
        ("hog", "random", "`hog` at 64 px on cpu; 3 OpenMoji pictures (CC BY-SA 4.0)."),
        (
            "clip:tiny",
            "pretrained",
            "`clip:tiny (pretrained foundations)` at 64 px on cpu; 3 OpenMoji pictures "
            "(CC BY-SA 4.0).",
        ),
    ],
)
def test_a_model_that_fuses_nothing_has_one_map(
    model: str, weights: Any, told: str, face: Image.Image
) -> None:
    demonstration, legend = prepare(model, size=64, concepts=3, weights=weights)
    answer = demonstration.answer(face, demonstration.photo(face))
    assert list(answer.maps) == ["This model"] == list(demonstration.map_names)
    assert legend.model == told


def test_what_is_untrained_is_said(prepared: Any) -> None:
    legends = [
        prepare(name, size=64, concepts=3, weights=weights)[1].model
        for name, weights in (
            ("tiny", "pretrained"),
            ("sketchfusion_tiny", "random"),
            ("clip:tiny", "random"),
        )
    ]
    assert "injection and aggregation are untrained" in legends[0]
    assert "random" not in legends[0]
    assert all("weights are random" in told for told in legends[1:])
    assert "trained:" not in prepared[1].model
    assert "random" not in prepared[1].model


@pytest.mark.slow
def test_a_full_size_model_answers(face: Image.Image) -> None:
    demonstration, legend = prepare(
        "sketchfusion_small", size=64, concepts=3, weights="random", dtype="bfloat16"
    )
    answer = demonstration.answer(face, demonstration.photo(face))
    assert tuple(answer.maps) == FUSION
    assert len(answer.similar) == 3
    assert all(np.asarray(picture).std() > 0 for picture in answer.maps.values())
    assert legend.model.startswith("`sketchfusion_small (random foundations)` at 64 px on cpu; 3 ")


def test_a_classifier_is_asked_where_it_is(monkeypatch: pytest.MonkeyPatch, prepared: Any) -> None:
    demonstration, _ = prepared
    classifier = Recognition(features_of(demonstration.model).encoder, ("one", "two"))
    places = []

    def forward(image: torch.Tensor) -> torch.Tensor:
        places.append(image.device)
        return torch.zeros(1, 2)

    monkeypatch.setattr(classifier, "forward", forward)
    monkeypatch.setattr(answers, "device_of", lambda _: torch.device("meta"))
    monkeypatch.setattr(demonstration, "model", classifier)
    demonstration._classes(torch.zeros(1, 3, 32, 32), torch.zeros(8))
    assert places == [torch.device("meta")]
