"""Processes that are killed at chosen or random moments, for tests and the scripts they run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Killer:
    """Kills this process at its n-th change to a folder; an audit hook."""

    def __init__(self, folder: Path, changes: int) -> None:
        self.folder, self.left = str(folder), changes

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.remove", "os.chmod", "os.mkdir", "os.rmdir") or (
            event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and self.folder in str(arguments[0]):
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def run_and_kill(
    work: Callable[[], None], folder: Path, *, change: int | None = None, after: float | None = None
) -> bool:
    """Do work in a forked process; whether it was killed.

    Args:
        work: What to do.
        folder: Folder that it changes.
        change: Kill it at this change to the folder.
        after: Kill it after so many seconds.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            # Quiet: what matters is what is in the folder afterwards.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
            if change is not None:
                sys.addaudithook(Killer(folder, change))
            work()
            status = 0
        except BaseException as error:
            print(f"the killed work failed: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed after a kill"
    return False


def survive(
    work: Callable[[Path], None],
    check: Callable[[Path], None],
    result: Callable[[Path], Any],
    folder: Path,
    kills: int,
    seed: int,
) -> dict[str, int]:
    """Kill work over and over, let it go on, and compare its end with that of undisturbed work.

    Half of the kills are at a random change to the folder, which hits the moments between two
    files; half at a random time, which hits the middle of a write.

    Args:
        work: Work in a folder; started again it goes on.
        check: Raises unless what is in the folder is whole, at any time.
        result: What is compared at the end.
        folder: Folder for everything.
        kills: Kills wanted.
        seed: Seed of the moments.

    Returns:
        Numbers of ``kills`` and of works that were ``finished`` in spite of some.
    """
    generator = random.Random(seed)
    whole = folder / "undisturbed"
    started = time.monotonic()
    assert not run_and_kill(lambda: work(whole), whole)
    seconds = time.monotonic() - started
    changes = _count_changes(work, folder / "counted")
    expected = result(whole)
    done = finished = 0
    while done < kills:
        here = folder / f"round{finished}"
        in_round, killed = 0, True
        while killed:
            if in_round == 8 or done == kills:
                killed = run_and_kill(lambda: work(here), here)  # noqa: B023
            elif generator.random() < 0.5:
                change = generator.randrange(changes)
                killed = run_and_kill(lambda: work(here), here, change=change)  # noqa: B023
            else:
                after = generator.uniform(0, seconds)
                killed = run_and_kill(lambda: work(here), here, after=after)  # noqa: B023
            done += killed
            in_round += killed
            check(here)
        _compare(here, result, expected)
        finished += 1
    return {"kills": done, "finished": finished}


def survive_each_change(
    work: Callable[[Path], None],
    check: Callable[[Path], None],
    result: Callable[[Path], Any],
    folder: Path,
) -> dict[str, int]:
    """Kill work at its first change to a folder, in the next at its second; see `survive`.

    Returns:
        Number of ``kills``, one for each change.
    """
    whole = folder / "undisturbed"
    assert not run_and_kill(lambda: work(whole), whole)
    expected = result(whole)
    changes = _count_changes(work, folder / "counted")
    for change in range(changes):
        here = folder / f"change{change}"
        assert run_and_kill(lambda: work(here), here, change=change)  # noqa: B023
        check(here)
        assert not run_and_kill(lambda: work(here), here)  # noqa: B023
        check(here)
        _compare(here, result, expected)
        shutil.rmtree(here)
    return {"kills": changes}


def _compare(folder: Path, result: Callable[[Path], Any], expected: Any) -> None:
    assert result(folder) == expected, "killed work ended otherwise than undisturbed work"
    left = [str(path) for path in folder.rglob("*") if "unfinished" in path.name]
    assert not left, f"left behind: {left}"


def _count_changes(work: Callable[[Path], None], folder: Path) -> int:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        counter = Killer(folder, sys.maxsize)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
        sys.addaudithook(counter)
        work(folder)
        os.write(writer, str(sys.maxsize - counter.left).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        changes = int(pipe.read())
    os.waitpid(child, 0)
    return changes
