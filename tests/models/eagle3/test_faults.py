"""Every trap, in a folder that is sound without it."""

import pytest
import torch

from tempspec.errors import UserError
from tempspec.models.eagle3 import Eagle3
from tempspec.models.eagle3.faults import head_faults, head_notes

IDS = "eagle_aux_hidden_state_layer_ids"


def config(**entries):
    return lambda config, weights: config.update(entries)


def without(name):
    return lambda config, weights: config.pop(name)


def weight(**tensors):
    return lambda config, weights: weights.update(tensors)


def drop(*names):
    return lambda config, weights: [weights.pop(name) for name in names]


def set_map(config, weights):
    """Ids where differences belong."""
    weights["d2t"] = weights["d2t"] + torch.arange(6)


def wrong_t2d(config, weights):
    weights["t2d"] = ~weights["t2d"]


def shuffled_map(config, weights):
    weights["d2t"] = weights["d2t"].flip(0)


def second_layer(config, weights):
    weights["layers.1.hidden_norm.weight"] = torch.ones(16)
    config["num_hidden_layers"] = 2


def narrow_map(config, weights):
    weights["d2t"] = weights["d2t"].int()


ALL = {"rows": 24}
TRAPS = {
    "no d2t": ({}, drop("d2t", "t2d"), "there is no d2t: engines propose the ids 0 to 5"),
    "unpadded": (ALL, config(draft_vocab_size=22), "draft_vocab_size is 22 of the target's 24, padding included"),
    "ids in d2t": ({}, set_map, "d2t holds the target's ids: engines add the draft's id to it"),
    "t2d": ({}, wrong_t2d, "t2d must be bool of 24, true at the 6 ids"),
    "d2t in disorder": ({}, shuffled_map, "d2t does not lead to ascending ids of 0 to 23"),
    "d2t type": ({}, narrow_map, "d2t must be int64, got int32"),
    "d2t without a size": ({}, config(draft_vocab_size=None), "d2t is in the file, but draft_vocab_size is None"),
    "d2t length": ({}, config(draft_vocab_size=5), "d2t has 6 entries, draft_vocab_size is 5"),
    "no head": ({}, drop("lm_head.weight"), "only a head of all 24 tokens may share the target's"),
    "vLLM's states": ({}, config(**{IDS: [1, 5, 9]}), "not in eagle_config: SGLang takes its default; write [0, 4, 8]"),
    "SGLang's states": ({}, config(eagle_config={IDS: [0, 4, 8]}), "not in the top level: vLLM takes its default"),
    "one convention": (
        {},
        config(**{IDS: [1, 5, 9], "eagle_config": {IDS: [1, 5, 9]}}),
        "SGLang counts one less; write [0, 4, 8]",
    ),
    "states beyond": ({}, config(**{IDS: [1, 5, 13], "eagle_config": {IDS: [0, 4, 12]}}), "must be ascending, 0 to 12"),
    "head_dim": ({}, without("head_dim"), "head_dim is missing: engines take hidden_size // num_attention_heads"),
    "tied": ({}, config(tie_word_embeddings=True), "tie_word_embeddings is true"),
    "embedding": ({}, weight(**{"embed_tokens.weight": torch.ones(24, 16)}), "SGLang drops it and takes the target's"),
    "unknown tensor": ({}, weight(q_norm=torch.ones(2)), "1 tensors are unknown, such as q_norm: SGLang drops"),
    "missing tensor": ({}, drop("norm.weight"), "norm.weight is missing"),
    "residual": ({}, config(norm_before_residual=True), "norm_before_residual is true: SGLang does not know it"),
    "residual unsaid": (
        {"format": "speculators"},
        without("norm_before_residual"),
        "norm_before_residual is missing, which means true",
    ),
    "fc norm": ({"format": "speculators"}, config(fc_norm=True), "fc_norm is true: engines differ in it"),
    "layers": ({}, second_layer, "more than one layer"),
    "bias": ({}, config(attention_bias=True), "it has biases"),
    "window": ({}, config(sliding_window=64), "it has a sliding window"),
    "architecture": ({}, config(architectures=["LlamaForCausalLM"]), "must be [LlamaForCausalLMEagle3], got ['Llama"),
    "model type": ({}, config(model_type="qwen3"), "model_type must be llama, got qwen3"),
    "other target": ({}, config(vocab_size=32), "vocab_size is 32, the target's is 24"),
    "rotary base": ({}, without("rope_theta"), "rope_theta is missing: engines take 10000, the target has 500"),
    "other sizes": (
        {},
        config(intermediate_size=8),
        "down_proj.weight must be [16, 8] by the config.json, got [16, 20]",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_is_found_in_one_line(by_hand, target, trap):
    options, change, says = TRAPS[trap]
    found = head_faults(by_hand(**options, change=change), target.config)
    assert any(says in line for line in found), found
    assert all("\n" not in line and len(line) < 220 for line in found)


@pytest.mark.parametrize("format", ["plain", "speculators"])
@pytest.mark.parametrize("rows", [6, 24])
def test_a_sound_folder_has_no_fault(by_hand, target, format, rows):
    assert head_faults(by_hand(format, rows), target.config) == []


def test_both_conventions_together_are_no_fault(by_hand, target):
    named = {IDS: [1, 5, 9], "eagle_config": {IDS: [0, 4, 8]}}
    assert head_faults(by_hand(change=config(**named)), target.config) == []


def test_a_target_of_few_layers_needs_named_states(by_hand, target):
    target.config.num_hidden_layers = 5
    assert any("a target of 5 layers has no default" in line for line in head_faults(by_hand(), target.config))


@pytest.mark.parametrize("options", [{}, {"draft_vocabulary": 5}, {"states": [0, 12]}, {"norm_output": True}])
@pytest.mark.parametrize("format", Eagle3.formats)
def test_what_is_exported_here_has_no_fault(target, tmp_path, options, format):
    head = Eagle3(**options)
    ids = torch.arange(3, 8) if "draft_vocabulary" in options else None
    head.save(head.build(target, ids), target, tmp_path / "eagle3", format, torch.bfloat16)
    assert head_faults(tmp_path / "eagle3", target.config) == []


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        ({}, config(), "SGLang refuses to sample from a draft vocabulary"),
        ({"format": "speculators"}, config(), "which SGLang does not read"),
        ({"format": "speculators"}, config(speculators_config={}), "it names no verifier"),
        ({}, config(norm_output=True), "norm_output is EAGLE 3.1"),
    ],
)
def test_what_must_be_known_is_a_note(by_hand, options, change, says):
    assert any(says in line for line in head_notes(by_hand(**options, change=change)))


def test_a_path_without_eagle3_needs_the_method(by_hand, tmp_path):
    folder = by_hand(rows=24)
    notes = head_notes(folder)
    moved = folder.rename(tmp_path / "head")
    if "eagle3" not in str(tmp_path):
        assert not any("method" in line for line in notes)
        assert any('"method": "eagle3"' in line for line in head_notes(moved))


def test_a_folder_without_a_head_is_an_error(tmp_path, target):
    with pytest.raises(UserError, match="holds no EAGLE-3 head"):
        head_faults(tmp_path, target.config)
