"""Pictures in an index: put in by a model, found again by the same one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from sketchfusion_plugins.config import Weights
from sketchfusion_plugins.foundation_settings import are_alike
from sketchfusion_plugins.index import Hit, IndexWriter, SketchIndex
from sketchfusion_plugins.index.manifest import POINTER, Kind, Manifest
from sketchfusion_plugins.inference.answers import Model, describe_files
from sketchfusion_plugins.inference.descriptor_tags import (
    descriptor_tag,
    model_fingerprint,
    model_settings,
)
from sketchfusion_plugins.inference.models import is_checkpoint, open_model
from sketchfusion_plugins.inference.sharding import Ranks, describe_together, forget_parts
from sketchfusion_plugins.problems import Problems

# What a crash can lose: some minutes of a large model on a CPU, a second of it on a GPU.
COMMITTED_TOGETHER = 256
ALONE = Ranks()
_Batch = tuple[list[Path], Tensor]


@dataclass(frozen=True)
class GalleryModel:
    """The model that describes a gallery's pictures, as its index remembers it.

    Attributes:
        name: Name that `models.open_model` takes.
        weights: Weights of its foundations.
        size: Side, in pixels, of the square that pictures are padded to.
        fingerprint: See `descriptor_tags.model_fingerprint`.
        settings: See `descriptor_tags.model_settings`; empty, or without its second part, in
            indexes of versions that did not write it.
    """

    name: str
    weights: Weights
    size: int
    fingerprint: str
    settings: str = ""

    @classmethod
    def of(cls, model: Model, name: str, weights: Weights, size: int) -> GalleryModel:
        """Describe an open model; a checkpoint's folder is remembered by its absolute path."""
        path = Path(name).expanduser()
        # A folder that has the name of a preset or a baseline is not what was opened.
        place = str(path.absolute()) if is_checkpoint(name) and path.exists() else name
        return cls(place, weights, size, model_fingerprint(model), model_settings(model))

    @classmethod
    def read(cls, index: str | Path) -> GalleryModel:
        """The model of an index.

        Raises:
            OSError: The folder holds no index, or a damaged one.
            ValueError: The index was not made from pictures.
        """
        text = Manifest.read(Path(index)).model
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the index {index} does not say which model made it ({text!r}). Build it with: "
                "sketchfusion index build"
            ) from error

    def is_like(self, other: GalleryModel) -> bool:
        """Whether descriptors of the two can be compared."""
        if not are_alike(self.settings, other.settings):
            return False
        return (self.fingerprint, self.size) == (other.fingerprint, other.size)

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    def open(
        self, device: str = "cpu", dtype: str | None = None, place: str | None = None
    ) -> Model:
        """Open the model.

        Args:
            device: Where to put it.
            dtype: See `models.open_model`.
            place: Where it lies now, if it was moved.

        Raises:
            OSError: It cannot be found.
            ValueError: It is not what it was.
        """
        model = open_model(place or self.name, weights=self.weights, device=device, dtype=dtype)
        found = model_fingerprint(model)
        if found != self.fingerprint:
            raise ValueError(
                f"{place or self.name} is not the model that the index was built with: its "
                f"fingerprint is {found}, expected {self.fingerprint}. Use that model, or build a "
                "new index."
            )
        settings = model_settings(model)
        if not are_alike(self.settings, settings):
            raise ValueError(
                f"{place or self.name} computes otherwise than when the index was built: the "
                "hashes of its images' normalisation with its latents' scale, and of its "
                f"activation (GELU or QuickGELU), are {settings}, expected {self.settings}. Use "
                "the files that it had beside its weights, or build a new index."
            )
        return model


def is_same_model(one: str, other: str) -> bool:
    """Whether two indexes' `Manifest.model` are of one model, wherever it lay when they were built.

    As far as both say what it computes.
    """
    try:
        first, second = (GalleryModel(**json.loads(text)) for text in (one, other))
    except (TypeError, ValueError):
        return one == other
    return first.is_like(second)


def add_pictures(
    index: str | Path,
    model: Model,
    described: GalleryModel,
    paths: Sequence[Path],
    problems: Problems,
    *,
    kind: Kind = "flat",
    batch_size: int = 16,
    progress: bool = True,
    together: int = COMMITTED_TOGETHER,
    ranks: Ranks = ALONE,
) -> tuple[int, int]:
    """Put pictures into an index, which is made if there is none; those in it are passed over.

    Ctrl-C, or an error while pictures are described, commits what was described before; the same
    call goes on from there.

    Args:
        index: Folder of the index.
        model: The model.
        described: The same, as the index remembers it.
        paths: Picture files, which the index knows by their absolute paths.
        problems: Collects files that are no pictures.
        kind: Kind of a new index.
        batch_size: Pictures per step.
        progress: Show a progress bar, when standard error is a terminal.
        together: Pictures per commit.
        ranks: Processes that share the work; the first one writes.

    Returns:
        Pictures that were added, and pictures in the index; zeros in all processes but the first.

    Raises:
        OSError: The index is damaged or cannot be written.
        ValueError: The index was built with another model, or is of another kind.
    """
    index = Path(index)
    exists = (index / POINTER).exists()
    if exists:
        _check_same(index, described, kind)
    with ExitStack() as stack:
        writer = None
        if exists and ranks.is_first:
            writer = stack.enter_context(IndexWriter.open(index))
        known: IndexWriter | set[str] = set() if writer is None else writer
        if exists and not ranks.is_first:
            known = {key for key, _ in SketchIndex.open(index).items()}
        keys = dict.fromkeys(map(picture_key, paths))
        # Parts of a killed launch may be gone on with from another folder, so they hold keys too.
        waiting = [Path(key) for key in keys if key not in known]
        before = 0 if writer is None else len(writer)

        def commit() -> None:
            if writer is not None:
                writer.commit(progress)

        batches = describe_together(
            ranks,
            model,
            waiting,
            described.size,
            problems,
            result=index,
            # Not what the index says, which an earlier version may have written without settings.
            fingerprint=descriptor_tag(
                described.fingerprint, model_settings(model), described.size
            ),
            batch_size=batch_size,
            progress=progress,
        )
        # Readers, bars and parts end where this does.
        stack.enter_context(closing(batches))
        directed = (_directed(*batch, problems) for batch in batches)
        for kept, found in _saved_when_stopped(directed, commit):
            if not kept:
                continue
            if writer is None:
                created = IndexWriter.create(index, found.shape[1], kind, str(described))
                writer = stack.enter_context(created)
            writer.add(found, [picture_key(path) for path in kept])
            if writer.pending >= together:
                writer.commit(progress)
        after = 0 if writer is None else len(writer)
    forget_parts(ranks, index)
    return after - before, after


def search_pictures(
    index: str | Path,
    model: Model,
    described: GalleryModel,
    paths: Sequence[Path],
    problems: Problems,
    *,
    top: int = 10,
    batch_size: int = 16,
    progress: bool = True,
) -> Iterator[tuple[Path, list[Hit]]]:
    """The most similar pictures of an index for every query picture, best first.

    Args:
        index: Folder of the index.
        model: The model.
        described: The same, as the index remembers it.
        paths: Query pictures.
        problems: Collects files that are no pictures.
        top: Pictures wanted.
        batch_size: Queries per step.
        progress: Show a progress bar, when standard error is a terminal.

    Raises:
        OSError: The index is damaged.
        ValueError: ``top`` is below 1.
    """
    reader = SketchIndex.open(index)
    for readable, vectors in describe_files(
        model, paths, described.size, problems, batch_size=batch_size, progress=progress
    ):
        kept, queries = _directed(readable, vectors, problems)
        if kept:
            yield from zip(kept, reader.search(queries, top), strict=True)


def picture_key(path: Path) -> str:
    """What an index calls a picture: its absolute path, the same from every working folder."""
    parts = path.absolute().parts
    if ".." not in parts:
        return Path(*parts).as_posix()
    # Links are kept as they are named, but for those that ".." leads back from.
    end = len(parts) - parts[::-1].index("..")
    return Path(*parts[:end]).resolve().joinpath(*parts[end:]).as_posix()


def _saved_when_stopped(batches: Iterable[_Batch], save: Callable[[], None]) -> Iterator[_Batch]:
    """The same batches; ``save`` is called when Ctrl-C or an error comes while one is awaited.

    Not while one is used, which would save half of it.
    """
    try:
        yield from batches
    except (Exception, KeyboardInterrupt):
        try:
            save()
        except Exception as error:
            # What the user has to see is why it stopped.
            warnings.warn(
                f"what was described since the last commit is lost: {error}", stacklevel=2
            )
        raise


def _check_same(index: Path, described: GalleryModel, kind: Kind) -> None:
    found, found_kind = GalleryModel.read(index), Manifest.read(index).kind
    if not found.is_like(described):
        raise ValueError(
            f"the index {index} was built with {found.name} at {found.size} px (fingerprint "
            f"{found.fingerprint}, settings {found.settings}), you use {described.name} at "
            f"{described.size} px ({described.fingerprint}, settings {described.settings}). "
            "Descriptors of different models cannot be compared: use the same, or build another "
            "index."
        )
    if found_kind != kind:
        raise ValueError(f"the index {index} is of kind {found_kind}, you ask for {kind}.")


def _directed(
    paths: Sequence[Path], vectors: Tensor, problems: Problems
) -> tuple[list[Path], Tensor]:
    """Pictures whose descriptors have a direction; a blank one's may be zero."""
    usable = vectors.isfinite().all(1) & vectors.any(1)
    for path, good in zip(paths, usable.tolist(), strict=True):
        if not good:
            problems.add(path, ValueError("its descriptor is zero or not finite; is it blank?"))
    kept = [path for path, good in zip(paths, usable.tolist(), strict=True) if good]
    return kept, vectors[usable]
