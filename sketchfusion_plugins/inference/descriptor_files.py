"""Files of descriptors: JSON lines that grow and resume; Parquet, safetensors written at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from sketchfusion_plugins.files import replacing, write_safetensors

SUFFIXES = (".jsonl", ".parquet", ".safetensors")


class DescriptorWriter:
    """Writes descriptors with their pictures' paths; a context manager.

    A ``.jsonl`` file gets a line ``{"path", "model", "descriptor"}`` at once for every picture; an
    existing one is continued. ``.parquet`` (columns ``path`` and ``descriptor``) and
    ``.safetensors`` (``descriptors`` [N, D], with ``paths`` and ``model`` in the header) are
    written atomically when the block ends without error, and replace what was there.

    Args:
        path: File to write.
        model: Fingerprint of the model that makes the descriptors.

    Raises:
        ValueError: Unknown suffix, or the file holds lines of another model, or none of ours.
        ModuleNotFoundError: pyarrow is needed and not installed.
        OSError: The file cannot be written.

    Attributes:
        known: Paths that are in the file already.
    """

    def __init__(self, path: str | Path, model: str) -> None:
        self.path, self.model = Path(path), model
        self.suffix = self.path.suffix.lower()
        check_target(self.path)
        self.known: frozenset[str] = frozenset()
        if self.suffix == ".jsonl" and self.path.exists():
            self.known = _read_lines(self.path, model)
        self._paths: list[str] = []
        self._descriptors: list[Tensor] = []

    def add(self, paths: Sequence[str | Path], descriptors: Tensor) -> None:
        """Add descriptors ``[B, D]`` of B pictures.

        Raises:
            OSError: The disk is full.
        """
        descriptors = descriptors.detach().cpu().float()
        names = [str(path) for path in paths]
        if self.suffix != ".jsonl":
            self._paths += names
            self._descriptors.append(descriptors)
            return
        lines = [
            json.dumps({"path": name, "model": self.model, "descriptor": values})
            for name, values in zip(names, descriptors.tolist(), strict=True)
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))

    def __enter__(self) -> DescriptorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None or not self._paths:
            return
        import torch

        descriptors = torch.cat(self._descriptors)
        if self.suffix == ".safetensors":
            header = {"paths": json.dumps(self._paths), "model": self.model}
            write_safetensors({"descriptors": descriptors}, self.path, header)
        else:
            _write_parquet(self.path, self._paths, descriptors, self.model)


def check_target(path: Path) -> None:
    """Refuse what cannot be written before anything is computed.

    Raises:
        ValueError: Unknown suffix.
        ModuleNotFoundError: pyarrow is needed and not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"cannot write {path.name!r}; valid suffixes: {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        _require_pyarrow()


def _write_parquet(path: Path, names: Sequence[str], descriptors: Tensor, model: str) -> None:
    arrow = _require_pyarrow()
    from pyarrow import parquet

    values = arrow.array(descriptors.flatten().numpy())
    table = arrow.table(
        {
            "path": arrow.array(names, arrow.string()),
            "descriptor": arrow.FixedSizeListArray.from_arrays(values, descriptors.shape[1]),
        }
    )
    with replacing(path) as temporary:
        parquet.write_table(table.replace_schema_metadata({"model": model}), temporary)


def _require_pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ModuleNotFoundError(
            'Parquet needs pyarrow: pip install "sketchfusion-plugins[parquet]". '
            "Files ending in .jsonl or .safetensors need nothing more."
        ) from error
    return pyarrow


def _read_lines(path: Path, model: str) -> frozenset[str]:
    """Paths in a file, whose last line is cut off if a crash left it unfinished."""
    known = set()
    with path.open("rb+") as file:
        end = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                file.truncate(end)
                break
            end += len(line)
            try:
                row = json.loads(line)
                name, found = row["path"], row["model"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no descriptor of ours: {error!r}. Choose another "
                    "file."
                ) from error
            if found != model:
                raise ValueError(
                    f"{path}, line {number} was made by the model {found}, this is {model}. "
                    "Choose another file, or delete it."
                )
            known.add(str(name))
    return frozenset(known)
