"""The guess of a plan grows with its models, and knows their sizes without loading them."""

import pytest
import torch
from safetensors.torch import save_file

from tempspec.cli.study.pace import STEPS, guessed, parameters


def test_parameters_are_counted_by_the_headers(tmp_path):
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(2)}, tmp_path / "two.safetensors")
    assert parameters(tmp_path) == 19
    assert parameters(tmp_path / "none") == parameters("hub/name") == parameters(None) == 0


@pytest.mark.parametrize("stage", ["sampled", "training", "fitting", "cache", "fit", "validate", "predict"])
def test_a_larger_target_takes_longer(stage):
    assert guessed(stage, 0, 0) < guessed(stage, 1e8, 1e7) < guessed(stage, 1e9, 1e7)


def test_steps_of_the_preparation_have_their_own_time():
    assert guessed("corpus", 1e9, 1e9) == STEPS["corpus"]
