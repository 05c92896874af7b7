"""Which device commands take."""

from __future__ import annotations

import pytest
import torch

from sketchfusion_plugins.cli.common import choose_device


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_each_process_of_a_machine_takes_a_gpu_of_its_own(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device(asked) == "cuda:0"
    found = []
    for rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        found.append(choose_device(asked))
    assert found == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def empty(*_: object, device: str) -> None:
        raise RuntimeError(f"no {device} here")

    monkeypatch.setattr(torch, "empty", empty)
    assert choose_device("auto") == "cpu"
    with pytest.raises(ValueError, match="the device 'cuda' cannot be used here: no cuda here"):
        choose_device("cuda")
