"""Every source of every task, on a miniature: what is held out, labels, two steps of training."""

from __future__ import annotations

import importlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from sketchfusion_plugins.data.row_split import _shares
from sketchfusion_plugins.data.sources import SOURCES, load_task_data
from sketchfusion_plugins.data.task_data import TaskData
from sketchfusion_plugins.data.zero_shot import split_categories, unseen_classes

SIZE = 32
SEEN = ("calculator_of_ours", "moon_of_ours", "tent_of_ours")
LAYOUTS = {
    "folders": "segmentation",
    "openmoji": "",
    "paired": "paired",
    "paired-fine": "paired",
    "psc6k": "psc6k",
    "psc6k-pscnet": "psc6k",
    "quickdraw": "quickdraw",
    "quickdraw-extended": "quickdraw_extended",
    "sketchy": "sketchy",
    "sketchy-25": "sketchy",
    "sketchy-fine": "sketchy",
    "sketchy-fine-category": "sketchy",
    "tuberlin": "tuberlin",
}
PROTOCOLS = {
    "quickdraw-extended": "quickdraw_30",
    "sketchy": "sketchy_21",
    "sketchy-25": "sketchy_25",
    "sketchy-fine": "sketchy_21",
    "sketchy-fine-category": "sketchy_21",
    "tuberlin": "tuberlin_30",
}
MEASURES = {
    "recognition": ("Acc@1", "Acc@5"),
    "query_segmentation": ("foreground IoU", "mIoU", "pixel accuracy"),
    "correspondence": ("PCK@1", "PCK@5", "PCK@10"),
}
ALL = [(task, name) for task, names in SOURCES.items() for name in names]
FOLDERS = [(task, name) for task, name in ALL if name != "openmoji"]


def picture(path: Path, size: int = 40) -> None:
    """Different noise in every file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(str(path.relative_to(path.parents[2])).encode()))
    Image.fromarray(generator.integers(0, 256, (size, size, 3), np.uint8)).save(path)


def write_sketchy(root: Path) -> None:
    base = root / "256x256"
    names = {*unseen_classes("sketchy_21"), *unseen_classes("sketchy_25"), *SEEN}
    for name in names:
        for photo in ("n01_7", "n02_8"):
            picture(base / "photo" / "tx_000000000000" / name / f"{photo}.jpg")
            for number in (1, 2):
                sketch = base / "sketch" / "tx_000000000000" / name / f"{photo}-{number}.png"
                picture(sketch)
        picture(root / "extended" / name / "ext_1.jpg")


def write_tuberlin(root: Path) -> None:
    for name in (*unseen_classes("tuberlin_30"), *SEEN):
        for number in range(4):
            picture(root / "png" / name.replace("_", " ") / f"{number}.png")
        picture(root / "extended" / name.replace("_", " ") / "a.jpg")


def write_quickdraw_extended(root: Path) -> None:
    for name in (*unseen_classes("quickdraw_30"), *SEEN):
        for number in range(2):
            picture(root / "QuickDraw_sketches_final" / name / f"{number}.png")
            picture(root / "QuickDraw_images_final" / name / f"{number}.jpg")


def write_quickdraw(root: Path) -> None:
    for category, name in enumerate(("cat", "key", "zebra")):
        lines = []
        for number in range(12):
            generator = np.random.default_rng([category, number])
            strokes = [generator.integers(0, 256, (2, 6)).tolist() for _ in range(3)]
            lines.append(
                json.dumps(
                    {
                        "word": name,
                        "key_id": str(100 * category + number),
                        "recognized": True,
                        "countrycode": "DE",
                        "timestamp": "2017-03-01 20:41:36.70725 UTC",
                        "drawing": strokes,
                    }
                )
            )
        (root / f"{name}.ndjson").write_text("\n".join(lines) + "\n")


def write_paired(root: Path) -> None:
    for name in ("cat", "dog", "owl", "pig"):
        for photo in ("a", "b", "c"):
            picture(root / "photos" / name / f"{photo}.jpg")
            picture(root / "sketches" / name / f"{photo}.png")
            picture(root / "sketches" / name / f"{photo}-2.png")
        picture(root / "sketches" / name / "of nothing.png")


ANIMALS = ("cat", "dog", "owl", "pig")


def write_segmentation(root: Path) -> None:
    """Every animal alone, in pairs of neighbours, and all of them."""
    (root / "classes.json").write_text(json.dumps({n: i + 1 for i, n in enumerate(ANIMALS)}))
    pairs = (ANIMALS[i : i + 2] for i in range(3))
    for shown in (*((name,) for name in ANIMALS), *pairs, ANIMALS):
        write_photo(root, *shown)
    for name in ANIMALS:
        for number in range(2):
            picture(root / "sketches" / name / f"{number}.png")


def write_photo(root: Path, *shown: str) -> None:
    """A photo of animals, each in its corner."""
    name = f"{len(shown)}-{'-'.join(shown)}"
    picture(root / "photos" / f"{name}.jpg")
    mask = np.zeros((40, 40), np.uint8)
    for value, (row, column) in enumerate(((0, 0), (0, 20), (20, 0), (20, 20)), 1):
        if ANIMALS[value - 1] in shown:
            mask[row : row + 15, column : column + 15] = value
    mask[38:] = 255
    (root / "masks").mkdir(exist_ok=True)
    Image.fromarray(mask).save(root / "masks" / f"{name}.png")


def write_psc6k(root: Path) -> None:
    rows = ["photo,sketch,class,XA,YA,XB,YB"]
    generator = np.random.default_rng(0)
    for name in ("ant", "pig"):
        for number in range(50):
            photo = f"photo/tx_000000000000/{name}/n{number // 5:02d}.jpg"
            sketch = f"sketch/tx_000000000000/{name}/n{number // 5:02d}-{number % 5}.png"
            points = generator.integers(10, 246, (4, 8))
            rows.append(",".join([photo, sketch, "1", *(";".join(map(str, p)) for p in points)]))
            picture(root / photo)
            picture(root / sketch)
    (root / "test_pairs_ps.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A source's name with the folder of its miniature."""
    folders: dict[str, Path] = {}

    def find(name: str) -> str:
        layout = LAYOUTS[name]
        if not layout:
            return name
        if layout not in folders:
            folders[layout] = tmp_path_factory.mktemp(layout)
            globals()[f"write_{layout}"](folders[layout])
        return f"{name}:{folders[layout]}"

    return find


@pytest.fixture(scope="module")
def load(source_of: Callable[[str], str]) -> Callable[[str, str], TaskData]:
    """Data of a task from a miniature."""
    loaded: dict[tuple[str, str], TaskData] = {}

    def find(task: str, name: str) -> TaskData:
        if (task, name) not in loaded:
            limit = None
            if name == "openmoji":
                limit = 90 if task == "recognition" else 40
            loaded[task, name] = load_task_data(task, source_of(name), SIZE, limit=limit)
        return loaded[task, name]

    return find


@pytest.fixture
def default_scope() -> Iterator[None]:
    """mmengine's default scope as it was."""
    registry = pytest.importorskip("mmengine.registry")
    scopes = dict(registry.DefaultScope._instance_dict)
    yield
    registry.DefaultScope._instance_dict.clear()
    registry.DefaultScope._instance_dict.update(scopes)


def keys(data: Any) -> set[str]:
    return {data[index]["key"] for index in range(len(data))}


def test_every_source_has_a_miniature() -> None:
    assert {name for _, name in ALL} == set(LAYOUTS)


@pytest.mark.parametrize(("task", "name"), ALL)
def test_samples_are_what_the_tasks_read(
    load: Callable[[str, str], TaskData], task: str, name: str
) -> None:
    data = load(task, name)
    assert data.task == task and data.size == SIZE and data.source.startswith(name)
    images = {
        "recognition": ("image",),
        "retrieval": ("sketch", "photo"),
        "query_segmentation": ("sketch", "photo"),
        "correspondence": ("source", "target"),
    }[task]
    parts = [part for part in (data.train, data.fit) if part is not None]
    tested = ("image",) if task == "retrieval" else images
    for part, wanted in [*((p, images) for p in parts), (data.test, tested)]:
        batch = default_collate([part[index] for index in range(2)])
        for key in wanted:
            # OpenMoji's scenes are of pictures two by two.
            side = (
                2 * SIZE
                if (task, name, key) == ("query_segmentation", "openmoji", "photo")
                else SIZE
            )
            assert batch[key].shape == (2, 3, side, side)
            assert batch[key].dtype == torch.float32
            assert -1 <= batch[key].min() < batch[key].max() <= 1
    if task == "correspondence":
        batch = data.test[0]
        points = torch.cat([batch["source_points"], batch["target_points"]])
        assert points.min() >= 0 and points.max() <= SIZE
    if task == "query_segmentation":
        masks = [data.test[index]["mask"] for index in range(len(data.test))]
        assert all(0 < mask.float().mean() < 1 for mask in masks)


@pytest.mark.parametrize("name", SOURCES["recognition"])
def test_recognition_holds_out_pictures_of_known_classes(
    load: Callable[[str, str], TaskData], name: str
) -> None:
    data = load("recognition", name)
    fit, test = keys(data.fit), keys(data.test)
    assert fit and test and not fit & test
    assert len(data.categories) == len(set(data.categories)) > 1
    for part in (data.train, data.fit, data.test):
        assert all(0 <= part[i]["label"] < len(data.categories) for i in range(len(part))[:40])
    if name != "openmoji":
        assert len(fit) + len(test) == len(data.fit) + len(data.test)
    if name == "sketchy":
        # Two sketches of one photo lie on the same side.
        photos = [{key.rsplit("-", 1)[0] for key in part} for part in (fit, test)]
        assert not photos[0] & photos[1]


def write_bitmaps(root: Path, *names: str) -> str:
    for name in names:
        np.save(root / f"{name}.npy", np.zeros((400, 784), np.uint8))
    return f"quickdraw:{root}"


def test_a_drawing_stays_on_its_side_whatever_the_limit_and_the_classes(tmp_path: Path) -> None:
    source = write_bitmaps(tmp_path, "cat", "dog", "owl")
    all_of_them = load_task_data("recognition", source, SIZE)
    held_out = keys(all_of_them.test)
    assert len(held_out) == len(all_of_them.test) and not held_out & keys(all_of_them.fit)
    # 400 throws at 0.3 lie within 5 standard deviations of 120, and no class repeats another.
    rows = {
        n: {k.split("/")[1] for k in held_out if k.startswith(n)} for n in ("cat", "dog", "owl")
    }
    assert all(74 <= len(part) <= 166 for part in rows.values())
    assert rows["cat"] != rows["dog"] != rows["owl"] != rows["cat"]
    for limit in (100, 200):
        few = load_task_data("recognition", source, SIZE, limit=limit)
        assert keys(few.test) == {k for k in held_out if int(k.split("/")[1]) < limit}
    write_bitmaps(tmp_path, "ant", "cow", "fly")
    assert held_out == {
        key
        for key in keys(load_task_data("recognition", source, SIZE).test)
        if key.split("/")[0] in rows
    }
    assert keys(load_task_data("recognition", source, SIZE, seed=1).test) != held_out


def test_bad_lines_of_quickdraw_are_left_out_and_told(tmp_path: Path) -> None:
    write_quickdraw(tmp_path)
    whole = load_task_data("recognition", f"quickdraw:{tmp_path}", SIZE)
    every = keys(whole.fit) | keys(whole.test)
    lines = (tmp_path / "key.ndjson").read_text().splitlines()
    lines[3], lines[7] = lines[3][:40], lines[7].replace('"drawing": [[[', '"drawing": [[["x", ')
    (tmp_path / "key.ndjson").write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match=r"left out: 2, the first .*key\.ndjson, line 4") as told:
        data = load_task_data("recognition", f"quickdraw:{tmp_path}", SIZE)
    assert len(told) == 1
    assert keys(data.fit) | keys(data.test) == every - {"key/103", "key/107"}
    assert data.categories == whole.categories


def test_the_rows_held_out_are_those_of_splitmix64() -> None:
    # The first numbers of seed 1234567, from the generator's reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert (_shares(1234567, 3) * 2.0**64).tolist() == [float(number) for number in expected]


@pytest.mark.parametrize(
    ("task", "source", "module", "reader", "files"),
    [
        ("recognition", "quickdraw", "quickdraw_sources", "_starts", 3),
        ("query_segmentation", "folders", "segmentation_pairs", "read_mask", 8),
    ],
)
def test_loading_reads_every_file_once(
    task: str,
    source: str,
    module: str,
    reader: str,
    files: int,
    source_of: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = importlib.import_module(f"sketchfusion_plugins.data.{module}")
    read = Mock(wraps=getattr(home, reader))
    monkeypatch.setattr(home, reader, read)
    load_task_data(task, source_of(source), SIZE)
    assert read.call_count == files


@pytest.mark.parametrize("name", [n for n in SOURCES["retrieval"] if n != "openmoji"])
def test_retrieval_searches_classes_that_training_never_saw(
    load: Callable[[str, str], TaskData], name: str
) -> None:
    data = load("retrieval", name)
    trained = {
        p.category for part in (data.train.sketches, data.train.photos) for p in part.pictures
    }
    queries = {p.category for p in data.test.pictures}
    searched = {p.category for p in data.gallery.pictures}
    assert queries <= searched == set(data.categories) and not trained & searched
    if name in PROTOCOLS:
        every = trained | searched
        assert split_categories(sorted(every), PROTOCOLS[name])[1] == sorted(searched)
        assert searched == {n.replace("_", " " if name == "tuberlin" else "_") for n in searched}
    # Labels name the same category on both sides, and nothing else does.
    for part in (data.test, data.gallery):
        assert [data.categories[label] for label in part.labels] == [
            p.category for p in part.pictures
        ]
    if data.label == "instance":
        matches = data.test.instances[:, None] == data.gallery.instances
        assert (matches.sum(1) == 1).all(), "every sketch asks for one photo"
        assert all(p.instance is not None for p in data.gallery.pictures)
        assert data.measures == ("Acc@1", "Acc@5", "Acc@10")
        assert data.own_category == name.endswith("-category")


@pytest.mark.parametrize("count", [4, 5, 6, 12])
def test_paired_folders_hold_out_alike_by_class_and_of_the_photo(
    tmp_path: Path, count: int
) -> None:
    for side in ("sketches", "photos"):
        for number in range(count):
            picture(tmp_path / side / f"class {number}" / "1.png")
    for seed in range(3):
        held_out = [
            load_task_data("retrieval", f"{name}:{tmp_path}", SIZE, seed).categories
            for name in ("paired", "paired-fine")
        ]
        assert held_out[0] == held_out[1] and len(held_out[0]) >= 2


def test_classes_that_were_trained_on_are_not_judged_when_classes_are_added(
    tmp_path: Path,
) -> None:
    trained: dict[int, set[str]] = {seed: set() for seed in range(4)}
    for number in range(14):
        for side in ("sketches", "photos"):
            picture(tmp_path / side / f"class {number}" / "1.png")
        for seed in trained if number >= 3 else ():
            data = load_task_data("retrieval", f"paired:{tmp_path}", SIZE, seed)
            assert not trained[seed] & set(data.categories)
            seen = {sketch.category for sketch in data.fit.sketches.pictures}
            trained[seed] |= seen if len(seen) > 2 else set()
    assert min(map(len, trained.values())) > 5


@pytest.mark.parametrize("task", ["retrieval", "query_segmentation", "correspondence"])
def test_openmoji_holds_out_families(load: Callable[[str, str], TaskData], task: str) -> None:
    data = load(task, "openmoji")
    train, test = (
        {data_part[index]["key"].split("/")[0] for index in range(len(data_part))[:200]}
        for data_part in (data.train, data.test)
    )
    assert train and test and not train & test
    if task == "retrieval":
        assert torch.equal(data.test.instances, data.gallery.instances)
        # The gallery is warped: the same picture elsewhere.
        assert (data.gallery[0]["image"] - data.test[0]["image"]).abs().mean() > 0.02


def test_segmentation_asks_for_new_categories(load: Callable[[str, str], TaskData]) -> None:
    data = load("query_segmentation", "folders")
    assert set(data.categories) == set(data.test.categories)
    assert not set(data.test.categories) & set(data.train.categories)
    assert {*data.test.categories, *data.train.categories} == set(ANIMALS)
    assert len(data.train) == 64 * len(data.fit)


@pytest.mark.parametrize("limit", [None, 2])
def test_photos_of_held_out_categories_are_judged_alone(
    source_of: Callable[[str], str], limit: int | None
) -> None:
    for seed in range(4):
        data = load_task_data("query_segmentation", source_of("folders"), SIZE, seed, limit)

        def photos(part: Any) -> set[str]:
            return {key.split(".jpg")[0] for key in keys(part)}

        assert len(data.categories) == 2
        judged, trained = photos(data.test), photos(data.fit)
        assert judged and all(any(new in photo for new in data.categories) for photo in judged)
        assert trained and not any(new in photo for new in data.categories for photo in trained)
        assert photos(data.train) == trained
        if limit is None:
            # Alone, with neighbours, and among all; what is seen alone, and in pairs.
            assert len(judged) + len(trained) == 8


def test_photos_that_all_hold_what_is_held_out_are_refused(tmp_path: Path) -> None:
    write_photo(tmp_path, *ANIMALS)
    (tmp_path / "classes.json").write_text(json.dumps({n: i + 1 for i, n in enumerate(ANIMALS)}))
    for name in ANIMALS:
        picture(tmp_path / "sketches" / name / "1.png")
    message = r"every photo in .*photos that holds any of .* too, which are held out\. Add photos"
    with pytest.raises(ValueError, match=message):
        load_task_data("query_segmentation", f"folders:{tmp_path}", SIZE)


def test_categories_that_nobody_sketched_are_background(tmp_path: Path) -> None:
    write_segmentation(tmp_path)
    source = f"folders:{tmp_path}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_task_data("query_segmentation", source, SIZE)
    (tmp_path / "sketches" / "pig").rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="has no sketch of pig, which are background") as told:
        data = load_task_data("query_segmentation", source, SIZE)
    assert len(told) == 1
    assert {*data.test.categories, *data.train.categories} == {"cat", "dog", "owl"}
    asked = [sample for part in (data.fit, data.test) for sample in map(part.__getitem__, range(1))]
    assert all("pig" not in sample["key"].split()[1] for sample in asked)
    # A quarter of a photo of all of them is the pig's; it is judged, as what is not asked for.
    (everyone,) = (
        data.test[i] for i in range(len(data.test)) if data.test[i]["key"].startswith("4-cat")
    )
    corner = (slice(18, 26), slice(18, 26))
    assert everyone["valid"][corner].all() and not everyone["mask"][corner].any()
    for left in ("cat", None):
        for name in {"cat", "dog", "owl"} - {left}:
            folder = tmp_path / "sketches" / name
            if folder.exists():
                folder.rename(tmp_path / f"{name} of {left}")
        message = rf"sketches has {left}, of cat, dog" if left else "sketches holds no picture"
        with pytest.raises(FileNotFoundError, match=message):
            load_task_data("query_segmentation", source, SIZE)


def test_classes_that_lie_in_one_part_alone_are_told(tmp_path: Path) -> None:
    for name, count in (("ant", 1), ("bee", 40), ("cow", 1)):
        for number in range(count):
            picture(tmp_path / "png" / name / f"{number}.png")
    told = set()
    for seed in range(12):
        with pytest.warns(UserWarning, match="has no sketch to") as found:
            data = load_task_data("recognition", f"tuberlin:{tmp_path}", SIZE, seed)
        trained, judged = (
            {data.categories[label] for label in part.labels} for part in (data.fit, data.test)
        )
        expected = []
        if untrained := ", ".join(sorted(judged - trained)):
            expected.append(f"to train on of {untrained}, which are judged all the same")
        if unjudged := ", ".join(sorted(trained - judged)):
            expected.append(f"to judge of {unjudged}, which are trained on all the same")
        messages = [str(warning.message) for warning in found]
        assert messages == [
            f"{tmp_path} has no sketch {text}. Add sketches, or raise the limit."
            for text in expected
        ]
        told |= {untrained, unjudged}
    assert told == {"", "ant", "cow", "ant, cow"}


def test_drawings_of_classes_that_lie_in_one_part_alone_are_told(tmp_path: Path) -> None:
    write_bitmaps(tmp_path, "cat", "dog")
    np.save(tmp_path / "owl.npy", np.zeros((1, 784), np.uint8))
    message = r"no sketch to (train on|judge) of owl, which are"
    with pytest.warns(UserWarning, match=message) as told:
        load_task_data("recognition", f"quickdraw:{tmp_path}", SIZE)
    assert len(told) == 1


def test_a_part_of_recognition_without_a_sketch_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "png" / "ant" / "1.png")
    message = rf"{tmp_path} has no sketch for the part '(train|test)' of recognition.* Add sketches"
    with pytest.raises(ValueError, match=message):
        load_task_data("recognition", f"tuberlin:{tmp_path}", SIZE)


def test_psc6k_splits_as_its_protocols_say(load: Callable[[str, str], TaskData]) -> None:
    data = load("correspondence", "psc6k")
    assert (data.protocol, len(data.train), len(data.test)) == ("sketchfusion", 120, 80)
    assert not keys(data.train) & keys(data.test)
    whole = load("correspondence", "psc6k-pscnet")
    assert (whole.protocol, whole.train, len(whole.test)) == ("pscnet", None, 200)


def test_limits_keep_a_few_of_every_class(source_of: Callable[[str], str]) -> None:
    data = load_task_data("retrieval", source_of("sketchy"), SIZE, limit=1)
    assert len(data.test) == len(data.gallery) == len(data.categories)
    data = load_task_data("recognition", source_of("quickdraw"), SIZE, limit=5)
    assert len(data.fit) + len(data.test) == 15
    data = load_task_data("correspondence", source_of("psc6k"), SIZE, limit=3)
    assert len(data.test) == 2 * 2 * 3
    parts = [
        load_task_data("query_segmentation", source_of("folders"), SIZE, limit=limit)
        for limit in (None, 1)
    ]
    assert len(parts[1].test) == len(parts[1].categories) <= len(parts[0].test)
    assert len(parts[1].fit) < len(parts[0].fit)


def test_seeds_split_anew(source_of: Callable[[str], str]) -> None:
    splits = {
        seed: load_task_data("query_segmentation", source_of("folders"), SIZE, seed).categories
        for seed in range(6)
    }
    assert len(set(splits.values())) > 1
    again = load_task_data("query_segmentation", source_of("folders"), SIZE, 3)
    assert again.categories == splits[3]


@pytest.mark.parametrize(("task", "name"), FOLDERS)
def test_two_steps_of_training_and_evaluation(
    load: Callable[[str, str], TaskData],
    task: str,
    name: str,
    pipeline_folder: Path,
    clip_folder: Path,
    default_scope: None,
    tmp_path: Path,
) -> None:
    from sketchfusion_plugins.evaluation.judge import Judge
    from sketchfusion_plugins.features import PixelFeatures
    from sketchfusion_plugins.mm.task_config import read_task_config
    from sketchfusion_plugins.mm.train_task import train_task

    data = load(task, name)
    if data.train is None:
        row = Judge(data, progress=False)(PixelFeatures())
    else:
        options = {
            "encoder.changes": {
                "diffusion__source": str(pipeline_folder),
                "semantic__source": str(clip_folder),
                "semantic__kind": "clip",
                "semantic__final_norm": False,
                "aggregation__out_channels": 32,
                "aggregation__norm_groups": 8,
            },
            "train_dataloader.batch_size": 4,
            "train_cfg.max_iters": 2,
            "judge.progress": False,
        }
        config = read_task_config(task, options)
        config.work_dir = str(tmp_path)
        trained, row = train_task(config, data)
        assert (tmp_path / "iter_2.pth").exists() or (tmp_path / "adapters").exists()
        if task == "retrieval":
            assert trained.settings["by"] == ("instance" if "fine" in name else "category")
    assert tuple(row) == data.measures == MEASURES.get(task, data.measures)
    for measured in row.values():
        assert 0 <= measured.low <= measured.value <= measured.high <= 1
        assert measured.count == len(data.test)


@pytest.mark.parametrize(
    ("task", "source", "error", "message"),
    [
        ("juggling", "openmoji", ValueError, "unknown task 'juggling'; choose one of recognition"),
        ("retrieval", "psc6k:/data", ValueError, "retrieval has no data source 'psc6k'; choose"),
        ("recognition", "cls", ValueError, "after a colon (all but openmoji), such as 'quickdraw:"),
        ("recognition", "sketchy", ValueError, "'openmoji' or a name with its folder, such as"),
        ("recognition", "sketchy:", ValueError, "got 'sketchy:'"),
        ("recognition", "openmoji:/data", ValueError, "got 'openmoji:/data'"),
        ("recognition", "openmoji@mine", ValueError, "got 'openmoji@mine'"),
        ("recognition", "tuberlin@:/data", ValueError, "got 'tuberlin@:/data'"),
        (
            "recognition",
            "tuberlin@mine",
            ValueError,
            "or 'tuberlin@mine:/data",
        ),
    ],
)
def test_wrong_sources_are_refused(
    task: str, source: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        load_task_data(task, source)


@pytest.mark.parametrize(
    ("task", "limit", "message"),
    [
        ("retrieval", 1, "0 held out of 1; raise the limit"),
        ("recognition", 40, "fewer than two subgroups .* raise it to 200 or more"),
        ("query_segmentation", 16, "limit 16 leaves too few drawings .* expected 5 or more"),
    ],
)
def test_limit_of_openmoji_that_leaves_too_little(task: str, limit: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_task_data(task, "openmoji", SIZE, limit=limit)


def test_a_limit_that_leaves_nothing_to_judge_is_refused(tmp_path: Path) -> None:
    write_quickdraw(tmp_path)
    for path in sorted(tmp_path.glob("*.ndjson"))[1:]:
        path.unlink()
    parts = r"nothing for the part '(train|test|fit)' of recognition\. Raise the limit"
    with pytest.raises(ValueError, match=parts):
        load_task_data("recognition", f"quickdraw:{tmp_path}", SIZE, limit=1)


def test_a_search_among_pictures_of_one_class_is_refused(tmp_path: Path) -> None:
    for side in ("sketches", "photos"):
        for name in ("cat", "dog", "owl"):
            folder = tmp_path / side / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (SIZE, SIZE), "white").save(folder / f"{number}.png")
    with pytest.raises(ValueError, match=r"by label needs 4 classes.* has 3 with sketches and"):
        load_task_data("retrieval", f"paired:{tmp_path}", SIZE)


@pytest.mark.parametrize("name", ["paired", "paired-fine"])
def test_photos_that_nobody_sketched_are_searched_too(name: str, tmp_path: Path) -> None:
    write_paired(tmp_path)
    for other in ("axe", "bus", "cup", "hat", "van", "zoo"):
        picture(tmp_path / "photos" / other / "a.jpg")
    for seed in range(8):
        data = load_task_data("retrieval", f"{name}:{tmp_path}", SIZE, seed)
        queries = {picture.category for picture in data.test.pictures}
        assert len(queries) == 2 and queries < set(ANIMALS)
        searched = {"axe", "bus", "cup", "hat", "van", "zoo"} | queries
        assert {picture.category for picture in data.gallery.pictures} == searched
        assert not searched & {key.split("/")[-2] for key in keys(data.fit)}


def test_sketches_that_name_no_photo(tmp_path: Path) -> None:
    for name in ANIMALS:
        picture(tmp_path / "photos" / name / "a.jpg")
        picture(tmp_path / "sketches" / name / "a_1.png")
    load_task_data("retrieval", f"paired:{tmp_path}", SIZE)
    with pytest.raises(FileNotFoundError, match=r"no sketch of \w+, \w+ that is named after its"):
        load_task_data("retrieval", f"paired-fine:{tmp_path}", SIZE)


@pytest.mark.parametrize(("task", "name"), FOLDERS)
def test_missing_folders_are_named(task: str, name: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match=str(missing)):
        load_task_data(task, f"{name}:{missing}", SIZE)


def test_retrieval_without_photos_says_where_they_go(tmp_path: Path) -> None:
    picture(tmp_path / "png" / "cat" / "1.png")
    with pytest.raises(FileNotFoundError, match=r"no photos to search\. Put .* 'extended'"):
        load_task_data("retrieval", f"tuberlin:{tmp_path}", SIZE)


def test_classes_meet_however_both_sides_spell_them(
    source_of: Callable[[str], str], tmp_path: Path
) -> None:
    alike = load_task_data("retrieval", source_of("quickdraw-extended"), SIZE)
    write_quickdraw_extended(tmp_path)
    for folder in list((tmp_path / "QuickDraw_images_final").iterdir()):
        folder.rename(folder.with_name(folder.name.replace("_", " ").title()))
    data = load_task_data("retrieval", f"quickdraw-extended:{tmp_path}", SIZE)
    assert data.categories != alike.categories
    assert len(data.test) == len(alike.test) == 60
    assert len(data.fit) == len(alike.fit) == 6
    assert [Path(key).parent.name for key in data.test.keys] == [
        Path(key).parent.name for key in alike.test.keys
    ]
    for part in (data.test, data.gallery):
        assert {p.category for p in part.pictures} == set(data.categories)


def test_held_out_classes_without_sketches_are_named(tmp_path: Path) -> None:
    write_quickdraw_extended(tmp_path)
    (tmp_path / "QuickDraw_sketches_final" / "bat").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no sketch of bat, which quickdraw_30 holds out"):
        load_task_data("retrieval", f"quickdraw-extended:{tmp_path}", SIZE)


def test_incomplete_classes_are_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / "QuickDraw_sketches_final" / name / "1.png")
        picture(tmp_path / "QuickDraw_images_final" / name / "1.jpg")
    with pytest.raises(ValueError, match=r"quickdraw_30 holds out .* not among the 2"):
        load_task_data("retrieval", f"quickdraw-extended:{tmp_path}", SIZE)
