"""Files by hand, after the tables of each tool's own documents; and whatever is none of them is one line."""

import gzip
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tempspec.errors import UserError
from tempspec.modules.fit.state_files import state_files, states_of, tokens_of

TOKENS, STATES, WIDTH = torch.tensor([5, 3, 8, 1]), 3, 2
VALUES = torch.arange(24, dtype=torch.bfloat16).reshape(4, STATES, WIDTH)
"""Of every token three states."""

SAFE = {"token_ids": TOKENS, "hidden_states": VALUES}
OLD = {"input_ids": TOKENS, "hidden_states": [VALUES[:, place] for place in range(3)], "loss_mask": torch.ones(4)}
LISTED = OLD | {"input_ids": [5, 3, 8, 1]}
FORGE = {
    "input_ids": TOKENS,
    "loss_mask": torch.ones(4, dtype=torch.int64),
    "hidden_state": VALUES[None, :, 2],
    "aux_hidden_state": torch.stack([torch.cat([VALUES[place, 0], VALUES[place, 1]]) for place in range(4)])[None],
}


def written(folder, name, held):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in held.items()}, file)
    elif name.endswith(".gz"):
        buffer = io.BytesIO()
        torch.save(held, buffer)
        file.write_bytes(gzip.compress(buffer.getvalue()))
    else:
        torch.save(held, file)
    return file


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("a.safetensors", SAFE),
        ("data_0.pt", OLD),
        ("data_0.pt", LISTED),
        ("rows_0-5000/data_0.ckpt", FORGE),
        ("rows_0-5000/data_0.ckpt.gz", FORGE),
    ],
)
def test_a_file_by_hand_is_read_bit_for_bit(tmp_path, name, held):
    file = written(tmp_path, name, held)
    assert state_files(tmp_path) == [file]
    assert tokens_of(file, STATES, WIDTH).tolist() == TOKENS.tolist()
    assert torch.equal(states_of(file, STATES), VALUES)


class Evil:
    """What a file could run where it is unpickled without a guard."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("name", "held", "says"),
    [
        ("a.safetensors", {"hidden_states": VALUES}, "must hold hidden_states and token_ids, got hidden_states"),
        ("a.safetensors", SAFE | {"hidden_states": VALUES[:, :2]}, r"= \[4, 3, 2\], got \[4, 2, 2\]"),
        ("a.pt", OLD | {"hidden_states": OLD["hidden_states"][:2]}, r"= \[4, 3, 2\], got \[4\] tokens of 4 numbers"),
        ("a.pt", OLD | {"input_ids": TOKENS[:3]}, r"= \[3, 3, 2\], got \[4\] tokens of 6 numbers"),
        (
            "a.pt",
            {"input_ids": TOKENS, "hidden_state": VALUES[:, 2]},
            "holds only the last state, as EAGLE",
        ),
        ("a.ckpt", {"epoch": 3, "state_dict": {}}, "must hold input_ids with .*, got epoch, state_dict: remove it"),
        ("a.pt", TOKENS, "must hold input_ids with .*, got none of them: remove it"),
        ("a.pt", OLD | {"more": Evil()}, "cannot read .*; let the engine write it again"),
    ],
)
def test_a_file_of_another_kind_is_one_line(tmp_path, monkeypatch, name, held, says):
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, name, held)
    with pytest.raises(UserError, match=says) as error:
        tokens_of(file, STATES, WIDTH)
    assert "\n" not in str(error.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.ckpt", "a.ckpt.gz"])
def test_a_torn_file_is_one_line(tmp_path, name):
    for content in (b"", b"torn", written(tmp_path, name, SAFE if "safe" in name else FORGE).read_bytes()[:200]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*; let the engine write it again"):
            tokens_of(tmp_path / name, STATES, WIDTH)
