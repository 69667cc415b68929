from dataclasses import replace

import pytest
import torch

from tempspec.core.sampling import one_hot_log
from tempspec.errors import UserError
from tempspec.interfaces import DraftContext
from tempspec.plugins.drafters import CausalLM, PromptLookup, SuffixLookup
from tempspec.plugins.lengths import ConfidenceThreshold, FixedLength
from tempspec.testing import check_drafter
from tempspec.testing.drafters import HashModel
from tests.built_ins import built_in

DRAFTERS = built_in("drafters")


def greedy(logits_BV, offset):
    """The draft temperature 0."""
    token_B = logits_BV.argmax(-1)
    return token_B, one_hot_log(token_B, logits_BV.shape[-1])


def softmax_argmax(logits_BV, offset):
    """The most likely token, with the law that it did not come from: enough for rules that look at q."""
    return logits_BV.argmax(-1), logits_BV.log_softmax(-1)


def context(texts, limits, rule=None, model=None, sample=greedy, vocabulary=10):
    """A round over texts of different lengths, padded with a 9."""
    longest = max(len(text) for text in texts)
    return DraftContext(
        token_BT=torch.tensor([[*text, *[9] * (longest - len(text))] for text in texts]),
        length_B=torch.tensor([len(text) for text in texts]),
        limit_B=torch.tensor(limits),
        longest=max(limits),
        vocabulary=vocabulary,
        rule=rule or FixedLength(8),
        sample=sample,
        model=model,
        law=lambda logits_BMV: logits_BMV.log_softmax(-1),
        draw=lambda weight_BMV, node_M: weight_BMV.argmax(-1),
    )


def drafted(draft):
    """The real tokens of each row."""
    return [tokens[:length] for tokens, length in zip(draft.token_BK.tolist(), draft.length_B.tolist(), strict=True)]


def lookup(texts, limits, rule=None, **options):
    return drafted(PromptLookup(**options).propose(context(texts, limits, rule)))


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_builtin_conforms(name):
    check_drafter(DRAFTERS[name]())


@pytest.mark.parametrize("options", [(1, 1), (2, 2), (5, 3)])
def test_prompt_lookup_conforms_with_other_ngrams(options):
    check_drafter(PromptLookup(*options), vocabulary=2, seed=1)


def test_causal_lm_drafts_the_models_own_greedy_text():
    texts, model = [[1, 2, 3], [4]], HashModel(10)
    draft = CausalLM().propose(context(texts, [3, 2], model=HashModel(10)))
    for text, tokens in zip(texts, drafted(draft), strict=True):
        for token in tokens:
            logits = model.catch_up(torch.tensor([text]), torch.tensor([len(text)]))
            assert token == logits.argmax().item()
            text.append(token)


def test_causal_lm_calls_the_model_once_a_column():
    model = HashModel(10)
    draft = CausalLM().propose(context([[1], [2]], [4, 1], model=model))
    assert draft.token_BK.shape == (2, 4)
    assert draft.length_B.tolist() == [4, 1]
    assert model.calls == 4


def test_causal_lm_stops_early_once_no_row_goes_on():
    model = HashModel(10)
    rule = ConfidenceThreshold(1.0, longest=8)
    draft = CausalLM().propose(context([[1], [2]], [8, 8], rule, model, sample=softmax_argmax))
    assert draft.token_BK.shape == (2, 1)
    assert draft.length_B.tolist() == [1, 1]
    assert model.calls == 1


def test_causal_lm_without_a_model_says_so():
    with pytest.raises(ValueError, match="needs a draft model"):
        CausalLM().propose(context([[1]], [1]))


def test_lookup_copies_what_followed():
    assert lookup([[1, 2, 3, 4, 5, 1, 2]], [3]) == [[3, 4, 5]]


def test_lookup_prefers_the_longest_match_then_the_most_recent():
    assert lookup([[1, 2, 3, 7, 2, 3, 8, 3, 6, 1, 2, 3]], [1]) == [[7]]
    assert lookup([[1, 2, 3, 7, 2, 3, 8, 3, 6, 1, 2, 3]], [1], longest_ngram=2) == [[8]]
    assert lookup([[1, 2, 3, 7, 2, 3, 8, 3, 6, 1, 2, 3]], [1], longest_ngram=1) == [[6]]


def test_lookup_takes_the_earliest_match_where_asked():
    text = [[9, 3, 7, 9, 3, 8, 9, 3]]
    assert lookup(text, [2]) == [[8, 9]]
    assert lookup(text, [2], match="earliest") == [[7, 9]]
    assert lookup([[1, 2, 3, 7, 2, 3, 8, 3, 6, 1, 2, 3]], [1], match="earliest") == [[7]]  # the longest, all the same
    with pytest.raises(UserError, match="match must be latest or earliest, got 'first'"):
        PromptLookup(match="first")


def test_lookup_never_reads_past_the_end():
    assert lookup([[4, 4, 4]], [8]) == [[4]]
    assert lookup([[5, 6, 5], [5, 6, 7, 8, 5]], [8, 8]) == [[6, 5], [6, 7, 8, 5]]


def test_lookup_is_ragged():
    texts = [[1, 2, 1], [1, 2, 3], [3], [5, 6, 7, 8, 5]]
    assert lookup(texts, [2, 2, 2, 0]) == [[2, 1], [], [], []]
    assert lookup([[1, 2, 3], [3]], [2, 2]) == [[], []]


def test_lookup_leaves_out_matches_that_are_too_short():
    assert lookup([[1, 2, 3, 1, 2]], [2], shortest_ngram=2) == [[3, 1]]
    assert lookup([[1, 2, 3, 7, 2]], [2], shortest_ngram=2) == [[]]


def test_lookup_finds_repeats_of_one_token_just_before_the_end():
    assert lookup([[1, 5, 5]], [3]) == [[5]]


@pytest.mark.parametrize(
    "options", [{"longest_ngram": 0}, {"shortest_ngram": 0}, {"longest_ngram": 2, "shortest_ngram": 3}]
)
def test_lookup_refuses_ngrams_out_of_order(options):
    with pytest.raises(UserError, match="expected 1 <= shortest_ngram <= longest_ngram"):
        PromptLookup(**options)


@pytest.mark.parametrize("options", [{"least": 0.0, "factor": 4.0}, {"depth": 2}, {"factor": 0.5}])
def test_suffix_lookup_conforms_with_other_options(options):
    check_drafter(SuffixLookup(**options), vocabulary=2, seed=1)


def test_suffix_lookup_is_ragged_and_keeps_limits():
    texts = [[1, 2, 3, 4, 1, 2, 3], [1, 2, 3], [5, 6, 5], [5, 6, 5]]
    assert drafted(SuffixLookup().propose(context(texts, [4, 4, 4, 0]))) == [[4, 1, 2], [], [6], []]
    assert drafted(SuffixLookup().propose(context(texts, [2, 2, 2, 2]))) == [[4, 1], [], [6], [6]]
    assert drafted(SuffixLookup().propose(context([[1], [2]], [2, 2]))) == [[], []]


def test_texts_that_the_host_knows_are_not_read():
    told = [([4, 1, 2, 4], 2), ([], 0)]
    read = context([[4, 1, 2, 4], [7]], [2, 0])
    assert read.texts() == [told[0], ([7], 0)]
    unread = replace(read, token_BT=torch.full_like(read.token_BT, 3), told=lambda: told)
    assert drafted(SuffixLookup().propose(unread)) == drafted(SuffixLookup().propose(read)) == [[1], []]


@pytest.mark.parametrize("options", [{"depth": 1}, {"factor": 0.0}, {"least": 1.5}])
def test_suffix_lookup_refuses_options_out_of_range(options):
    with pytest.raises(UserError, match=f"SuffixLookup: {next(iter(options))} must be"):
        SuffixLookup(**options)
