"""Compiled forward passes, and those on a GPU, decode what eager ones do."""

import copy

import pytest
import torch

from tempspec.decoding.engine import Engine
from tempspec.interfaces import Request
from tempspec.models.compiling import Recorded
from tempspec.plugins.drafters import PromptLookup
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import RecursiveRejection, Traversal
from tests.models.test_compiling import Recorder

from .conftest import tiny_llama
from .engines import SAMPLING, greedy_text, prompts, run, speculative
from .joint_laws import EMITTED, KINDS, chi_square_p_value, joint_law, p_values


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


def test_engines_of_a_sweep_share_caches_and_recordings(wide_pair):
    target, draft = wide_pair
    first, second = (speculative(target, draft, SAMPLING[name], slots=2) for name in list(SAMPLING)[:2])
    first.reserve(64)
    assert second.share(first)
    second.reserve(64)
    assert second._target is first._target
    requests = [Request(p, 1.0, max_new_tokens=9, seed=i, key=str(i)) for i, p in enumerate(prompts(3, 40))]
    alone = run(speculative(target, draft, list(SAMPLING.values())[1], slots=2), requests)
    run(first, requests)
    assert [c.tokens for c in run(second, requests)] == [c.tokens for c in alone]


@pytest.mark.parametrize("other", [{"slots": 3}, {"length": FixedLength(2)}, {"drafter": PromptLookup()}])
def test_engines_of_other_caches_share_nothing(wide_pair, other):
    target, draft = wide_pair
    first = speculative(target, draft, SAMPLING["TokenwiseRejection"], slots=2)
    first.reserve(64)
    second = speculative(target, verifier=SAMPLING["TokenwiseRejection"], **{"draft": draft, "slots": 2} | other)
    assert not second.share(first)


@pytest.mark.parametrize("drafter", [StaticTree([2, 2]), DynamicTree(2, 3, 5)], ids=lambda kind: type(kind).__name__)
def test_recorded_trees_are_those_of_eager_passes(wide_pair, monkeypatch, drafter):
    target, draft = wide_pair
    requests = [Request(p, 1.0, max_new_tokens=9 + 2 * i, seed=i, key=str(i)) for i, p in enumerate(prompts(5, 40))]
    options = {"drafter": drafter, "slots": 3}
    eager = run(speculative(target, draft, RecursiveRejection(), **options), requests)
    recorder = Recorder()
    monkeypatch.setattr("tempspec.models.ragged.compiled", lambda forward, device: Recorded(forward, recorder))
    engine = speculative(target, draft, RecursiveRejection(), compile=True, **options)
    engine.reserve(64)
    for _ in range(2):  # the second time nothing is recorded anew
        recorded = run(engine, requests)
        assert [c.tokens for c in recorded] == [c.tokens for c in eager]
        assert [c.accepted for c in recorded] == [c.accepted for c in eager]
        made = recorder.made
    assert recorder.made == made > 2


@pytest.mark.gpu
@pytest.mark.parametrize("drafter", [StaticTree([2, 2]), DynamicTree(2, 3, 5)], ids=lambda kind: type(kind).__name__)
def test_on_cuda_recorded_trees_are_those_of_eager_passes(wide_pair, drafter):
    target, draft = (copy.deepcopy(model).cuda() for model in wide_pair)
    requests = [Request(p, 0.0, max_new_tokens=9 + 2 * i, key=str(i)) for i, p in enumerate(prompts(5, 40))]
    eager, passes, rounds = (
        run(speculative(target, draft, Traversal(), drafter=drafter, slots=3, compile=compile), requests)
        for compile in (False, True, "round")
    )
    assert [c.tokens for c in passes] == [c.tokens for c in eager]
    assert [c.tokens for c in rounds] == [c.tokens for c in eager]


@pytest.mark.gpu
def test_on_cuda_a_pass_that_reads_the_host_runs_eagerly(wide_pair):
    target, draft = (copy.deepcopy(model).cuda() for model in wide_pair)
    target.model.norm.register_forward_hook(lambda module, given, made: made * float(made.isfinite().all()))
    request = Request((1, 2, 3), 0.0, max_new_tokens=15)
    with pytest.warns(UserWarning, match="run eagerly, as"):
        (completion,) = speculative(target, draft, SAMPLING["TokenwiseRejection"], compile="auto").run([request])
    eager = speculative(target, draft, SAMPLING["TokenwiseRejection"])
    assert completion.tokens == next(iter(eager.run([request]))).tokens


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True, "auto", "round"])
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
    for compile in (False, True, "round"):
        engine = speculative(*models, SAMPLING["BlockVerification"], slots=512, compile=compile)
        requests = [Request((1, 2, 3), 0.7, max_new_tokens=EMITTED, seed=seed) for seed in range(4000)]
        base = target.config.vocab_size ** torch.arange(EMITTED - 1, -1, -1)
        cells = torch.tensor([int((torch.tensor(c.tokens) * base).sum()) for c in engine.run(requests)])
        law = joint_law(target, KINDS[0])
        assert chi_square_p_value(torch.bincount(cells, minlength=len(law)), law * len(requests)) > 1e-4
