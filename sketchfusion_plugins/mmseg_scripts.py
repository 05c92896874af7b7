"""Our configs and mmseg's own scripts, found where they are installed.

Run as a module, it joins a process group on CPUs and then runs a script in it, unmodified:

    python -m sketchfusion_plugins.mmseg_scripts SCRIPT ARGUMENTS
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Literal

Tool = Literal["train", "test"]

SUFFIXES = (".py", ".json", ".yaml", ".yml")

INSTALL = 'pip install "sketchfusion-plugins[mmseg]"'
INSTALL_UPSTREAM = 'pip install "sketchfusion-plugins[mmseg-upstream]"'

# Without it mmengine's runner names a CUDA device, which data parallelism on CPUs refuses.
CPU_WRAPPER = (
    "model_wrapper_cfg.type=MMDistributedDataParallel",
    "model_wrapper_cfg.device_ids=None",
    "model_wrapper_cfg.broadcast_buffers=False",
)


def list_configs() -> dict[str, Path]:
    """Names of the experiment configs, with their files."""
    spec = find_spec("mmseg_configs")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    # Of two installations Python imports the first one's files: so do we.
    folders.reverse()
    return {path.stem: path for folder in folders for path in sorted(Path(folder).glob("*.py"))}


def config_path(name: str) -> Path:
    """File of a config by its name.

    Raises:
        ValueError: Unknown name; the message lists the valid ones.
    """
    configs = list_configs()
    if name not in configs:
        raise ValueError(f"no config {name!r}; choose one of {', '.join(configs)}.")
    return configs[name]


def config_file(name: str) -> Path:
    """File of a config by its name, or by its path, which ends as mmengine's configs do.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Unknown name; the message lists the valid ones. Or an option in its place.
    """
    if name.startswith("-"):
        raise ValueError(f"got {name} before the config. Name the config first, then options.")
    if not name.endswith(SUFFIXES):
        return config_path(name)
    if not Path(name).is_file():
        names = ", ".join(list_configs())
        raise FileNotFoundError(f"no config file at {name}. Give a path, or a name: {names}.")
    return Path(name)


def run_tool(tool: Tool, name: str, arguments: Sequence[str]) -> int:
    """Run mmseg's own ``tools/train.py`` or ``tools/test.py`` on a config.

    With ``--launcher pytorch`` it is to be run by torchrun, in every process; where there is no GPU
    the processes then work in data parallel on CPUs (gloo).

    Args:
        tool: Which of the two.
        name: Name or path of the config.
        arguments: The script's further arguments; those of a test begin with the checkpoint. What
            a test writes goes to the folder ``test`` beside it, unless they name another: mmseg's
            script writes its config down, options included, and where training did so further
            commands would take it for the trained one.

    Returns:
        The script's exit status.

    Raises:
        FileNotFoundError: No such config file.
        ModuleNotFoundError: mmseg is not installed, or without its scripts.
        ValueError: Unknown config name, or ``--launcher pytorch`` outside torchrun.
    """
    config = config_file(name)
    spec = find_spec("mmseg")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"mm-{tool} needs mmsegmentation: {INSTALL}")
    script = Path(spec.origin).parent / ".mim" / "tools" / f"{tool}.py"
    if not script.is_file():
        raise ModuleNotFoundError(
            f"expected mmsegmentation's script at {script}; install it as a wheel: {INSTALL}"
        )
    if tool == "test" and not any(_names_work_dir(argument) for argument in arguments):
        arguments = [*arguments, "--work-dir", str(_test_folder(config, arguments[0]))]
    command = [str(script), str(config), *arguments]
    if _launched_by_pytorch(arguments):
        if "RANK" not in os.environ:
            raise ValueError(
                "--launcher pytorch expects torchrun's environment, got none. Run: torchrun "
                f"--nproc-per-node 2 -m sketchfusion_plugins mm-{tool} {name} --launcher pytorch"
            )
        import torch

        if torch.backends.mps.is_available():
            raise ValueError(
                "--launcher pytorch on Apple's mps: torch has no communication between processes "
                f"there. Run: sketchfusion mm-{tool} {name}"
            )
        if not torch.accelerator.is_available():
            module = ["-m", "sketchfusion_plugins.mmseg_scripts"]
            command = [*module, *command, "--cfg-options", *CPU_WRAPPER]
    return subprocess.run([sys.executable, *command]).returncode


def run_on_cpus(script: str, arguments: Sequence[str]) -> None:
    """Run a script inside the process group that torchrun's environment describes.

    mmengine joins no group where there is one already; its own way there demands CUDA.
    """
    from torch import distributed

    distributed.init_process_group("gloo")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
    distributed.destroy_process_group()


def _names_work_dir(argument: str) -> bool:
    """Whether it is the script's ``--work-dir``, which may be cut short, or the config's entry."""
    option = argument.partition("=")[0]
    if option.startswith("--w"):
        return "--work-dir".startswith(option)
    return argument.removeprefix("--cfg-options=").startswith("work_dir=")


def _test_folder(config: Path, checkpoint: str) -> Path:
    folder = Path(checkpoint).parent
    if "://" in checkpoint or not os.access(folder, os.W_OK):
        # Where mmengine has what a config says nothing of.
        return Path("work_dirs", config.stem, "test")
    return folder / "test"


def _launched_by_pytorch(arguments: Sequence[str]) -> bool:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return ("--launcher", "pytorch") in pairwise(words)


if __name__ == "__main__":
    run_on_cpus(sys.argv[1], sys.argv[2:])
