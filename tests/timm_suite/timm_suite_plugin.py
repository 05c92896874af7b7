"""Pytest plugin that points timm's own ``tests/test_models.py`` at the SketchFusion models.

Use with ``pytest -p timm_suite_plugin TIMM_SOURCE/tests/test_models.py``. timm's file is not
changed; what the plugin does is all here:

* ``timm.list_models`` lists our models alone. timm selects models for its ``forward_intermediates``
  tests by its own module names, so a filter by module is dropped.
* Tests that ask for a gradient in every parameter get ``freeze_foundations=False``: frozen
  parameters have none by design.
* Tests of ours that are left out, with the reason, are in ``EXCLUDED``. timm's tests of other
  models by name are deselected.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import timm

import sketchfusion_plugins  # noqa: F401  (registers the models)

MODELS = os.environ.get("SKETCHFUSION_TIMM_MODELS", "sketchfusion_*")

GRADIENT_TESTS = ("test_model_backward", "test_prune_intermediate_layers_contract")

# TorchScript cannot compile diffusers and transformers models. timm leaves out its own models that
# it cannot compile in the same way (EXCLUDE_JIT_FILTERS, EXCLUDE_FX_JIT_FILTERS).
EXCLUDED = ("test_model_forward_torchscript", "test_model_forward_fx_torchscript")

_list_models = timm.list_models
_create_model = timm.create_model
_current_test = ""


def _list_ours(*args: Any, **kwargs: Any) -> list[str]:
    kwargs.pop("module", None)
    if kwargs.get("pretrained"):
        return []
    wanted = kwargs.pop("filter", args[0] if args else "")
    if wanted:
        return []
    return list(_list_models(MODELS, **kwargs))


def _create_for_test(model_name: str, *args: Any, **kwargs: Any) -> Any:
    # Our models create their semantic tower through timm, too.
    if _current_test.startswith(GRADIENT_TESTS) and model_name.startswith("sketchfusion_"):
        kwargs.setdefault("freeze_foundations", False)
    return _create_model(model_name, *args, **kwargs)


timm.list_models = _list_ours
timm.create_model = _create_for_test


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _current_test
    _current_test = item.name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if "sketchfusion" in item.name]
    kept = [item for item in ours if item.name.split("[")[0] not in EXCLUDED]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
