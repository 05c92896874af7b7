"""Adapters on the Hugging Face hub, with a model card."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from sketchfusion_plugins.checkpoint import describe, save_adapters, writes_foundations
from sketchfusion_plugins.files import write_text
from sketchfusion_plugins.wrappers import find_encoder, unwrap

CARD_FILE = "README.md"


def push_adapters(
    module: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload SketchFusion adapters",
) -> str:
    """Upload a module's adapters to the Hugging Face hub, creating the repository if needed.

    A repository without a model card (``README.md``) gets one; a card that is there stays as it is.

    Args:
        module: A `SketchFusionEncoder`, a task, or another module with one encoder inside.
        repo_id: Repository, ``"name"`` or ``"owner/name"``.
        private: Whether a new repository is private; None for its owner's default.
        token: Access token; None for the one that is logged in.
        commit_message: Message of the commit.

    Returns:
        Address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_adapters(module, folder)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not api.file_exists(repo_id, CARD_FILE):
            write_text(_model_card(module, repo_id), Path(folder) / CARD_FILE)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message
        )
    return str(commit.commit_url)


def _model_card(module: nn.Module, repo_id: str) -> str:
    _, encoder = find_encoder(module)
    config, task = encoder.config, describe(module)["task"]
    inner: Any = unwrap(module)
    title, content = "SketchFusion adapters", "Injection and aggregation weights"
    code = (
        "from sketchfusion_plugins import SketchFusionEncoder\n\n"
        f'encoder = SketchFusionEncoder.from_pretrained("{repo_id}")\n'
    )
    if task is not None:
        title = f"SketchFusion for {task['name'].replace('_', ' ')}"
        head = getattr(inner, "head", None)
        content += "" if head is None else f" and the head (`{type(head).__name__}`)"
        content += f" of the task `{task['name']}`"
        content += ", which has no head," if head is None else ""
        code = (
            "from sketchfusion_plugins.tasks.load import load_task\n\n"
            f'task = load_task("{repo_id}")\n'
        )
    elif hasattr(inner, "config_entries") and inner.config_entries() and inner.num_classes:
        content += f", with a classifier of {inner.num_classes} classes,"
        code = (
            "import sketchfusion_plugins, timm\n\n"
            f'model = timm.create_model("hf-hub:{repo_id}", pretrained=True)\n'
        )
    included = "which are not included and keep"
    if writes_foundations(encoder):
        included = "whose weights were changed too and are included; they keep"
    return (
        "---\nlibrary_name: sketchfusion-plugins\n"
        "tags:\n- sketch\n- image-feature-extraction\n---\n\n"
        f"# {title}\n\n"
        f"{content} for `{config.diffusion.source}` and "
        f"`{config.semantic.source}`, {included} their own licences.\n\n"
        f"```python\n{code}```\n"
    )
