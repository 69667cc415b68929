"""The engine as a whole: the target's greedy text, the same in any company, and to the ends of contexts."""

import copy

import pytest
import torch

from tempspec.decoding.engine import PREFILL_CHUNK, Engine
from tempspec.interfaces import Request
from tempspec.models.cutting import first_layers
from tempspec.models.ragged import RaggedModel
from tempspec.plugins.drafters import EarlyExit
from tests.slow import slow_but

from .conftest import tiny_llama
from .engines import LOSSLESS, SAMPLING, greedy_text, prompts, run, speculative


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("slots", slow_but(3, among=[1, 3]))
def test_temperature_zero_gives_the_greedy_text_of_generate(wide_pair, name, slots):
    target, draft = wide_pair
    requests = [Request(p, 0.0, max_new_tokens=12 + i, key=str(i)) for i, p in enumerate(prompts(5, 40))]
    mixed = requests
    if not LOSSLESS[name].greedy_only:  # rows of other temperatures in the same batch
        mixed = [*requests, Request((1, 2), 1.0, max_new_tokens=30, key="warm"), Request((3,), 0.7, 0.0, key="cool")]
    completions = run(speculative(target, draft, LOSSLESS[name], slots=slots), mixed)
    for request, completion in zip(requests, completions, strict=False):
        assert completion.tokens == greedy_text(target, request.prompt, request.max_new_tokens)


def test_plain_decoding_at_zero_is_generate(wide_pair):
    target, _ = wide_pair
    requests = [Request(p, 0.0, max_new_tokens=20, key=str(i)) for i, p in enumerate(prompts(5, 40))]
    for completion in run(Engine(target, 40, slots=2), requests):
        assert completion.tokens == greedy_text(target, completion.request.prompt, 20)
        assert completion.target_calls == 20


@pytest.mark.parametrize(
    "name", slow_but("TokenwiseRejection", "BlockVerification", "Traversal", "GumbelCoupling", among=SAMPLING)
)
def test_a_request_gives_the_same_tokens_alone_and_in_any_batch(wide_pair, name):
    target, draft = wide_pair
    temperatures = [0.0, 0.5, 1.0, 1.5]
    requests = [
        Request(p, temperatures[i % 4], [None, 0.0, 1.0][i % 3], [0, 5][i % 2], [1.0, 0.9][i % 2],
                max_new_tokens=5 + 3 * i, seed=100 + i, key=str(i))
        for i, p in enumerate(prompts(9, 40))
    ]  # fmt: skip
    alone = [run(speculative(target, draft, SAMPLING[name]), [request])[0] for request in requests]
    for slots, order in ((1, 1), (3, 1), (16, -1)):
        together = run(speculative(target, draft, SAMPLING[name], slots=slots), requests[::order])[::order]
        assert [c.tokens for c in together] == [c.tokens for c in alone]
        assert [c.accepted for c in together] == [c.accepted for c in alone]


def test_rows_of_bf16_models_keep_to_their_own_logits(wide_pair):
    target, draft = (copy.deepcopy(model).bfloat16() for model in wide_pair)
    requests = [Request(p, t, max_new_tokens=12, seed=1, key=f"{p}{t}") for p in prompts(3, 40) for t in (0.0, 1.0)]
    for completion in run(speculative(target, draft, SAMPLING["BlockVerification"], slots=4), requests):
        assert len(completion.tokens) == 12
        if completion.request.target_temperature == 0:  # each token is the argmax, up to bf16's rounding
            text = torch.tensor([[*completion.request.prompt, *completion.tokens]])
            with torch.inference_mode():
                logits = target(text).logits[0, len(completion.request.prompt) - 1 : -1].float()
            chosen = logits.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
            assert (logits.amax(-1) - chosen).max() < 0.02 * logits.abs().max()


def test_an_engine_is_reusable_and_grows(wide_pair):
    target, draft = wide_pair
    engine = speculative(target, draft, SAMPLING["BlockVerification"], slots=2)
    short = Request((1, 2, 3), max_new_tokens=10, seed=1, key="short")
    first = run(engine, [short])[0].tokens
    run(engine, [Request((1,) * 100, max_new_tokens=100, key="long")])
    assert run(engine, [short])[0].tokens == first


def test_gumbel_coupling_does_not_depend_on_the_draft(wide_pair):
    target, draft = wide_pair
    requests = [Request(p, 1.0, max_new_tokens=15, seed=i, key=str(i)) for i, p in enumerate(prompts(4, 40))]
    texts = [
        [c.tokens for c in run(speculative(target, other, SAMPLING["GumbelCoupling"]), requests)]
        for other in (draft, tiny_llama(9, 40), target)
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_draft_that_is_the_target_is_always_accepted(wide_pair):
    target, _ = wide_pair
    requests = [
        Request(p, t, max_new_tokens=17, seed=i, key=str(i)) for i, p in enumerate(prompts(4, 40)) for t in [1.0]
    ]
    for name in ("TokenwiseRejection", "BlockVerification", "GumbelCoupling"):
        for completion in run(speculative(target, target, SAMPLING[name], analytic=True), requests):
            assert completion.accepted == completion.drafted
            assert completion.target_calls == 5  # 17 tokens in rounds of 3 + 1


def test_decoding_ends_with_the_targets_context():
    target = tiny_llama(0, 40, context=32)
    request = Request((1,) * 20, max_new_tokens=100)
    for engine in (Engine(target, 40), speculative(target, tiny_llama(1, 40), SAMPLING["TokenwiseRejection"])):
        (completion,) = engine.run([request])
        assert len(completion.tokens) == 12
        assert completion.finish == "length"


def test_beyond_the_drafts_context_nothing_is_drafted():
    target, draft = tiny_llama(0, 40), tiny_llama(1, 40, context=32)
    request = Request((1, 2, 3) * 6, 0.0, max_new_tokens=40)
    (completion,) = speculative(target, draft, SAMPLING["TokenwiseRejection"]).run([request])
    assert completion.tokens == greedy_text(target, request.prompt, 40)
    assert completion.drafted[0] == 3
    assert completion.drafted[-1] == 0


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 2, 40])
def test_rows_of_one_prompt_share_its_prefill(wide_pair, monkeypatch, length):
    target, draft = wide_pair
    prompt = tuple(range(40))[-length:]
    other = (*prompt[:-1], 3, 4)
    pairs = [(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (1.5, 1.5)]
    requests = [Request(p, *t, max_new_tokens=9, seed=i, key=f"{p}{t}")
                for i, t in enumerate(pairs) for p in (prompt, other)]  # fmt: skip
    alone = [run(speculative(target, draft, SAMPLING["BlockVerification"]), [request])[0] for request in requests]
    fed, fill = [], RaggedModel.fill
    monkeypatch.setattr(RaggedModel, "fill", lambda *args, **how: (fed.append(len(args[1])), fill(*args, **how))[1])
    together = run(speculative(target, draft, SAMPLING["BlockVerification"], slots=8), requests)
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert sum(fed) == 4  # two prompts, two models


def test_prompts_longer_than_a_chunk_are_prefilled_whole():
    target, draft = tiny_llama(0, 40, context=2048), tiny_llama(1, 40, context=2048)
    prompt = tuple(torch.randint(0, 40, (2 * PREFILL_CHUNK + 30,), generator=torch.Generator().manual_seed(1)).tolist())
    requests = [Request(prompt, 0.0, max_new_tokens=10, key="long"), Request(prompt[:5], 0.0, max_new_tokens=10)]
    found = run(speculative(target, draft, SAMPLING["TokenwiseRejection"]), requests)
    for completion in found:
        assert completion.tokens == greedy_text(target, completion.request.prompt, 10)


@pytest.mark.parametrize("size", [30, 40, 64])
def test_padded_and_short_draft_heads_keep_the_law(size):
    target, draft = tiny_llama(0, 40), tiny_llama(1, size)
    request = Request((1, 2, 3), 0.0, max_new_tokens=20)
    (completion,) = speculative(target, draft, SAMPLING["TokenwiseRejection"], vocabulary=35).run([request])
    (plain,) = Engine(target, 35).run([request])
    assert completion.tokens == plain.tokens
    assert max(completion.tokens) < 35


def test_an_early_exit_holds_the_targets_own_weights():
    target = tiny_llama(0, layers=3)
    engine = speculative(target, None, LOSSLESS["TokenwiseRejection"], drafter=EarlyExit(2))
    draft, own = engine._models[1], {value.data_ptr() for value in target.state_dict().values()}
    assert len(draft.model.layers) == 2
    assert {value.data_ptr() for value in draft.state_dict().values()} <= own
    assert all(value.requires_grad for value in target.parameters())
    copied = first_layers(target, 2)
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(draft(ids).logits, copied(ids).logits, rtol=0, atol=0)
    assert not {value.data_ptr() for value in copied.parameters()} & own
