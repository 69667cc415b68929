"""A head in the engine: its drafts are those of its training steps, and the target's law stays exact."""

import copy

import pytest
import torch

from tempspec.core.sampling import log_law
from tempspec.decoding.draft_sides import HeadSide
from tempspec.decoding.engine import PREFILL_CHUNK, Engine
from tempspec.decoding.refusing import compiles
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.models.conditioning import at_temperature, condition
from tempspec.models.eagle3 import Eagle3
from tempspec.models.tapping import head_target, tapped
from tempspec.plugins.drafters import CausalLM, PromptLookup, Speculator
from tempspec.plugins.lengths import AdaEDL, ConfidenceThreshold, FixedLength, Goodput
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import RecursiveRejection, Traversal
from tempspec.registry import load
from tests.controls import ResidualFromTarget
from tests.slow import slow_but

from .conftest import tiny_llama
from .engines import LOSSLESS, SAMPLING, greedy_text, prompts, run
from .joint_laws import p_values

VERIFIERS = {plugin.name for plugin in load() if plugin.family == "verifiers"}


def head_of(target, seed=0, ids=None, gain=1.0, **options):
    """A random head whose laws are far from uniform."""
    torch.manual_seed(seed)
    kind = Eagle3(states=[0, 1, 2], draft_vocabulary=None if ids is None else len(ids), **options)
    head = kind.build(head_target(target), ids).eval()
    for parameter in head.parameters():
        parameter.data.normal_(1.0 if parameter.ndim < 2 else 0.0, 0.3)
    head.lm_head.weight.data.mul_(4 * gain)
    return head


@pytest.fixture(scope="module")
def small():
    """Five tokens, to be enumerated; flat laws, so that runs are long."""
    target = tiny_llama(0, layers=2, gain=1.0)
    return target, head_of(target, gain=0.5)


@pytest.fixture(scope="module")
def wide():
    """Forty tokens, and a head that has learned a little of them: at T = 0 it agrees sometimes."""
    target = tiny_llama(3, 40, layers=2, gain=1.0)
    head = Eagle3(states=[0, 1, 2]).build(head_target(target))
    optimizer, generator = torch.optim.Adam(head.parameters(), 0.01), torch.Generator().manual_seed(0)
    for _ in range(60):
        text = torch.randint(0, 40, (8, 16), generator=generator)
        with torch.no_grad():
            out = tapped(target, head.states, input_ids=text, use_cache=False)
            law = target.lm_head(out.hidden_BTH[:, 1:]).softmax(-1)
        (hidden,) = head.unrolled(out.states, text, target.get_input_embeddings(), 1)
        optimizer.zero_grad()
        (-law * head.logits(hidden).log_softmax(-1)).sum(-1).mean().backward()
        optimizer.step()
    return target, head.eval()


def engine_of(pair, verifier, length=None, drafter=None, **options):
    target, head = pair
    parts = {"drafter": drafter or Speculator(), "length": FixedLength(3) if length is None else length}
    return Engine(target, target.config.vocab_size, verifier=verifier, draft=head, **parts, **options)


# -- T = 0 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slots"), [*((name, 3) for name in LOSSLESS), ("TokenwiseRejection", 1)])
def test_temperature_zero_gives_the_greedy_text(wide, name, slots):
    """Alone, and in a batch with rows of other temperatures."""
    requests = [Request(p, 0.0, max_new_tokens=8 + i, key=str(i)) for i, p in enumerate(prompts(4, 40))]
    mixed = requests
    if not LOSSLESS[name].greedy_only:
        mixed = [
            *requests,
            Request((1, 2), 1.0, max_new_tokens=12, key="warm"),
            Request((3,), 0.7, 0.0, max_new_tokens=6, key="cool"),
        ]
    completions = run(engine_of(wide, LOSSLESS[name], slots=slots), mixed)
    for request, completion in zip(requests, completions, strict=False):
        assert completion.tokens == greedy_text(wide[0], request.prompt, request.max_new_tokens)


def test_a_head_that_knows_the_target_is_accepted(wide):
    """The head's drafts at T = 0 are accepted exactly where the unrolled training steps say so."""
    target, head = wide
    request = Request((1, 2, 3), 0.0, max_new_tokens=24)
    (completion,) = engine_of(wide, LOSSLESS["TokenwiseRejection"], FixedLength(1)).run([request])
    text = torch.tensor([[*request.prompt, *completion.tokens]])
    with torch.no_grad():
        out = tapped(target, head.states, input_ids=text, use_cache=False)
        (hidden,) = head.unrolled(out.states, text, target.get_input_embeddings(), 1)
        agrees = head.logits(hidden)[0].argmax(-1)[:-1] == text[0, 2:]
    place, expected = len(request.prompt), []
    while place < text.shape[1] - 1:  # at the last token nothing is drafted
        expected.append(int(agrees[place - 2]))
        place += expected[-1] + 1
    assert completion.accepted[: len(expected)] == expected
    assert 0 < sum(expected) < len(expected)


# -- what is drafted ---------------------------------------------------------------------------------------------------


class Watching(Speculator):
    """Remembers the law of every drafted position, with the text that it continues."""

    def __init__(self):
        self.seen = []

    def propose(self, context):
        draft = super().propose(context)
        for row, length in enumerate(context.length_B.tolist()):
            for step in range(int(draft.length_B[row])):
                text = [*context.token_BT[row, :length].tolist(), *draft.token_BK[row, :step].tolist()]
                self.seen.append((length, text, draft.logq_BKV[row, step].clone()))
        return draft


def unrolled_law(pair, length, text, vocabulary):
    """What the training steps give for the same: the entry of the row's last token but one, at the text's step."""
    target, head = pair
    tokens, step = torch.tensor([text]), len(text) - length
    with torch.no_grad():
        out = tapped(target, head.states, input_ids=tokens, use_cache=False)
        hidden = list(head.unrolled(out.states, tokens, target.get_input_embeddings(), step + 1))[step]
        logits = head.target_logits(hidden[:, length - 2])[..., :vocabulary]
    return log_law(logits[:, None], torch.ones(1))[0, 0]


@pytest.mark.parametrize("ids", [None, torch.arange(0, 40, 3)], ids=["all", "some"])
def test_every_drafted_law_is_that_of_the_training_steps(ids):
    """In a ragged batch, over many rounds, with slots that are used again."""
    target = tiny_llama(3, 40, layers=2, gain=2.0)
    pair = target, head_of(target, ids=ids)
    drafter = Watching()
    requests = [Request(p, 1.0, max_new_tokens=10, seed=i, key=str(i)) for i, p in enumerate(prompts(6, 40))]
    run(engine_of(pair, SAMPLING["TokenwiseRejection"], drafter=drafter, slots=3), requests)
    assert len(drafter.seen) > 40
    assert len({len(text) - length for length, text, _ in drafter.seen}) == 3
    for length, text, logq in drafter.seen:
        torch.testing.assert_close(logq.exp(), unrolled_law(pair, length, text, 40).exp(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", ["feature", "place"])
def test_a_shifted_entry_has_other_laws(wide, monkeypatch, wrong):
    """The control of the test above: features of the token before, and keys that are a place off."""
    drafter, observe = Watching(), HeadSide.observe

    def shifted(side, context, accepted, node, states):
        states = [state.roll(1, 1) for state in states] if wrong == "feature" else states
        if wrong == "place":
            context = copy.copy(context)
            object.__setattr__(context, "length_B", context.length_B - 1)
        observe(side, context, accepted, node, states)

    monkeypatch.setattr(HeadSide, "observe", shifted)
    run(engine_of(wide, SAMPLING["TokenwiseRejection"], drafter=drafter), [Request((1, 2, 3, 4), max_new_tokens=12)])
    later = [each for each in drafter.seen if each[0] > 4]
    found = [float((logq.exp() - unrolled_law(wide, *at, 40).exp()).abs().sum()) for *at, logq in later]
    assert max(found) > 0.05


def test_long_prompts_are_read_in_chunks():
    target = tiny_llama(0, 40, layers=2, context=1024)
    pair, drafter = (target, head_of(target)), Watching()
    generator = torch.Generator().manual_seed(1)
    long = tuple(torch.randint(0, 40, (PREFILL_CHUNK + 2,), generator=generator).tolist())
    requests = [Request(long[:cut], max_new_tokens=3, key=str(cut)) for cut in (-1, PREFILL_CHUNK, 5)]
    requests[0] = Request(long, max_new_tokens=3, key="long")
    run(engine_of(pair, SAMPLING["TokenwiseRejection"], drafter=drafter, slots=3), requests)
    assert len({length for length, _, _ in drafter.seen}) >= 3
    for length, text, logq in drafter.seen:
        torch.testing.assert_close(logq.exp(), unrolled_law(pair, length, text, 40).exp(), rtol=1e-3, atol=1e-4)


class WatchingTree(StaticTree):
    """Remembers the law that every node was drawn from, before its elder siblings were taken out."""

    def __init__(self, *shape):
        super().__init__(*shape, siblings="independent")
        self.seen = []

    def propose(self, context):
        draft = super().propose(context)
        for row, length in enumerate(context.length_B.tolist()):
            text = context.token_BT[row, :length].tolist()
            for node in range(int(draft.length_B[row])):
                path, at = [], self.parents[node]
                while at >= 0:
                    path, at = [int(draft.token_BK[row, at]), *path], self.parents[at]
                self.seen.append((length, text + path, draft.logq_BKV[row, node].clone()))
        return draft


def test_every_node_of_a_tree_has_the_law_of_the_training_steps(wide):
    drafter = WatchingTree([2, 2, 1])
    requests = [Request(p, 1.0, max_new_tokens=8, seed=i, key=str(i)) for i, p in enumerate(prompts(3, 40))]
    run(engine_of(wide, Traversal(), drafter=drafter, slots=2), requests)
    assert len(drafter.seen) > 40
    for length, text, logq in drafter.seen:
        torch.testing.assert_close(logq.exp(), unrolled_law(wide, length, text, 40).exp(), rtol=1e-4, atol=1e-5)


def test_nodes_that_see_their_siblings_have_other_laws(wide, monkeypatch):
    """The control of the test above."""

    def everything_before(on_BNN, parent_BM):
        rows, nodes = parent_BM.shape
        nodes += 0 if on_BNN is None else on_BNN.shape[1]
        return torch.ones(rows, nodes, nodes, dtype=torch.bool).tril()

    monkeypatch.setattr("tempspec.decoding.draft_sides.grown", everything_before)
    drafter = WatchingTree([2, 2, 1])
    run(engine_of(wide, Traversal(), drafter=drafter), [Request((1, 2, 3), 1.0, max_new_tokens=6)])
    found = [float((logq.exp() - unrolled_law(wide, *at, 40).exp()).abs().sum()) for *at, logq in drafter.seen]
    assert max(found) > 0.05


@pytest.mark.parametrize("drafter", [StaticTree([2, 2]), DynamicTree(width=2, depth=3, nodes=5)])
def test_trees_at_temperature_zero_give_the_greedy_text(wide, drafter):
    requests = [Request(p, 0.0, max_new_tokens=8 + i, key=str(i)) for i, p in enumerate(prompts(4, 40))]
    mixed = [*requests, Request((1, 2), 1.0, max_new_tokens=12, key="warm")]
    completions = run(engine_of(wide, RecursiveRejection(), drafter=drafter, slots=3), mixed)
    for request, completion in zip(requests, completions, strict=False):
        assert completion.tokens == greedy_text(wide[0], request.prompt, request.max_new_tokens)


def test_the_joint_law_survives_a_tree_of_some_tokens(small):
    pair = small[0], head_of(small[0], ids=torch.tensor([1, 2, 4]), gain=0.5)
    assert min(p_values(*pair, RecursiveRejection(), 1500, drafter=StaticTree([2, 2]))) > 1e-4


@pytest.mark.parametrize("verifier", [RecursiveRejection(), Traversal()], ids=lambda rule: type(rule).__name__)
def test_the_joint_law_survives_a_tree_by_confidence(small, verifier):
    """EAGLE-2's, which grows where the head is sure: at T = .7, 1 and 1.5, with top-k and top-p."""
    tree = DynamicTree(width=2, depth=2, nodes=4)
    assert min(p_values(*small, verifier, 1500, drafter=tree)) > 1e-4


def test_a_row_of_one_token_drafts_from_its_second_round_on(wide):
    (completion,) = engine_of(wide, SAMPLING["TokenwiseRejection"]).run([Request((7,), 1.0, max_new_tokens=9)])
    assert completion.drafted[0] == 0
    assert completion.drafted[1] == 3


def test_rows_are_decoded_as_if_they_were_alone(wide):
    texts = [*prompts(5, 40), *prompts(3, 40), (7,), (7,)]  # a prompt that two rows begin with is read once
    requests = [Request(p, 1.2, max_new_tokens=12, seed=i, key=str(i)) for i, p in enumerate(texts)]
    together = run(engine_of(wide, SAMPLING["BlockVerification"], slots=10), requests)
    for request, completion in zip(requests, together, strict=True):
        (alone,) = run(engine_of(wide, SAMPLING["BlockVerification"], slots=1), [request])
        assert (alone.tokens, alone.accepted) == (completion.tokens, completion.accepted)


def test_the_target_runs_once_a_round(wide, monkeypatch):
    passes = []
    target = wide[0]
    handle = target.register_forward_hook(lambda *unused: passes.append(1))
    (completion,) = engine_of(wide, SAMPLING["TokenwiseRejection"]).run([Request((1, 2, 3), max_new_tokens=20)])
    handle.remove()
    assert len(passes) == completion.target_calls + 1  # and one for the prompt
    assert not any(layer._forward_pre_hooks for layer in target.model.layers)


# -- T > 0: the target's joint law -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", slow_but("TokenwiseRejection", "BlockVerification", "Traversal", among=SAMPLING))
def test_the_joint_law_is_the_targets(small, name):
    """Temperatures .7, 1 and 1.5 with top-k and top-p in one batch; drafts at temperatures of their own."""
    assert min(p_values(*small, SAMPLING[name], 2500, drafter=Speculator())) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rule", [ConfidenceThreshold(threshold=0.6, longest=4), AdaEDL(0.45, longest=3, gain=2.0)])
def test_the_joint_law_survives_drafts_that_stop_early(small, rule):
    found = p_values(*small, SAMPLING["BlockVerification"], 2500, drafter=Speculator(), length=rule)
    assert min(found) > 1e-4


def test_the_joint_law_survives_a_draft_vocabulary(small):
    pair = small[0], head_of(small[0], ids=torch.tensor([1, 2, 4]), gain=0.5)
    assert min(p_values(*pair, SAMPLING["TokenwiseRejection"], 2500, drafter=Speculator())) > 1e-4


def test_a_wrong_residual_fails_the_chi_square(small):
    assert min(p_values(*small, ResidualFromTarget(), 2000, drafter=Speculator())) < 1e-6


class Misreported(Speculator):
    """Says that it drew by another law than it did."""

    def propose(self, context):
        draft = super().propose(context)
        draft.logq_BKV = (draft.logq_BKV * 0.5).log_softmax(-1)
        return draft


def test_a_law_that_was_not_drawn_from_fails_it(small):
    assert min(p_values(*small, SAMPLING["TokenwiseRejection"], 2000, drafter=Misreported())) < 1e-6


# -- one head for all temperatures -------------------------------------------------------------------------------------


def conditioned(pair, gain=0.3):
    """The pair with a head that is another one at every temperature."""
    head = condition(copy.deepcopy(pair[1]), 2)
    torch.manual_seed(5)
    for name, parameter in head.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=gain)
    return pair[0], head.eval()


@pytest.mark.parametrize("drafter", [Speculator(), StaticTree([2, 1])])
def test_rows_draft_with_the_head_of_their_temperature(wide, drafter):
    """In a ragged batch of four temperatures, one row of which drafts nothing in its first round."""
    pair = conditioned(wide)
    verifier = RecursiveRejection() if isinstance(drafter, StaticTree) else SAMPLING["TokenwiseRejection"]
    texts = [*prompts(5, 40), (7,)]
    heats = [0.0, 0.5, 1.5, 1.0, 0.5, 1.5]
    requests = [
        Request(text, heat, max_new_tokens=10, seed=number, key=str(number))
        for number, (text, heat) in enumerate(zip(texts, heats, strict=True))
    ]

    def found(head, rows, slots):
        completions = run(engine_of((pair[0], head), verifier, drafter=drafter, slots=slots), rows)
        return [(each.tokens, each.accepted) for each in completions]

    together, plain = found(pair[1], requests, 4), found(wide[1], requests, 4)
    for request, own in zip(requests, together, strict=True):
        assert found(at_temperature(pair[1], request.proposal_temperature), [request], 1) == [own]
    assert together != plain


@pytest.mark.slow
def test_the_joint_law_survives_a_conditioned_head(small):
    """Rows of temperatures 0.7, 1 and 1.5 in one batch, each drafted by another head."""
    pair = conditioned(small)
    assert min(p_values(*pair, SAMPLING["TokenwiseRejection"], 2500, drafter=Speculator())) > 1e-4
    with pytest.raises(UserError, match="conditioned on the temperature cannot be compiled"):
        engine_of(pair, LOSSLESS["TokenwiseRejection"], compile=True)


def test_a_head_is_never_compiled(small):
    """`auto` leaves all of it eager, on a GPU as well; asked for, it is refused in one line."""
    rule = LOSSLESS["TokenwiseRejection"]
    assert not engine_of(small, rule, compile="auto")._compile
    for device in ("cpu", "cuda"):
        assert not compiles("auto", torch.device(device), small[1])
        with pytest.raises(UserError, match="a draft that is a head cannot be compiled: set compile to false"):
            compiles(True, torch.device(device), small[1])
    assert compiles("auto", torch.device("cuda"), small[0])
    with pytest.raises(UserError, match="a draft that is a head cannot be compiled: set compile to false"):
        engine_of(small, rule, compile=True)


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drafter", "with_head", "says"),
    [
        (CausalLM(), True, "CausalLM drafts with a language model, got a head: take Speculator"),
        (Speculator(), False, "Speculator drafts with a head, got a language model: take CausalLM"),
    ],
)
def test_a_drafter_of_another_kind_is_refused(wide, drafter, with_head, says):
    pair = wide[0], wide[1] if with_head else tiny_llama(1, 40)
    with pytest.raises(UserError, match=says):
        engine_of(pair, LOSSLESS["TokenwiseRejection"], drafter=drafter)


def test_a_head_is_not_compiled(wide):
    with pytest.raises(UserError, match="set compile to false"):
        engine_of(wide, LOSSLESS["TokenwiseRejection"], compile=True)


def test_a_drafter_without_a_model_leaves_the_head_alone(wide):
    request = Request((1, 2, 1, 2), 0.0, max_new_tokens=9)
    (completion,) = engine_of(wide, LOSSLESS["TokenwiseRejection"], drafter=PromptLookup()).run([request])
    assert completion.tokens == greedy_text(wide[0], request.prompt, 9)


def test_step_times_are_measured_for_goodput(wide):
    rule = Goodput(longest=3)
    engine = engine_of(wide, LOSSLESS["TokenwiseRejection"], length=rule)
    times = engine.step_times(8)
    assert times.draft > 0
    assert len(times.verify) == 4
    (completion,) = engine_of(wide, LOSSLESS["TokenwiseRejection"], length=rule.timed(times)).run(
        [Request((1, 2, 3), 0.0, max_new_tokens=12)]
    )
    assert completion.tokens == greedy_text(wide[0], (1, 2, 3), 12)
