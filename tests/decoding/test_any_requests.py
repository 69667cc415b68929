"""Whatever valid requests share a batch: each is decoded as if it were alone, within its own limits, by its own q."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tempspec.decoding.engine import Engine
from tempspec.interfaces import Request
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import BlockVerification, TokenwiseRejection

VOCABULARY = 40
LONGEST = 24
TEMPERATURES = st.just(0.0) | st.floats(0.05, 4.0)
REQUESTS = st.builds(
    Request,
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12).map(tuple),
    target_temperature=TEMPERATURES,
    draft_temperature=st.none() | TEMPERATURES,
    top_k=st.integers(0, VOCABULARY + 5),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    max_new_tokens=st.integers(1, LONGEST),
    stop_ids=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=4),
    seed=st.integers(0, 2**63 - 1),
)


def decode(pair, requests, slots):
    target, draft = pair
    rules = {"verifier": BlockVerification(), "drafter": CausalLM(), "length": FixedLength(3)}
    engine = Engine(target, VOCABULARY, draft=draft, slots=slots, **rules)
    engine.reserve(12 + LONGEST)
    found = {id(completion.request): completion for completion in engine.run(requests)}
    return [found[id(request)] for request in requests]


@given(requests=st.lists(REQUESTS, min_size=1, max_size=6), slots=st.integers(1, 6))
def test_any_request_is_decoded_as_if_alone_within_its_limits(wide_pair, requests, slots):
    for together in decode(wide_pair, requests, slots):
        request = together.request
        (alone,) = decode(wide_pair, [request], 1)
        assert (together.tokens, together.accepted) == (alone.tokens, alone.accepted)
        stopped = [token in request.stop_ids for token in together.tokens]
        assert not any(stopped[:-1])
        assert together.finish == ("stop" if stopped[-1] else "length")
        assert len(together.tokens) == request.max_new_tokens or stopped[-1]
        assert len(together.tokens) <= request.max_new_tokens
        assert all(0 <= token < VOCABULARY for token in together.tokens)
        assert sum(together.accepted) + together.target_calls >= len(together.tokens)


class Drawn(CausalLM):
    """Remembers each law that a token was drawn from."""

    def __init__(self):
        self.laws = []

    def propose(self, context):
        def sample(logits_BV, offset):
            token_B, logq_BV = context.sample(logits_BV, offset)
            self.laws.append(logq_BV.clone())
            return token_B, logq_BV

        return super().propose(replace(context, sample=sample))


class Verified(TokenwiseRejection):
    """Remembers each law that it verified by."""

    def __init__(self):
        super().__init__()
        self.laws = []

    def verify(self, logp_BKV, draft, noise):
        self.laws += [logq_BV.clone() for logq_BV in draft.logq_BKV.unbind(1)]
        return super().verify(logp_BKV, draft, noise)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)], ids=str)
def test_at_any_precision_the_verified_law_was_drawn_from(wide_pair, dtypes):
    target, draft = (copy.deepcopy(model).to(dtype) for model, dtype in zip(wide_pair, dtypes, strict=True))
    drawn, verified = Drawn(), Verified()
    rules = {"verifier": verified, "drafter": drawn, "length": FixedLength(3)}
    requests = [Request((1 + number,), 0.5 * number, max_new_tokens=9, top_k=5 * number) for number in range(4)]
    list(Engine(target, VOCABULARY, draft=draft, slots=3, **rules).run(requests))
    assert len(verified.laws) > 9
    assert all(torch.equal(*pair) for pair in zip(drawn.laws, verified.laws, strict=True))
