"""mmengine's checkpoints read without running code that they may hold.

Beside tensors and plain values they hold the log's history, which `torch.load` refuses unless its
classes are named as safe. OpenMMLab's mmengine then cannot resume at all, and its fork falls back
to unpickling whatever the file holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from sketchfusion_plugins.adapter_file import CheckpointError

# Names the checkpoint of a work directory that was written last.
POINTER = "last_checkpoint"


def allow_history() -> None:
    """Name the log's classes as safe for this process, so that resuming and testing work.

    torch offers a context for it too, but leaving that forgets what was named before.
    """
    torch.serialization.add_safe_globals(safe_globals())


def safe_globals() -> list[Any]:
    """What a log's history is made of: itself, numpy's arrays and numbers."""
    array = np.zeros(1)
    reconstruct, scalar = array.__reduce__()[0], array[0].__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in (bool, np.int32, np.int64, np.float32, np.float64)}
    history = (_history_attribute, "builtins.getattr")
    return [HistoryBuffer, history, np.ndarray, np.dtype, reconstruct, scalar, *dtypes]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint that mmengine wrote, on the CPU.

    Raises:
        CheckpointError: Damaged, or it holds more than tensors, plain values and mmengine's log.
        FileNotFoundError: No such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}. Give a .pth file that training wrote.")
    allow_history()
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        reason = " ".join(str(error).split())[-300:]
        raise CheckpointError(
            f"{path} is damaged, or holds objects that are not unpickled for safety: {reason}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is no checkpoint of mmengine's: it has no 'state_dict'.")
    return checkpoint


def numbered_checkpoints(work_dir: str | Path) -> list[Path]:
    """Checkpoints of a work directory by mmengine's names, the newest first."""
    numbered = [
        (int(found[1]), path)
        for path in Path(work_dir).glob("*_*.pth")
        if (found := re.fullmatch(r"(?:iter|epoch)_(\d+)\.pth", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def last_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint to resume a work directory from; None if there is none.

    mmengine writes neither its checkpoints nor ``last_checkpoint``, which names one, atomically: a
    kill leaves the one cut off or the other empty. Then the newest whole checkpoint counts.

    Raises:
        CheckpointError: A checkpoint was finished, and every one there is damaged.
    """
    folder = Path(work_dir)
    pointer = folder / POINTER
    name = pointer.read_text().strip() if pointer.is_file() else ""
    candidates = numbered_checkpoints(folder)
    # The name is absolute: in a copy of a work directory it is still the other's.
    places = (folder / Path(name.replace("\\", "/")).name, Path(name))
    candidates[:0] = [place for place in places if name and place.is_file()][:1]
    errors = []
    for path in candidates:
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            errors.append(error)
            continue
        return path
    # Before the first name is written no checkpoint was finished, and none is lost.
    if errors and name:
        raise errors[0]
    return None


def _history_attribute(owner: Any, name: str) -> Any:
    # A history pickles references to its class's methods as calls of getattr.
    if owner is not HistoryBuffer or name.startswith("_"):
        raise UnpicklingError(f"refused to read attribute {name!r} of {owner!r}.")
    return getattr(owner, name)
