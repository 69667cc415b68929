"""Requests that wait for a slot."""

import itertools
from collections import deque

from tempspec.decoding.engine import Engine
from tempspec.interfaces import Request

from .engines import LOSSLESS, SAMPLING, prompts, speculative


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
