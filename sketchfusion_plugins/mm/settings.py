"""Settings merged into a task's config by dotted keys: that there are such, and their types."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mmengine.config import Config
from mmengine.registry import HOOKS, LOOPS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS, Registry
from mmengine.runner import LogProcessor

from sketchfusion_plugins.cache import FeatureStore
from sketchfusion_plugins.data.sources import load_task_data
from sketchfusion_plugins.evaluation.judge import Judge
from sketchfusion_plugins.losses.correspondence import CorrespondenceLossConfig
from sketchfusion_plugins.losses.query import QueryLossConfig
from sketchfusion_plugins.tasks.load import TASKS

Hints = dict[str, Any]

# What a config may have and ours leave out, by where it stands.
OPTIONAL: dict[str, Hints] = {
    "": {
        "work_dir": str,
        "load_from": str | None,
        "resume": bool,
        "overwrite": bool,
        "launcher": Literal["none", "pytorch", "slurm"],
        "visualizer": Mapping | None,
    },
    "encoder": {
        "variant": str,
        "adapters": str,
        "changes": Mapping,
        "with_cp": bool,
        "cache": Mapping | None,
    },
    "encoder.cache": {"keep": Literal["foundations", "results"]},
    "env_cfg": {"resource_limit": int},
    # mmengine's annotation knows less of it than mmengine.
    "optim_wrapper": {"loss_scale": Any},
    "optim_wrapper.clip_grad": {"max_norm": float, "norm_type": float, "error_if_nonfinite": bool},
    "optim_wrapper.paramwise_cfg": {
        "layer_decay_rate": float,
        "bias_lr_mult": float,
        "bypass_duplicate": bool,
    },
    "randomness": {"diff_rank_seed": bool, "deterministic": bool},
    # Data are drawn without end.
    "train_cfg": {"type": Literal["IterBasedTrainLoop"]},
}
# Parts whose keys are free, or are held against what there is where they are read. Custom hooks may
# pass on what they do not know themselves.
FREE = (
    "custom_hooks*",
    "encoder.changes*",
    "env_cfg.dist_cfg*",
    "env_cfg.mp_cfg*",
    "optim_wrapper.paramwise_cfg.custom_keys*",
    "visualizer*",
)
REGISTRIES: dict[str, Registry] = {
    "default_hooks.*": HOOKS,
    "optim_wrapper": OPTIM_WRAPPERS,
    "optim_wrapper.optimizer": OPTIMIZERS,
    "param_scheduler.*": PARAM_SCHEDULERS,
    "train_cfg": LOOPS,
}
# Of tasks whose loss has options.
LOSSES: dict[str, Callable[..., Any]] = {
    "correspondence": CorrespondenceLossConfig.__init__,
    "query_segmentation": QueryLossConfig.__init__,
}
# Arguments that do not come from a config.
GIVEN = {"self", "dataloader", "device", "encoder", "evaluator", "optimizer", "params", "runner"}
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
WORDS |= {NoneType: "null", list: "a list", tuple: "a list", dict: "a mapping"}
WORDS |= {Mapping: "a mapping", Sequence: "a list"}


def merge_settings(config: Config, settings: Mapping[str, Any]) -> None:
    """Merge settings into a task's config, each held against what the config can have there.

    Args:
        config: A task's config; it changes.
        settings: Values by dotted keys such as ``"optim_wrapper.optimizer.lr"``; numbers stand for
            places in lists.

    Raises:
        ValueError: A key that the config does not have, or a value of another type than it takes.
    """
    # What a part can have depends on its type.
    for key, value in sorted(_leaves(settings), key=lambda leaf: not leaf[0].endswith(".type")):
        _check(config, key, value)
        config.merge_from_dict({key: value})


def _check(config: Config, key: str, value: Any) -> None:
    *path, name = key.split(".")
    held: Any = config
    for depth, part in enumerate(path):
        _hint(config, held, path[:depth], part)
        held = _inner(held, part)
    hint = _hint(config, held, path, name)
    if not _fits(value, hint):
        raise ValueError(f"{key} takes {_in_words(hint)}, got {value!r}.")
    if name == "type" and (registry := _registry(path)) and registry.get(value) is None:
        names = list(registry.module_dict)
        raise ValueError(f"{key}: there is no {value!r}; {_near(value, names)}")


def _leaves(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings without mappings, but for those that are free or that replace a part."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value and "_delete_" not in value and not _is_free(key):
            yield from _leaves({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            yield key, value


def _is_free(place: str) -> bool:
    return any(fnmatch(place, pattern) for pattern in FREE)


def _hint(config: Config, held: Any, path: Sequence[str], name: str) -> Any:
    """Type of what stands under a name in a part of the config."""
    place = ".".join(path)
    if not isinstance(held, Mapping | Config | list):
        raise ValueError(f"{place} is {held!r} and has no {name!r} in it.")
    if _is_free(place) and not isinstance(held, list):
        return Any
    known = _known(config, held, place)
    if name not in known:
        where = place or "the config"
        raise ValueError(f"{where} has no {name!r}; {_near(name, list(known))}")
    return known[name]


def _known(config: Config, held: Any, place: str) -> Hints:
    """Types by name of what a part of the config can have."""
    if isinstance(held, list):
        return {str(number): _type_of(item) for number, item in enumerate(held)}
    known = {str(key): _type_of(item) for key, item in held.items()}
    task = config.task.name
    readers: dict[str, Callable[..., Any]] = {
        "data": load_task_data,
        "encoder.cache": FeatureStore.__init__,
        "judge": Judge.__init__,
        "log_processor": LogProcessor.__init__,
    }
    if task in TASKS:
        readers["task.settings"] = TASKS[task].__init__
    if task in LOSSES:
        readers["task.settings.loss"] = LOSSES[task]
    taken = _arguments(readers[place]) if place in readers else {}
    if place == "data":
        del taken["task"]
    registry = _registry(place.split("."))
    if registry is not None and isinstance(kind := held.get("type"), str):
        found = registry.get(kind)
        for owner in reversed(inspect.getmro(found) if inspect.isclass(found) else ()):
            if "__init__" in vars(owner):
                taken |= _arguments(vars(owner)["__init__"])
    # Where nothing is annotated, what a config has shows the type.
    known |= {name: hint for name, hint in taken.items() if hint is not Any or name not in known}
    return known | OPTIONAL.get(place, {})


def _registry(path: Sequence[str]) -> Registry | None:
    place = ".".join(path)
    return next((found for name, found in REGISTRIES.items() if fnmatch(place, name)), None)


def _arguments(function: Callable[..., Any]) -> Hints:
    try:
        hints = get_type_hints(function)
    # Names that are imported for type checkers alone.
    except NameError:
        hints = {}
    return {
        name: hints.get(name, Any)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in GIVEN
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def _inner(held: Any, name: str) -> Any:
    return held[int(name)] if isinstance(held, list) else held.get(name, {})


def _type_of(value: Any) -> Any:
    if value is None:
        return Any
    return Mapping if isinstance(value, Mapping) else type(value)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    # To Python booleans are numbers, and texts are sequences.
    if isinstance(value, bool | str):
        return type(value) is kind
    if kind is float:
        return isinstance(value, int | float)
    if issubclass(kind, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, kind)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    several = get_origin(hint) in (Union, UnionType)
    kinds = [get_origin(one) or one for one in (get_args(hint) if several else (hint,))]
    # No one types a tensor.
    return " or ".join(WORDS[kind] for kind in kinds if kind in WORDS) or str(hint)


def _near(name: str, names: Sequence[str]) -> str:
    """What was perhaps meant, else everything that there is."""
    near = get_close_matches(name, names, cutoff=0.7)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(names)}."
