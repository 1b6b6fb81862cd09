"""Files of strangers: their tensors arrive, their code never runs, and every other file gets its one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchbd.exchange.checkpoint import read_checkpoint


def test_the_groups_of_a_training_checkpoint(tmp_path: Path) -> None:
    weight = torch.arange(16.0).view(4, 4)
    state = {"conv": weight, "column": weight[:, 1], "half": weight.half(), "brain": weight.bfloat16()}
    training = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save({"epoch": 7, "arch": "resnet18", "state_dict": state, "optimizer": training}, tmp_path / "moco.pth")
    checkpoint = read_checkpoint(tmp_path / "moco.pth")
    assert set(checkpoint.groups) == {"state_dict", "optimizer.state.0"}
    assert checkpoint.dropped == 4
    read = checkpoint.groups["state_dict"]
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(4)}, path, metadata={"by": "a stranger"})
    before = path.read_bytes()
    checkpoint = read_checkpoint(path)
    checkpoint.groups[""]["a"].zero_()
    assert path.read_bytes() == before
    assert checkpoint.metadata == {"by": "a stranger"}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_in_both_forms_of_torch(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "weights", _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(tmp_path / "weights")
    assert torch.equal(checkpoint.groups[""]["a"], torch.ones(2, 3))
