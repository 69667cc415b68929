import pytest
import torch
from torch import nn
from transformers import PhiConfig, PhiForCausalLM

from tempspec.errors import UserError
from tempspec.models.vocabulary_size import resize_vocabulary
from tests import tiny


def phi():
    """A model whose head has biases."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    return PhiForCausalLM(PhiConfig(vocab_size=24, **shape, **tiny.NO_SPECIAL_IDS)).eval()


MODELS = {
    "own head": lambda: tiny.llama(gain=24.0),
    "tied head": lambda: tiny.llama(gain=24.0, tie_word_embeddings=True),
    "head with biases": phi,
}


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(20).view(2, 10)).logits


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_draft_gets_its_targets_size_and_drafts_as_before(make, tmp_path):
    draft = make()
    before = logits(draft)
    share = resize_vocabulary(draft, 32, 24)
    after = logits(draft)
    assert draft.config.vocab_size == 32
    assert torch.equal(after[..., :24], before)
    assert torch.equal(after.argmax(-1), before.argmax(-1))
    assert after.softmax(-1)[..., 24:].sum(-1).max() <= max(2 * share, 1e-30)
    draft.save_pretrained(tmp_path)
    again = type(draft).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), after, rtol=0, atol=0)


@pytest.mark.parametrize(("gain", "rarest"), [(24.0, False), (1.0, False), (24.0, True)])
def test_added_ids_are_drafted_as_rarely_as_can_be(gain, rarest):
    """As the mean of all rows, or as the least likely id where that is less."""
    draft, own = tiny.llama(gain=gain), tiny.llama(gain=gain)
    if rarest:
        for model in (draft, own):
            model.lm_head.weight.data += 40 * model.lm_head.weight.data[7]
            model.lm_head.weight.data[7] = -model.lm_head.weight.data.mean(0)
    share = resize_vocabulary(draft, 32, 24)
    with torch.no_grad():
        hidden = draft.model(input_ids=torch.randint(24, (4, 64), generator=torch.Generator().manual_seed(0)))[0]
        logits_NV, mean_N = (hidden @ own.lm_head.weight.T).flatten(0, 1), hidden @ own.lm_head.weight.mean(0)
    rows = [logits_NV[:, int(logits_NV.log_softmax(-1).amax(0).argmin())], mean_N.flatten()]
    shares = [
        torch.cat([logits_NV, row_N[:, None].expand(-1, 8)], 1).softmax(-1)[:, 24:].sum(-1).max() for row_N in rows
    ]
    assert share == pytest.approx(float(min(shares)), rel=1e-4)


def test_biases_rule_the_added_ids_out():
    draft = phi()
    assert resize_vocabulary(draft, 32, 24) == 0.0


def test_a_target_with_fewer_rows_cuts_padding_alone():
    draft = tiny.llama(vocabulary=32)
    before = logits(draft)
    assert resize_vocabulary(draft, 28, 24) == 0.0
    assert torch.equal(logits(draft), before[..., :28])
    with pytest.raises(UserError, match="cannot say all 24 of its tokenizer's"):
        resize_vocabulary(draft, 20, 24)


def test_a_head_that_is_no_linear_map_is_refused():
    draft = tiny.llama()
    draft.lm_head = nn.Sequential(draft.lm_head)
    with pytest.raises(UserError, match="expected a draft whose logits are a linear map"):
        resize_vocabulary(draft, 32, 24)
