"""A task trained in one process of several; run by torchrun as a script, it imports no test.

torchrun --nproc-per-node 2 train_task_process.py CONFIG_FILE FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sketchfusion_plugins.mm.train_task import train_task


@HOOKS.register_module()
class Watch(Hook):  # type: ignore[misc]
    """Notes what this process saw."""

    seen: ClassVar[list[str]] = []
    wrapper: ClassVar[dict[str, Any]] = {}

    def before_train(self, runner: Any) -> None:
        self.wrapper["type"] = type(runner.model).__name__
        self.wrapper["find_unused"] = runner.model.find_unused_parameters

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.seen.extend(data_batch["key"])


def main(config_file: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    task, row = train_task(Config(json.loads(config_file.read_text())))
    trained = {n: p.detach() for n, p in task.named_parameters() if p.requires_grad}
    rank = os.environ["RANK"]
    torch.save(trained, folder / f"rank{rank}.pt")
    values = {name: measured.value for name, measured in row.items()}
    note = {"seen": Watch.seen, "row": values, **Watch.wrapper}
    (folder / f"rank{rank}.json").write_text(json.dumps(note))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
