import pytest
import torch

from tempspec.errors import UserError
from tempspec.models.loading import save_model
from tempspec.modules.language_model import LanguageModelModule, ModelShape, NatsPerToken
from tests import tiny

SMALL = ModelShape(hidden_size=8, layers=1, heads=2, max_position_embeddings=32)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(["</s>", "a", "b", "c"], eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm") / "model"
    torch.manual_seed(0)
    save_model(SMALL.build(tokenizer), tokenizer, folder)
    return folder


def batch(**changes):
    ids = torch.tensor([[1, 2, 3, 1], [2, 1, 0, 0]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    base = {
        "input_ids": ids,
        "attention_mask": real,
        "loss_mask": real.bool() & torch.tensor([False, True, True, True]),
        "weight": torch.ones(2),
        "set_index": torch.tensor([0, 1]),
    }
    return base | changes


def module(folder):
    made = LanguageModelModule(pretrained=str(folder))
    made.configure_model()
    made.log = lambda *args, **kwargs: None
    return made


def test_the_loss_is_transformers_own(folder):
    made = module(folder)
    ids = torch.tensor([[1, 2, 3, 1]])
    whole = batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        loss_mask=torch.tensor([[False, True, True, True]]),
        weight=torch.ones(1),
    )
    torch.testing.assert_close(made.training_step(whole, 0), made.model(input_ids=ids, labels=ids).loss)


def test_the_loss_weighs_tokens_not_rows(folder):
    made = module(folder)
    found = made._read(batch())
    assert found.weight_BT.sum(1).tolist() == [3, 1]
    torch.testing.assert_close(made.training_step(batch(), 0), (found.nats_BT * found.weight_BT).sum() / 4)


@pytest.mark.parametrize("change", [{"weight": torch.tensor([1.0, 0.0])}, {"padding": 3}])
def test_filler_rows_and_padding_change_nothing(folder, change):
    made = module(folder)
    alone = {name: value[:1] for name, value in batch().items()}
    if "padding" in change:
        changed = {
            name: torch.nn.functional.pad(value, (0, 3)) if value.dim() == 2 else value for name, value in alone.items()
        }
    else:
        changed = batch(**change)
    torch.testing.assert_close(made.training_step(changed, 0), made.training_step(alone, 0))


def test_a_batch_without_targets_is_worth_nothing(folder):
    made = module(folder)
    loss = made.training_step(batch(weight=torch.zeros(2)), 0)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in made.parameters())


def test_nats_per_token_is_the_same_in_one_batch_or_many():
    generator = torch.Generator().manual_seed(0)
    nats_BT = torch.rand(6, 4, generator=generator)
    weight_BT = torch.randint(2, (6, 4), generator=generator)
    sets_B = torch.tensor([0, 1, 0, 1, 1, 0])
    whole, parts = NatsPerToken(2), NatsPerToken(2)
    whole.update(nats_BT, weight_BT, sets_B)
    for rows in torch.arange(6).split(2):
        parts.update(nats_BT[rows], weight_BT[rows], sets_B[rows])
    torch.testing.assert_close(whole.compute(), parts.compute())
    pooled = (nats_BT * weight_BT).sum() / weight_BT.sum()
    torch.testing.assert_close(whole.compute()[-1], pooled)


def test_an_empty_set_is_nan_and_spoils_no_other():
    metric = NatsPerToken(2)
    metric.update(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([1]))
    found = metric.compute()
    assert found[0].isnan()
    assert found[1:].tolist() == [1.0, 1.0]


def test_a_new_model_has_its_shape(tokenizer):
    model = ModelShape(hidden_size=16, layers=3, heads=4, kv_heads=2, max_position_embeddings=50).build(tokenizer)
    config = model.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (4, 16, 3)
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (4, 2, 50)
    assert config.eos_token_id == 0


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"hidden_size": 9, "heads": 2}, "even multiple of heads = 2, got 9"),
        ({"layers": 0}, "layers must be 1 or more, got 0"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads must divide heads = 4, got 3"),
    ],
)
def test_sizes_that_do_not_fit(sizes, says):
    with pytest.raises(ValueError, match=says):
        ModelShape(**sizes)


@pytest.mark.parametrize("arguments", [{}, {"shape": SMALL, "pretrained": "x"}])
def test_a_module_needs_one_model_and_a_tokenizer(arguments):
    with pytest.raises(UserError, match="model"):
        LanguageModelModule(**arguments)


def test_chunks_of_less_than_no_tokens_are_refused(folder):
    with pytest.raises(UserError, match=r"chunk_tokens must be 0 \(whole logits\) or more, got -1"):
        LanguageModelModule(pretrained=str(folder), chunk_tokens=-1)


def test_a_larger_tokenizer_is_refused(folder, tmp_path, tokenizer):
    larger = tiny.tokenizer([str(i) for i in range(9)], eos_token="0")
    larger.save_pretrained(tmp_path / "larger")
    made = LanguageModelModule(pretrained=str(folder), tokenizer=str(tmp_path / "larger"))
    with pytest.raises(UserError, match="the tokenizer has 9 ids"):
        made.configure_model()


def test_a_loaded_model_is_in_train_mode(folder):
    assert module(folder).model.training


def test_nats_keep_their_precision_in_a_half_precision_module():
    held = torch.nn.ModuleList([NatsPerToken(1)]).to(torch.bfloat16)
    for _ in range(600):
        held[0].update(torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))
    assert held[0].tokens_S.item() == 600
