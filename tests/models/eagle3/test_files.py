import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tempspec.core.unrolled import UnrolledKeys
from tempspec.errors import UserError
from tempspec.models.eagle3 import Eagle3
from tempspec.models.eagle3.faults import head_faults
from tempspec.models.eagle3.files import is_head_folder, plain_name

ROWS = pytest.mark.parametrize("rows", [6, 24])
FORMAT = pytest.mark.parametrize("format", ["plain", "speculators"])


def renamed(change):
    """An edit that renames the tensors of the network."""

    def edit(config, weights):
        for name in list(weights):
            weights[change(name)] = weights.pop(name)

    return edit


@FORMAT
@ROWS
def test_a_folder_made_by_hand_is_read_bit_for_bit(by_hand, target, format, rows):
    folder = by_hand(format, rows)
    model = Eagle3().load(folder, target)
    weights = load_file(folder / "model.safetensors")
    ids = None if rows == 24 else [0, 3, 4, 9, 17, 23]
    assert (None if model.ids_R is None else model.ids_R.tolist()) == ids
    assert model.states == (2, 6, 9)
    state = model.state_dict()
    assert state.keys() == weights.keys() - {"d2t", "t2d"}
    assert all(torch.equal(value, weights[name]) for name, value in state.items())
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


@FORMAT
@ROWS
def test_what_is_read_is_written_again_bit_for_bit(by_hand, target, tmp_path, format, rows):
    first = by_hand(format, rows)
    head = Eagle3()
    model = head.load(first, target)
    for other in Eagle3.formats:
        head.save(model, target, tmp_path / other, other, torch.bfloat16)
        one, two = (load_file(folder / "model.safetensors") for folder in (first, tmp_path / other))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert head.load(tmp_path / other, target).config == model.config
        assert head_faults(tmp_path / other, target.config) == []
    again = tmp_path / "again"
    head.save(head.load(tmp_path / format, target), target, again, format, torch.bfloat16)
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / format / name).read_bytes()


@FORMAT
def test_the_sizes_by_hand_are_those_that_are_written(by_hand, target, tmp_path, format):
    folder = by_hand(format)
    Eagle3().save(Eagle3().load(folder, target), target, tmp_path / "ours", format, torch.bfloat16)
    theirs, ours = (json.loads((one / "config.json").read_text()) for one in (folder, tmp_path / "ours"))
    for part in ("transformer_layer_config", None):
        for name, value in (theirs.get(part, {}) if part else theirs).items():
            if not isinstance(value, dict):
                assert (ours[part] if part else ours)[name] == value


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace("layers.0.", "midlayer."),
        lambda name: name if name in ("d2t", "t2d", "lm_head.weight") else f"model.{name}",
        lambda name: f"model.{name}".replace("layers.0.", "midlayer."),
    ],
)
def test_aliases_are_read_as_the_plain_names(by_hand, target, change):
    expected = Eagle3().load(by_hand(), target).state_dict()
    found = Eagle3().load(by_hand(change=renamed(change)), target).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_name_without_an_alias_stays():
    assert plain_name("layers.0.mlp.up_proj.weight") == "layers.0.mlp.up_proj.weight"
    assert plain_name("norm.weight") == "norm.weight"


def test_a_missing_output_matrix_is_the_targets(by_hand, target):
    folder = by_hand(rows=24, change=lambda config, weights: weights.pop("lm_head.weight"))
    assert torch.equal(Eagle3().load(folder, target).output_RH, target.output_VH.bfloat16())
    folder = by_hand(rows=6, change=lambda config, weights: weights.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lm_head.weight must be \[6, 16\], got none"):
        Eagle3().load(folder, target)


def test_an_embedding_is_read_only_where_it_is_the_targets(by_hand, target):
    own = target.embedding_VH.clone()
    Eagle3().load(by_hand(change=lambda config, weights: weights.update({"embed_tokens.weight": own})), target)
    with pytest.raises(UserError, match="an embedding of its own"):
        Eagle3().load(by_hand(change=lambda config, weights: weights.update({"embed_tokens.weight": -own})), target)


def test_speculators_read_a_missing_norm_before_residual_as_true(by_hand, target):
    folder = by_hand("speculators", change=lambda config, weights: config.pop("norm_before_residual"))
    assert Eagle3().load(folder, target).config.norm_before_residual
    assert not Eagle3().load(by_hand("speculators"), target).config.norm_before_residual
    folder = by_hand(change=lambda config, weights: config.pop("norm_before_residual"))
    assert not Eagle3().load(folder, target).config.norm_before_residual


def test_norm_before_residual_changes_what_is_computed(by_hand, target):
    found = []
    for value in (False, True):
        folder = by_hand(change=lambda config, weights, value=value: config.update(norm_before_residual=value))
        model = Eagle3().load(folder, target).float()
        states = [torch.ones(1, 2, 16)] * 3
        keys = UnrolledKeys(torch.arange(2)[None])
        token = torch.tensor([[1, 2]])
        found.append(model.step(model.start(states), token, target.embedding_VH[token], keys, 0).hidden_BNH)
    assert not torch.allclose(*found)


@pytest.mark.parametrize(
    ("named", "states"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [1, 5, 9]}, (1, 5, 9)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 5, 9]}}, (2, 6, 10)),
        ({"eagle_config": {"use_aux_hidden_state": True}}, (2, 6, 9)),
    ],
)
def test_named_states_are_read_by_either_convention(by_hand, target, named, states):
    folder = by_hand(change=lambda config, weights: config.update(named))
    assert Eagle3().load(folder, target).states == states


def test_other_states_are_named_as_each_engine_counts(target, tmp_path):
    head = Eagle3(states=[1, 5, 9])
    head.save(head.build(target), target, tmp_path / "own", "plain", torch.bfloat16)
    config = json.loads((tmp_path / "own/config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 5, 9]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 4, 8]
    head = Eagle3()
    head.save(head.build(target), target, tmp_path / "default", "plain", torch.bfloat16)
    assert not {"eagle_aux_hidden_state_layer_ids", "eagle_config"} & set(
        json.loads((tmp_path / "default/config.json").read_text())
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config, weights: config.update(hidden_size=20), "for a target of 24 tokens and 20 wide, got one of 24"),
        (lambda config, weights: config.update(vocab_size=32), "for a target of 32 tokens"),
        (lambda config, weights: config.pop("intermediate_size"), "needs intermediate_size"),
        (
            lambda config, weights: config.update(intermediate_size=8),
            r"down_proj.weight must be \[16, 8\], got \[16, 20",
        ),
        (lambda config, weights: config.update(hidden_act="gelu"), "SiLU-gated MLP, got hidden_act gelu"),
        (lambda config, weights: config.update(rope_scaling={"rope_type": "dynamic"}), "rotary embedding of default"),
        (lambda config, weights: config.update(norm_before_fc=True), "with norm_before_fc, which is not read"),
        (lambda config, weights: weights.pop("d2t"), "as many of the target's 24 ids, got none"),
        (lambda config, weights: weights.pop("norm.weight"), r"norm.weight must be \[16\], got none"),
        (lambda config, weights: weights.update(bias=torch.ones(2)), r"bias must be none, got \[2\]"),
        (lambda config, weights: weights.pop("fc.weight"), "holds no EAGLE-3 head: expected a config.json"),
    ],
)
def test_a_folder_that_is_no_such_head_is_one_line(by_hand, target, change, says):
    with pytest.raises(UserError, match=says) as caught:
        Eagle3().load(by_hand(change=change), target)
    assert "\n" not in str(caught.value)


def test_folders_that_cannot_be_read_are_one_line(by_hand, target, tmp_path):
    torn = by_hand()
    (torn / "model.safetensors").write_bytes(b"torn")
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    (spoilt / "config.json").write_text("{")
    save_file({"fc.weight": torch.ones(1)}, spoilt / "model.safetensors")
    for folder in (torn, spoilt, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="holds no EAGLE-3 head") as caught:
            Eagle3().load(folder, target)
        assert "\n" not in str(caught.value)


def test_a_heads_folder_is_known_by_its_architecture(by_hand, tmp_path):
    assert is_head_folder(by_hand("plain"))
    assert is_head_folder(by_hand("speculators"))
    assert not is_head_folder(by_hand(change=lambda config, weights: config.update(architectures=["LlamaForCausalLM"])))
    assert not is_head_folder(tmp_path)


def test_an_unknown_format_is_refused(target, tmp_path):
    head = Eagle3()
    with pytest.raises(UserError, match="must be plain or speculators, got gguf"):
        head.save(head.build(target), target, tmp_path, "gguf", torch.bfloat16)
