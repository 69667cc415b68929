"""The engine as a whole: its law, its independence of the batch, its counts."""

import copy
import itertools
from collections import deque

import pytest
import torch

from tempspec.core.noise import Stream, uniform
from tempspec.core.sampling import log_law
from tempspec.core.verification import next_weight
from tempspec.decoding.engine import PREFILL_CHUNK, Engine
from tempspec.decoding.noise import RoundNoise
from tempspec.errors import UserError
from tempspec.interfaces import Request, Verdict
from tempspec.models.cutting import first_layers
from tempspec.plugins.drafters import CausalLM, EarlyExit, PromptLookup
from tempspec.plugins.lengths import AdaEDL, ConfidenceThreshold, FixedLength
from tests.built_ins import built_in
from tests.controls import (
    BlockFirstFailure,
    BlockPlainResidual,
    MatchPlusResidual,
    ResidualFromTarget,
    SharedNoiseResidual,
    Wrong,
    WrongTemperature,
    ratio_coins,
)

from .conftest import tiny_llama

VERIFIERS = {name: rule() for name, rule in built_in("verifiers").items()}
LOSSLESS = {name: verifier for name, verifier in VERIFIERS.items() if verifier.lossless}
SAMPLING = {name: verifier for name, verifier in LOSSLESS.items() if not verifier.greedy_only}


def run(engine, requests):
    """Completions in the order of the requests."""
    found = {completion.request.key: completion for completion in engine.run(requests)}
    return [found[request.key] for request in requests]


def speculative(target, draft, verifier, *, length=None, drafter=None, vocabulary=None, **options):
    size = target.config.vocab_size if vocabulary is None else vocabulary
    rule = FixedLength(3) if length is None else length
    proposer = CausalLM() if drafter is None else drafter
    return Engine(target, size, verifier=verifier, drafter=proposer, length=rule, draft=draft, **options)


def prompts(count, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
    return [tuple(torch.randint(0, vocabulary, (n,), generator=generator).tolist()) for n in lengths]


# -- T = 0: the target's own greedy text -------------------------------------------------------------------------------


def greedy_text(model, prompt, count):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("slots", [1, 3])
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


# -- T > 0: the target's joint law -------------------------------------------------------------------------------------

EMITTED = 4
KINDS = [
    Request((1, 2, 3), 0.7),
    Request((4,), 1.0, 0.5),
    Request((0, 0, 2, 1, 3, 4, 1), 1.5, top_k=3),
    Request((2, 2), 1.0, 1.3, top_p=0.8),
]


@torch.inference_mode()
def joint_law(model, request):
    """The law of the first tokens by enumeration, float64 `[V ** EMITTED]`."""
    size = model.config.vocab_size
    chains = torch.tensor(list(itertools.product(range(size), repeat=EMITTED)))
    rows = torch.cat([torch.tensor(request.prompt).expand(len(chains), -1), chains], 1)
    logits = model(rows).logits[:, len(request.prompt) - 1 : -1].double()
    logp = log_law(
        logits,
        torch.full((len(rows),), request.target_temperature),
        top_k_B=torch.full((len(rows),), request.top_k),
        top_p_B=torch.full((len(rows),), request.top_p),
    )
    return logp.gather(-1, chains[..., None]).squeeze(-1).sum(-1).exp()


def chi_square_p_value(count, expected):
    """P-value of Pearson's test after merging cells that expect fewer than 8."""
    assert count[expected == 0].sum() == 0, "a token outside the target's support was emitted"
    order = expected.argsort()
    count, expected = count[order], expected[order]
    group = (expected.cumsum(0) / 8).long().clamp(max=int(expected.sum() / 8) - 1)
    merged = [torch.zeros(int(group.max()) + 1).double().index_add(0, group, x.double()) for x in (count, expected)]
    used = merged[1] > 0
    statistic = ((merged[0] - merged[1])[used] ** 2 / merged[1][used]).sum()
    freedom = torch.tensor((used.sum().item() - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()


def p_values(target, draft, verifier, runs, **options):
    """One p-value a kind of request, all kinds decoded in one ragged batch."""
    engine = speculative(target, draft, verifier, slots=512, **options)
    requests = [
        Request(kind.prompt, kind.target_temperature, kind.draft_temperature, kind.top_k, kind.top_p,
                max_new_tokens=EMITTED, seed=run * len(KINDS) + index, key=f"{index}")
        for run in range(runs)
        for index, kind in enumerate(KINDS)
    ]  # fmt: skip
    base = target.config.vocab_size ** torch.arange(EMITTED - 1, -1, -1)
    cells = [[] for _ in KINDS]
    for completion in engine.run(requests):
        cells[int(completion.request.key)].append(int((torch.tensor(completion.tokens) * base).sum()))
    return [
        chi_square_p_value(torch.bincount(torch.tensor(cell), minlength=len(law)), law * runs)
        for cell, law in zip(cells, (joint_law(target, kind) for kind in KINDS), strict=True)
    ]


@pytest.mark.parametrize("name", SAMPLING)
def test_the_engines_joint_law_is_the_targets(target, draft, name):
    assert min(p_values(target, draft, SAMPLING[name], 4000)) > 1e-4


def test_the_joint_law_survives_drafts_that_stop_early(target, draft):
    rule = ConfidenceThreshold(threshold=0.6, longest=4)
    assert min(p_values(target, draft, SAMPLING["BlockVerification"], 4000, length=rule)) > 1e-4


def test_the_joint_law_survives_a_threshold_of_past_rounds(flat_pair):
    rule = AdaEDL(threshold=0.45, longest=3, gain=2.0)
    assert min(p_values(*flat_pair, SAMPLING["BlockVerification"], 4000, length=rule)) > 1e-4


def test_the_joint_law_survives_prompt_lookup(target):
    found = p_values(target, None, SAMPLING["TokenwiseRejection"], 4000, drafter=PromptLookup())
    assert min(found) > 1e-4


class ReusedCoin(Wrong):
    """Samples the residual with the very uniform that the coins used."""

    def verify(self, logp_BKV, draft, noise):
        accepted_B = ratio_coins(logp_BKV, draft, noise)
        weight_BV = next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        return Verdict(accepted_B, noise.draw(weight_BV, Stream.ACCEPT))


CONTROLS = {
    ResidualFromTarget: 2000,
    ReusedCoin: 2000,
    WrongTemperature: 2000,
    MatchPlusResidual: 2000,
    BlockFirstFailure: 2000,
    SharedNoiseResidual: 5000,
    BlockPlainResidual: 12_000,  # off by .006 only
}


@pytest.mark.parametrize("wrong", CONTROLS)
def test_negative_controls_fail_the_chi_square(flat_pair, wrong):
    assert min(p_values(*flat_pair, wrong(), CONTROLS[wrong])) < 1e-6


@pytest.mark.parametrize(("name", "harmless"), [("TokenwiseRejection", True), ("BlockVerification", False)])
def test_noise_keyed_by_position_biases_rules_that_look_ahead(flat_pair, monkeypatch, name, harmless):
    def by_position(noise, stream, count, first=0):
        position_BK = noise._length_B[:, None] + torch.arange(first, first + count)
        return uniform(noise._seed_B[:, None], int(stream), 0, position_BK)

    monkeypatch.setattr(RoundNoise, "_uniform", by_position)
    found = min(p_values(*flat_pair, SAMPLING[name], 6000))
    assert found > 1e-4 if harmless else found < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLING)
def test_the_engines_joint_law_over_many_runs(target, draft, name):
    assert min(p_values(target, draft, SAMPLING[name], 100_000)) > 1e-4


# -- a request is the same in any company ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLING)
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


# -- compiled forward passes -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TokenwiseRejection", "GumbelCoupling"])
def test_compiled_passes_give_the_same_tokens_in_any_batch(wide_pair, name):
    target, draft = wide_pair
    requests = [
        Request(p, t, max_new_tokens=5 + 3 * i, seed=i, key=f"{i}/{t}")
        for i, p in enumerate([(7,), *prompts(3, 40)])
        for t in (0.0, 1.0)
    ]
    eager = run(speculative(target, draft, SAMPLING[name], slots=3), requests)
    for slots in (1, 3):
        compiled = run(speculative(target, draft, SAMPLING[name], slots=slots, compile=True), requests)
        assert [c.tokens for c in compiled] == [c.tokens for c in eager]
        assert [c.accepted for c in compiled] == [c.accepted for c in eager]


@pytest.mark.slow
def test_compiled_plain_decoding_at_zero_is_generate(wide_pair):
    target, _ = wide_pair
    requests = [Request(p, 0.0, max_new_tokens=300 - i, key=str(i)) for i, p in enumerate(prompts(3, 40))]
    for completion in run(Engine(target, 40, slots=2, compile=True), requests):
        own = greedy_text(target, completion.request.prompt, completion.request.max_new_tokens)
        assert completion.tokens == own[: len(completion.tokens)]
        assert len(completion.request.prompt) + len(completion.tokens) == min(
            256, len(completion.request.prompt) + completion.request.max_new_tokens
        )


@pytest.mark.slow
def test_compiled_passes_follow_weights_that_change(wide_pair):
    _, draft = wide_pair
    target = tiny_llama(3, 40, layers=2, gain=2.0)
    request = Request((1, 2, 3), 0.0, max_new_tokens=15)
    for _ in range(2):
        (completion,) = speculative(target, draft, SAMPLING["TokenwiseRejection"], compile=True).run([request])
        assert completion.tokens == greedy_text(target, request.prompt, 15)
        with torch.no_grad():
            target.lm_head.weight.copy_(target.lm_head.weight.roll(1, 0))


@pytest.mark.slow
def test_the_joint_law_survives_compiled_passes(target, draft):
    assert min(p_values(target, draft, SAMPLING["BlockVerification"], 4000, compile=True)) > 1e-4


def test_without_a_compiler_compile_warns_once_and_decodes(wide_pair, monkeypatch):
    target, _ = wide_pair
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    request = Request((1, 2, 3), 0.0, max_new_tokens=9)
    with pytest.warns(UserWarning, match="expected a C\\+\\+ compiler"):
        (completion,) = Engine(target, 40, compile=True).run([request])
    assert completion.tokens == greedy_text(target, request.prompt, 9)


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_on_cuda_rows_give_the_greedy_text_of_generate(wide_pair, compile):
    target, draft = (copy.deepcopy(model).cuda() for model in wide_pair)
    requests = [Request(p, 0.0, max_new_tokens=12 + i, key=str(i)) for i, p in enumerate([(7,), *prompts(5, 40)])]
    engine = speculative(target, draft, SAMPLING["TokenwiseRejection"], slots=3, compile=compile)
    for completion in run(engine, requests):
        ids = torch.tensor([completion.request.prompt], device="cuda")
        own = target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=completion.request.max_new_tokens,
            pad_token_id=0,
        )
        assert completion.tokens == own[0, ids.shape[1] :].tolist()
        assert completion.seconds.verify > 0
        assert completion.seconds.overhead > 0


@pytest.mark.gpu
def test_on_cuda_the_joint_law_is_the_targets(target, draft):
    models = [copy.deepcopy(model).cuda() for model in (target, draft)]
    for compile in (False, True):
        engine = speculative(*models, SAMPLING["BlockVerification"], slots=512, compile=compile)
        requests = [Request((1, 2, 3), 0.7, max_new_tokens=EMITTED, seed=seed) for seed in range(4000)]
        base = target.config.vocab_size ** torch.arange(EMITTED - 1, -1, -1)
        cells = torch.tensor([int((torch.tensor(c.tokens) * base).sum()) for c in engine.run(requests)])
        law = joint_law(target, KINDS[0])
        assert chi_square_p_value(torch.bincount(cells, minlength=len(law)), law * len(requests)) > 1e-4


# -- counts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERIFIERS)
def test_counts_of_every_round_are_coherent(wide_pair, name):
    target, draft = wide_pair
    temperature = 0.0 if VERIFIERS[name].greedy_only else 1.0
    requests = [Request(p, temperature, max_new_tokens=25, seed=i, key=str(i)) for i, p in enumerate(prompts(6, 40))]
    for completion in run(speculative(target, draft, VERIFIERS[name], slots=4, analytic=True), requests):
        assert len(completion.tokens) == 25
        assert sum(completion.accepted) + completion.target_calls == 25
        for drafted, tested, accepted in zip(completion.drafted, completion.tested, completion.accepted, strict=True):
            assert tested == min(accepted + 1, drafted)
            assert accepted <= drafted <= 3
        assert completion.seconds.total > 0


def test_analytic_acceptance_agrees_with_the_measured_one(wide_pair):
    target, draft = wide_pair
    requests = [Request(p, 1.3, max_new_tokens=60, seed=i, key=str(i)) for i, p in enumerate(prompts(60, 40))]
    done = run(speculative(target, draft, SAMPLING["TokenwiseRejection"], slots=30, analytic=True), requests)
    tested = sum(sum(c.tested) for c in done)
    accepted = sum(sum(c.accepted) for c in done)
    expected = sum(sum(c.expected_acceptance) for c in done)
    assert abs(accepted - expected) / tested < 4 * (0.25 / tested) ** 0.5


def test_the_first_stop_token_ends_a_request_and_its_counts(wide_pair):
    target, draft = wide_pair
    requests = [Request(p, 1.0, max_new_tokens=40, seed=i, key=str(i)) for i, p in enumerate(prompts(12, 40))]
    stop_ids = frozenset(range(0, 40, 4))
    stopping = [Request(r.prompt, 1.0, max_new_tokens=40, seed=r.seed, key=r.key, stop_ids=stop_ids) for r in requests]
    engine = speculative(target, draft, SAMPLING["TokenwiseRejection"], slots=5, analytic=True)
    for free, stopped in zip(run(engine, requests), run(engine, stopping), strict=True):
        at = next(i for i, token in enumerate(free.tokens) if token in stop_ids)
        assert stopped.tokens == free.tokens[: at + 1]
        assert stopped.finish == "stop"
        last = stopped.target_calls - 1
        assert sum(stopped.accepted) + stopped.target_calls - len(stopped.tokens) in (0, 1)
        assert stopped.tested[last] <= stopped.drafted[last]
        assert len(stopped.expected_acceptance) == stopped.target_calls


# -- limits ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (Request((1,) * 300, key="p7"), "prompt p7 has 300 tokens"),
        (Request((99,)), "token id 99"),
        (Request((-1,)), "token id"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_decoding(target, request_, what):
    with pytest.raises(UserError, match=what):
        list(Engine(target, 5).run([Request((1,)), request_]))


def test_a_greedy_rule_refuses_other_temperatures(target, draft):
    with pytest.raises(UserError, match="target_temperature 0 only"):
        list(speculative(target, draft, VERIFIERS["GreedyMatch"]).run([Request((1,), 0.5)]))


def test_a_drafter_without_its_model_is_refused(target):
    with pytest.raises(UserError, match="needs a draft model"):
        speculative(target, None, SAMPLING["TokenwiseRejection"])


def test_layers_of_an_early_exit_are_told_by_their_own_name(target):
    with pytest.raises(UserError, match="EarlyExit: layers must be 1 to 1, the target's number of layers, got 9"):
        speculative(target, None, LOSSLESS["TokenwiseRejection"], drafter=EarlyExit(9))


def test_no_requests_no_completions(target):
    assert list(Engine(target, 5).run([])) == []


def fed(requests, later=()):
    """An iterator that runs dry, and has more once the first completion was taken."""
    waiting = deque(requests)

    class Feed:
        def __iter__(self):
            return self

        def __next__(self):
            if not waiting:
                raise StopIteration
            return waiting.popleft()

        def more(self):
            waiting.extend(later)

    return Feed()


def test_a_queue_that_grows_gives_what_each_request_gives_alone(target, draft):
    requests = [
        Request(prompt, 1.0, max_new_tokens=4 + 3 * number, seed=number, key=str(number))
        for number, prompt in enumerate(prompts(7, 5))
    ]
    engine = speculative(target, draft, SAMPLING["TokenwiseRejection"], slots=2)
    engine.reserve(40)
    feed, found = fed(requests[:3], requests[3:]), {}
    for completion in engine.run(feed):
        if not found:
            feed.more()
        found[completion.request.key] = completion.tokens
    for request in requests:
        (alone,) = speculative(target, draft, SAMPLING["TokenwiseRejection"], slots=1).run([request])
        assert found[request.key] == alone.tokens


def test_a_request_longer_than_the_room_waits_and_is_decoded(target):
    requests = [Request((1, 2), 0.0, max_new_tokens=new, key=str(new)) for new in (4, 60, 5)]
    engine = Engine(target, 5, slots=2)
    engine.reserve(10)
    found = {completion.request.key: completion.tokens for completion in engine.run(iter(requests))}
    for request in requests:
        (alone,) = Engine(target, 5, slots=1).run([request])
        assert found[request.key] == alone.tokens


def test_nothing_is_taken_from_a_queue_before_a_slot_is_free(target):
    taken = []

    def requests():
        for number in range(6):
            taken.append(number)
            yield Request((1, 2), 0.0, max_new_tokens=3, key=str(number))

    engine = Engine(target, 5, slots=2)
    engine.reserve(8)
    list(itertools.islice(engine.run(requests()), 1))
    assert taken == [0, 1]


def test_slots_are_busy_until_the_queue_is_empty(target, draft):
    requests = [Request((1, 2), 0.0, max_new_tokens=2 + 5 * (n % 3), key=str(n)) for n in range(20)]
    engine = Engine(target, 5, slots=4)
    completions = list(engine.run(requests))
    tally = engine.tally
    assert tally.queued_busy == tally.queued_offered > 0
    assert tally.busy == sum(completion.target_calls for completion in completions) < tally.offered
    assert tally.tokens == sum(len(completion.tokens) for completion in completions)
    few = speculative(target, draft, LOSSLESS["TokenwiseRejection"], slots=4)
    (completion,) = few.run(requests[:1])
    assert (few.tally.queued_offered, few.tally.busy * 4) == (0, few.tally.offered)
    assert (few.tally.tested, few.tally.accepted) == (sum(completion.tested), sum(completion.accepted))


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
