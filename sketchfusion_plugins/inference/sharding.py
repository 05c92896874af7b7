"""Describing pictures in several processes: each takes its share, the first one collects.

Launch a command with ``torchrun`` or ``accelerate launch`` and its work is shared out:

    torchrun --nproc-per-node 8 -m sketchfusion_plugins features photos --model ... --out ...

Every process keeps what it has done in a file beside the result, so nothing is lost with a process;
launched again, with as many processes or fewer, the command goes on. Where pictures were named by
relative paths, that is refused in another working folder. Processes on several machines need a
folder that all of them share.
"""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from sketchfusion_plugins.inference.answers import Model, describe_files
from sketchfusion_plugins.inference.descriptor_files import DescriptorWriter, known_paths
from sketchfusion_plugins.problems import Problems

# A process that died is noticed at once. Who is done waits for the slowest, which of a job of days
# may be a day behind.
LONGEST_WAIT = timedelta(days=30)


@dataclass(frozen=True)
class ProcessReport:
    """What a process has done.

    Attributes:
        part: Name of its file.
        rows: Pictures in it, those of former launches included.
        skipped: A line about every file of its share that is no picture.
    """

    part: str
    rows: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Ranks:
    """Who of how many processes this one is; a context manager that connects them.

    Attributes:
        rank: This process, from 0.
        world_size: All processes, on all machines.

    Raises:
        ValueError: ``rank`` is not one of ``world_size``.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"expected a rank of 0 to {self.world_size - 1}, got {self.rank}. The launcher "
                "sets RANK and WORLD_SIZE; unset both to run in one process."
            )

    @classmethod
    def from_environment(cls) -> Ranks:
        """As ``torchrun`` and ``accelerate launch`` say; alone without them.

        Raises:
            ValueError: RANK or WORLD_SIZE is no number, or they do not fit.
        """
        rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world_size.isdecimal()):
            raise ValueError(
                f"expected numbers in RANK and WORLD_SIZE, got {rank!r} and {world_size!r}."
            )
        return cls(int(rank), int(world_size))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that collects, writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when every process has come this far.

        Raises:
            RuntimeError: One has ended, or has not come in `LONGEST_WAIT`.
        """
        if self.world_size > 1:
            torch.distributed.barrier()

    def gather(self, report: ProcessReport) -> list[ProcessReport]:
        """Everybody's report, by rank, when every process has come this far.

        Raises:
            RuntimeError: See `wait`.
        """
        reports = [report] * self.world_size
        if self.world_size > 1:
            torch.distributed.all_gather_object(reports, report)
        return reports

    def __enter__(self) -> Ranks:
        if self.world_size > 1:
            # Nothing is computed together: the connections only tell who is done or dead.
            torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.world_size > 1:
            torch.distributed.destroy_process_group()


def describe_together(
    ranks: Ranks,
    model: Model,
    paths: Sequence[Path],
    size: int,
    problems: Problems,
    *,
    result: Path,
    fingerprint: str,
    batch_size: int = 16,
    progress: bool = True,
) -> Generator[tuple[list[Path], Tensor]]:
    """`describe_files` by all processes.

    Batches are dealt out whole, so that their composition, and with it every bit of a descriptor,
    does not depend on the number of processes.

    Args:
        ranks: The processes.
        model: The model, the same in all of them.
        paths: Files, the same in all of them.
        size: Side, in pixels, of the square that pictures are padded to.
        problems: Collects files that are no pictures: in the end the first process has all, others
            have none of their share.
        result: What the descriptors are for; processes keep theirs in files beside it until
            `forget_parts`.
        fingerprint: Of the model and the size: parts of others are refused.
        batch_size: Pictures per step.
        progress: Show the first process's progress.

    Yields:
        In the first process everything in the order of ``paths``, batch by batch; in others
        nothing.

    Raises:
        OSError: A part cannot be read or written, or the first process does not see what others
            wrote.
        RuntimeError: Another process has died.
        ValueError: A part is of another model, or holds paths relative to another folder.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "progress": progress and ranks.is_first,
    }
    parts = _parts(result)
    if ranks.world_size == 1 and not parts:
        yield from describe_files(model, paths, size, problems, **options)
        return
    # Launched with another number of processes, a share may lie in any of the parts.
    known = frozenset().union(*(known_paths(part, fingerprint) for part in parts))
    ranks.wait()  # Nobody writes while another still reads.
    share = _share(ranks, paths, known, batch_size)
    part = result.with_name(f"{result.name}.rank-{ranks.rank}.jsonl")
    skipped_before = len(problems.found)
    with DescriptorWriter(part, fingerprint) as writer:
        rows = len(writer.known)
        for some in filter(None, share):
            for readable, descriptors in describe_files(model, some, size, problems, **options):
                writer.add(readable, descriptors)
                rows += len(readable)
    skipped = tuple(problems.found[skipped_before:])
    reports = ranks.gather(ProcessReport(part.name, rows, skipped))
    del problems.found[skipped_before:]
    if ranks.is_first:
        problems.found += chain.from_iterable(report.skipped for report in reports)
        yield from _collect(result, reports, paths, batch_size)


def forget_parts(ranks: Ranks, result: Path) -> None:
    """Remove the processes' files once the result is safe."""
    if ranks.is_first:
        for part in _parts(result):
            part.unlink()
    ranks.wait()


def _share(
    ranks: Ranks, paths: Sequence[Path], known: Collection[str], batch_size: int
) -> tuple[list[Path], list[Path]]:
    """This process's part of what is not known yet, evenly dealt however much others had done.

    Returns:
        Whole batches, and apart from them, which they would shift, the rest of others: pictures
        that cannot be read, or that a killed process had not written yet.
    """
    left: list[tuple[bool, list[Path]]] = []
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        rest = [path for path in batch if str(path) not in known]
        if rest:
            left.append((len(rest) < len(batch), rest))
    mine = left[ranks.rank :: ranks.world_size]
    whole = chain.from_iterable(rest for partly, rest in mine if not partly)
    rests = chain.from_iterable(rest for partly, rest in mine if partly)
    return list(whole), list(rests)


def _parts(result: Path) -> list[Path]:
    return sorted(result.parent.glob(f"{glob.escape(result.name)}.rank-*.jsonl"))


def _collect(
    result: Path, reports: Sequence[ProcessReport], paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[list[Path], Tensor]]:
    """Descriptors of the parts in the order of ``paths``."""
    places: dict[str, tuple[int, int]] = {}
    rows: Counter[str] = Counter()
    files = [part.open("rb") for part in _parts(result)]
    try:
        for number, file in enumerate(files):
            offset = 0
            for line in file:
                if not line.endswith(b"\n"):
                    break  # of a process that was killed
                places[json.loads(line)["path"]] = (number, offset)
                offset += len(line)
                rows[Path(file.name).name] += 1
        _check_complete(result, reports, rows, sum(str(path) not in places for path in paths))
        for start in range(0, len(paths), batch_size):
            present = [path for path in paths[start : start + batch_size] if str(path) in places]
            found = []
            for path in present:
                number, offset = places[str(path)]
                files[number].seek(offset)
                found.append(json.loads(files[number].readline())["descriptor"])
            if found:
                yield present, torch.tensor(found)
    finally:
        for file in files:
            file.close()


def _check_complete(
    result: Path, reports: Sequence[ProcessReport], rows: Mapping[str, int], absent: int
) -> None:
    """Refuse to take parts for all there is when machines keep theirs in folders of their own."""
    lacking = [report for report in reports if rows.get(report.part, 0) < report.rows]
    lost = absent - sum(len(report.skipped) for report in reports)
    if not lacking and lost <= 0:
        return
    told = [f"{r.part} ({rows.get(r.part, 0)} of {r.rows} pictures)" for r in lacking]
    raise OSError(
        f"{result.absolute().parent} lacks what other processes described: "
        f"{', '.join(told) or f'{lost} pictures'}. Nothing was deleted. Give --out in a folder "
        "that all machines share, copy the files *.rank-*.jsonl of all machines there to keep what "
        "was done, and launch the command again."
    )
