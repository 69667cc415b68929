import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from tempspec.errors import UserError
from tempspec.models.conditioning import condition
from tempspec.models.loading import (
    check_vocabulary,
    first_layers,
    load_model,
    load_tokenizer,
    real_vocabulary,
    save_model,
)


def small_llama(vocabulary=16, layers=3, tie=False):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=tie,
        )
    ).eval()


def words(*names):
    backend = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token=names[0]))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "target"
    save_model(small_llama(), words("?", "a", "b"), folder)
    return folder


def test_saving_and_loading_gives_the_same_model(folder):
    model = load_model(str(folder))
    token_BT = torch.tensor([[1, 2, 3]])
    assert not model.training
    torch.testing.assert_close(model(token_BT).logits, small_llama()(token_BT).logits, rtol=0, atol=0)
    assert load_tokenizer(str(folder)).get_vocab() == {"?": 0, "a": 1, "b": 2}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["target"]


def test_saving_over_a_folder_replaces_it(tmp_path):
    save_model(small_llama(), words("?", "a"), tmp_path / "x")
    save_model(small_llama(layers=1), None, tmp_path / "x")
    assert load_model(str(tmp_path / "x")).config.num_hidden_layers == 1
    assert not (tmp_path / "x" / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_saved_files_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "new").touch()
    save_model(condition(small_llama(), rank=1), words("?", "a"), tmp_path / "x")
    assert (tmp_path / "x" / "conditioning.safetensors").exists()
    assert {file.stat().st_mode for file in (tmp_path / "x").iterdir()} == {(tmp_path / "new").stat().st_mode}


@pytest.mark.parametrize(("asked", "got"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_dtype(tmp_path, asked, got):
    save_model(small_llama().bfloat16(), None, tmp_path / "x")
    assert load_model(str(tmp_path / "x"), dtype=asked).dtype == got


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def with_weights_out_of_reach(folder):
    """A broken link, because nothing is out of reach of root by its permissions."""
    without_weights(folder)
    (folder / "model.safetensors").symlink_to("nowhere")


def with_pickle_only(folder):
    without_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


BROKEN = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot load a model"),
    "no weights": (without_weights, "model.safetensors"),
    "weights out of reach": (with_weights_out_of_reach, "model.safetensors is there but cannot be read"),
    "only a pickle": (with_pickle_only, "model.safetensors"),
    "torn weights": (lambda folder: (folder / "model.safetensors").write_text("torn"), "cannot load a model"),
    "other shapes": (lambda folder: edit_config(folder, hidden_size=16), "a checkpoint of another model"),
    "more layers": (lambda folder: edit_config(folder, num_hidden_layers=5), "a checkpoint of another model"),
    "an encoder": (lambda folder: edit_config(folder, model_type="bert"), "not a causal language model"),
    "an encoder-decoder": (lambda folder: edit_config(folder, model_type="t5"), "not a causal language model"),
    "unknown architecture": (lambda folder: edit_config(folder, model_type="nobody"), "nobody"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "cannot load a model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_line(folder, tmp_path, case):
    damage, says = BROKEN[case]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(UserError, match=says) as caught:
        load_model(str(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./nothing", "/nothing/here", "~/nothing-here", "runs/a/fit/draft", "runs/", ""])
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_what_can_only_be_a_folder_is_not_asked_of_the_hub(load, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no runs/ of anyone's
    with pytest.raises(UserError, match="no such folder"):
        load(path)


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UserError, match="is a file"):
        load_model(str(folder / "config.json"))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_hub_name_without_network(load, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens on the discard port
    with pytest.raises(UserError, match="the hub cannot be reached") as caught:
        load("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer; expected tokenizer\.json"):
        load_tokenizer(str(tmp_path / "copy"))


def small_gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=3, n_head=2, n_positions=32))


def small_gemma3():
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            sliding_window=4,
        )
    )


@pytest.mark.parametrize("make", [small_llama, small_gpt2, small_gemma3, lambda: small_llama(tie=True)])
def test_all_layers_give_the_target_and_nothing_is_shared(make):
    target = make().eval()
    token_BT = torch.tensor([[1, 2, 3, 4, 5, 6]])
    whole = first_layers(target, 3)
    torch.testing.assert_close(whole(token_BT).logits, target(token_BT).logits, rtol=0, atol=0)
    pointers = {parameter.data_ptr() for parameter in target.parameters()}
    assert pointers.isdisjoint(parameter.data_ptr() for parameter in whole.parameters())
    one = first_layers(target, 1)
    assert one.config.num_hidden_layers == 1
    assert target.config.num_hidden_layers == 3
    assert not torch.equal(one(token_BT).logits, target(token_BT).logits)


@pytest.mark.parametrize(("own", "default"), [("cpu", "meta"), ("meta", "cpu")])
def test_first_layers_are_where_the_target_is(own, default):
    target = small_llama().bfloat16().to(own)
    with torch.device(default):
        draft = first_layers(target, 1)
    tensors = [*draft.parameters(), *draft.buffers()]
    assert {tensor.device.type for tensor in tensors} == {own}
    assert draft.dtype == torch.bfloat16


def test_first_layers_survive_a_folder(tmp_path):
    draft = first_layers(small_gemma3().eval(), 2)
    save_model(draft, None, tmp_path / "draft")
    token_BT = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(tmp_path / "draft")(token_BT).logits, draft(token_BT).logits
    )


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 2])])
def test_evenly_spaced_layers(count, chosen):
    target = small_llama().eval()
    draft = first_layers(target, count, spacing="even")
    for layer, origin in zip(draft.model.layers, chosen, strict=True):
        for name, value in layer.state_dict().items():
            assert torch.equal(value, target.model.layers[origin].state_dict()[name])


def test_every_layer_keeps_what_the_config_says_of_it(tmp_path):
    config = SmolLM3Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        no_rope_layers=[1, 1, 1, 0],
        sliding_window=4,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=[1, 2, 3, 4],
        layer_types=["full_attention", "sliding_attention", "full_attention", "full_attention"],
    )
    draft = first_layers(SmolLM3ForCausalLM(config).eval(), 2, spacing="even")
    assert draft.config.no_rope_layers == [1, 0]
    assert draft.config.layer_types == ["full_attention", "full_attention"]
    assert draft.config.eos_token_id == [1, 2, 3, 4]
    assert [layer.self_attn.use_rope for layer in draft.model.layers] == [1, 0]
    save_model(draft, None, tmp_path / "draft")
    assert load_model(str(tmp_path / "draft")).config.no_rope_layers == [1, 0]


def test_a_narrow_draft_takes_the_leading_part_of_every_weight(tmp_path):
    target = small_llama().eval()
    whole = target.config.hidden_size
    draft = first_layers(target, 1, width=whole // 2)
    assert draft.config.hidden_size == whole // 2
    assert draft.config.intermediate_size == target.config.intermediate_size // 2
    for name, value in draft.state_dict().items():
        assert torch.equal(value, target.state_dict()[name][tuple(map(slice, value.shape))])
    save_model(draft, None, tmp_path / "draft")
    token_BT = torch.tensor([[1, 2, 3]])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "draft")
    torch.testing.assert_close(again(token_BT).logits, draft(token_BT).logits)


@pytest.mark.parametrize("width", [0, 3, 1000])
def test_widths_that_leave_no_whole_heads(width):
    with pytest.raises(UserError, match=f"draft_width must leave whole heads.*got {width}"):
        first_layers(small_llama(), 1, width=width)


@pytest.mark.parametrize("count", [0, 4, -1])
def test_layers_out_of_range(count):
    with pytest.raises(UserError, match=f"1 to 3, the target's number of layers, got {count}"):
        first_layers(small_llama(), count)


@pytest.mark.parametrize(("head", "expected"), [(16, 3), (2, 2)])
def test_real_vocabulary(head, expected):
    assert real_vocabulary(words("?", "a", "b"), small_llama(vocabulary=head)) == expected


def test_one_vocabulary_passes():
    check_vocabulary(words("?", "a", "b"), words("?", "a", "b"))


@pytest.mark.parametrize(("target", "draft", "more"), [("?ab", "?abp", "draft"), ("?abpq", "?ab", "target")])
def test_more_ids_on_one_side_are_one_line(caplog, target, draft, more):
    """As a `[PAD]` that was added to one of two tokenizers of a family."""
    with caplog.at_level("INFO"):
        check_vocabulary(words(*target), words(*draft))
    (line,) = caplog.messages
    assert line.startswith(f"the {more}'s tokenizer has {abs(len(target) - len(draft))} more than the ")


def test_two_meanings_of_an_id_are_refused():
    with pytest.raises(
        UserError, match=r"but 2 tokens differ .*: 'b' \(2 and none\), 'c' \(none and 2\); choose a draft"
    ):
        check_vocabulary(words("?", "a", "b"), words("?", "a", "c"))


def test_other_vocabularies_are_named():
    with pytest.raises(UserError, match=r"3 tokens differ .*'a' \(1 and 2\), 'b' \(2 and 1\), 'c' \(none and 3\)"):
        check_vocabulary(words("?", "a", "b"), words("?", "b", "a", "c"))
