import pytest

from tempspec.cli.serve_check.dialects import dialect_of
from tempspec.cli.serve_check.speed import measured
from tempspec.interfaces import Request
from tempspec.modules.openai_client import Server

DUE = [(key, Request((1, 2), 0.5, max_new_tokens=9, key=str(key))) for key in range(8)]


class Clocked:
    """An engine that takes half a second until the first token and a tenth for each round: on a clock of its own.

    Args:
        rounds: of a request's later tokens.
        record: whether it tells them.
    """

    server, dialect = Server("http://host"), dialect_of("vLLM")

    def __init__(self, rounds, record=True):
        self.rounds, self.record, self.now = rounds, record, 0.0

    def ask(self, request):
        one = request.max_new_tokens == 1
        self.now += 0.5 if one else 0.5 + 0.1 * self.rounds
        spec = {"num_spec_steps": self.rounds, "num_accepted_draft_tokens": 8 - self.rounds, "num_draft_tokens": 16}
        told = {"metrics": {"speculative_decoding": spec}} if self.record else {}
        return {"choices": [{}], "usage": {"completion_tokens": request.max_new_tokens}, **told}


@pytest.fixture
def timed(monkeypatch):
    def time(engine, drafted):
        monkeypatch.setattr("tempspec.cli.serve_check.speed.time.perf_counter", lambda: engine.now)
        return measured(engine, DUE, 1, drafted)

    return time


@pytest.mark.parametrize(("rounds", "drafted"), [(4, 4), (8, 0)])
def test_a_step_is_what_later_tokens_take(timed, rounds, drafted):
    speed = timed(Clocked(rounds), drafted)
    step = speed.step()
    assert float(step.numerator_SW[0, 0] / step.denominator_SW[0, 0]) == pytest.approx(0.1)
    assert speed.first_token().value == pytest.approx(0.5)
    assert speed.tokens_per_second().value == pytest.approx(8 / (0.1 * rounds))
    assert len(speed.requests) == 8


def test_an_engine_that_tells_no_rounds_has_no_step(timed):
    step = timed(Clocked(4, record=False), 4).step()
    assert float(step.denominator_SW[0, 0]) == 0


@pytest.mark.parametrize("asked_before", [True, False])
def test_a_prefix_that_is_kept_changes_no_speed(timed, asked_before):
    """An engine that reads a prompt once, which took longer than all of its tokens."""

    class Keeping(Clocked):
        known = {str(key) for key, _ in DUE} if asked_before else set()

        def ask(self, request):
            self.now += 0.0 if request.key in self.known else 5.0
            self.known = self.known | {request.key}
            return super().ask(request)

    speed = timed(Keeping(4), 4)
    assert speed.tokens_per_second().value == pytest.approx(8 / 0.4)
    assert speed.first_token().value == pytest.approx(0.5)
