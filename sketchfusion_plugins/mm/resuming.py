"""Where a run goes on, that it goes on as it began, and that one which replaces it does not.

mmengine restores learning rate and schedule as they were saved: what was changed about them since
is without effect, and a schedule that has run down stays at its end. Other data would mix splits.
"""

from __future__ import annotations

import ast
import zlib
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook

from sketchfusion_plugins.adapter_file import BUNDLED
from sketchfusion_plugins.data.sources import source_name
from sketchfusion_plugins.data.task_data import TaskData, sum_of_files
from sketchfusion_plugins.inference.models import find_config
from sketchfusion_plugins.mm.safe_loading import (
    POINTER,
    last_checkpoint,
    numbered_checkpoints,
    read_checkpoint,
)

# What a resumed run has in common with the run that it resumes; parts of the config by their start.
KEPT = (
    "augment",
    "custom_hooks.EMAHook",
    "data.",
    "encoder.adapters",
    "encoder.changes.",
    "encoder.variant",
    "optim_wrapper.",
    "param_scheduler.",
    "processes",
    "randomness.seed",
    "task.",
    "train_cfg.max_iters",
    "train_dataloader.batch_size",
)
# A config may leave them out, and ones that older versions wrote do not.
DEFAULTS = {"augment": True, "data.seed": 0}
# Where a run's config keeps what its data came to.
FOUND = "data_found"


def find_start(config: Config) -> tuple[str | None, bool]:
    """Checkpoint to start from, if any, and whether to resume it or to load its weights alone.

    Args:
        config: A task's config, whose ``load_from`` or work directory names the checkpoint. Takes
            down the number of processes.

    Raises:
        CheckpointError: The checkpoint is damaged.
        ValueError: The config differs from that of the run to be resumed.
    """
    # A batch is the sum of theirs.
    config.processes = get_world_size()
    start, resume = config.get("load_from"), config.get("resume", False)
    if resume and start is None:
        found = last_checkpoint(config.work_dir)
        start, resume = (None, False) if found is None else (str(found), True)
    if resume and Path(start).is_file():
        _refuse_changes(config, Path(start))
    return start, resume


def describe_data(data: TaskData) -> dict[str, Any]:
    """What tells data from others, wherever they lie: what is trained on, and sums of names."""
    names = "\n".join(data.categories).encode()
    items = 0 if data.train is None else len(data.train)  # type: ignore[arg-type]
    found = {"items": items, "categories": f"{zlib.crc32(names):08x}"}
    files = sum_of_files(data.train)
    return found if files is None else {**found, "files": files}


def adapter_path(name: str) -> str:
    """The whole path of adapters that lie on this machine; any other name as it is."""
    path = Path(name).expanduser()
    return name if name in BUNDLED or not path.exists() else str(path.resolve())


def refuse_other_data(config: Config, checkpoint: Path) -> None:
    """Refuse to resume on data that have come to something else than those of the run.

    Raises:
        ValueError: They have other labels, other numbers of items, or other files.
    """
    had = dict((_read_meta(checkpoint) or {}).get(FOUND) or {})
    asked = dict(config.get(FOUND) or {})
    # A run of an earlier version does not say all.
    differing = [name for name in sorted(had) if had[name] != asked.get(name, had[name])]
    if differing:
        now, then = (
            ", ".join(f"{name} {values[name]}" for name in differing) for values in (asked, had)
        )
        raise ValueError(
            f"{checkpoint} cannot be resumed: what {config.data.source} has to train on is {now}; "
            f"that of the run was {then} (of categories a sum of their names, of files one of "
            "names and sizes). Put the data back as they were, or start a new run in another "
            "--work-dir."
        )


class ReplaceRunHook(Hook):  # type: ignore[misc]
    """Deletes an earlier run's checkpoints once this run's first batch is there.

    Until then what can fail may, and the earlier run is whole. Later, a run that was killed before
    its first checkpoint would be resumed from the earlier one's.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.replaced = False

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Delete them, before the first iteration."""
        if not self.replaced and is_main_process():
            for path in (*numbered_checkpoints(runner.work_dir), Path(runner.work_dir) / POINTER):
                path.unlink(missing_ok=True)
        self.replaced = True


def _refuse_changes(config: Config, checkpoint: Path) -> None:
    found = _read_meta(checkpoint)
    if found is None:
        return
    # As text, in which mmengine writes types and tuples its own way, like the checkpoint's.
    had, asked = (DEFAULTS | _flatten(values) for values in (found, _read(config.pretty_text)))
    had.setdefault("processes", config.processes)
    began, begins = (values.get("encoder.adapters") for values in (had, asked))
    if isinstance(began, str) and isinstance(begins, str):
        begins = adapter_path(begins)
        # They may have moved with the run, whose checkpoint holds what it trained of them.
        is_gone = Path(began).is_absolute() and not Path(began).exists()
        had["encoder.adapters"] = begins if is_gone else adapter_path(began)
        asked["encoder.adapters"] = begins
    variants = (values.get("encoder.variant") for values in (had, asked))
    if _are_alike(*variants):
        had["encoder.variant"] = asked["encoder.variant"]
    if FOUND in found:
        # Their folder may have moved: what they came to is compared once they are read.
        for values in (had, asked):
            values["data.source"] = source_name(str(values.get("data.source")))
    # Checkpoints of a run with an average hold that one where the weights were.
    for values, hooks in ((had, found), (asked, _read(config.pretty_text))):
        named = (hooks.get(key) or {} for key in ("custom_hooks", "default_hooks"))
        values["custom_hooks.EMAHook"] = _averages([h for own in named for h in own.values()])
    changed = [
        f"{key} {asked.get(key)!r}, the run has {had.get(key)!r}"
        for key in sorted(set(had) | set(asked))
        if key.startswith(KEPT) and had.get(key) != asked.get(key)
    ]
    if changed:
        adapters = Path(config.work_dir) / "adapters"
        raise ValueError(
            f"{checkpoint} cannot be resumed with other settings than its run's: asked were "
            f"{'; '.join(changed)}. Resume with the run's settings; or start a new run from its "
            f"adapters, which it writes when it ends: --model {adapters} --work-dir runs/longer"
        )


def _are_alike(began: Any, begins: Any) -> bool:
    """Whether two names, of timm or of presets, stand for the same configuration."""
    try:
        return find_config(str(began)) == find_config(str(begins))
    except ValueError:
        # An earlier version's.
        return False


def _averages(hooks: list[Any]) -> str | None:
    """Those that average weights, in whatever order they stand; None if there are none."""
    told = (str(dict(sorted(_flatten(hook).items()))) for hook in hooks if isinstance(hook, dict))
    return ", ".join(sorted(hook for hook in told if "EMAHook" in hook)) or None


def _read_meta(checkpoint: Path) -> dict[str, Any] | None:
    """Config of the run that wrote a checkpoint; None if it does not say."""
    text = read_checkpoint(checkpoint).get("meta", {}).get("cfg")
    return None if text is None else _read(text)


def _read(text: str) -> dict[str, Any]:
    """Values of a config that mmengine wrote down; mmengine's own reader would execute it."""
    return {
        ast.unparse(statement.targets[0]): _value(statement.value)
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign)
    }


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "dict":
        inner = _value(node.args[0]) if node.args else {}
        return inner | {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        keys = ("None" if key is None else str(_value(key)) for key in node.keys)
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.List | ast.Tuple):
        return {str(number): _value(item) for number, item in enumerate(node.elts)}
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _flatten(values: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Values by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{start}{key}.")
        else:
            flat[start + key] = value
    return flat
