"""The encoder inside other modules; what is saved of wrapped ones is in `test_checkpoint`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sketchfusion_plugins.wrappers import find_encoder, unwrap


def test_find_encoder(build: Any) -> None:
    encoder = build()
    assert find_encoder(encoder) == ("", encoder)
    assert find_encoder(nn.ModuleDict({"backbone": encoder})) == ("backbone.", encoder)
    compiled = torch.compile(encoder, backend="eager")
    assert find_encoder(compiled) == ("_orig_mod.", encoder)
    with pytest.raises(TypeError, match="got 0 in Linear"):
        find_encoder(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="got 2 in ModuleList"):
        find_encoder(nn.ModuleList([encoder, build()]))


def test_unwrap_takes_off_all_wrappers_and_nothing_else() -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    assert unwrap(module) is module
    assert unwrap(nn.DataParallel(torch.compile(module, backend="eager"))) is module
    averaged = AveragedModel(module)
    assert unwrap(torch.compile(averaged, backend="eager")) is averaged.module
    # A module that only calls its part as wrappers do.
    named_alike = nn.ModuleDict({"module": module})
    assert unwrap(named_alike) is named_alike
