"""Adapters on the Hugging Face hub, with a model card."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from sketchfusion_plugins.checkpoint import find_encoder, save_adapters
from sketchfusion_plugins.files import write_text


def push_adapters(
    module: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload SketchFusion adapters",
) -> str:
    """Upload a module's adapters to the Hugging Face hub, creating the repository if needed.

    Returns:
        Address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_adapters(module, folder)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        write_text(_model_card(module, repo_id), Path(folder) / "README.md")
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message
        )
    return str(commit.commit_url)


def _model_card(module: nn.Module, repo_id: str) -> str:
    _, encoder = find_encoder(module)
    config = encoder.config
    return (
        "---\nlibrary_name: sketchfusion-plugins\n"
        "tags:\n- sketch\n- image-feature-extraction\n---\n\n"
        "# SketchFusion adapters\n\n"
        f"Injection and aggregation weights for `{config.diffusion.source}` and "
        f"`{config.semantic.source}`, which are not included and keep their own licences.\n\n"
        "```python\nfrom sketchfusion_plugins import SketchFusionEncoder\n\n"
        f'encoder = SketchFusionEncoder.from_pretrained("{repo_id}")\n```\n'
    )
