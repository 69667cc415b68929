"""Work among processes; two real ones take part in `tests/cli/test_two_processes.py`."""

from collections import Counter

import pytest
import torch

from tempspec.decoding.pace import Pace
from tempspec.errors import UserError
from tempspec.modules.predict import dealing
from tempspec.modules.predict.dealing import FAILED, Dealer
from tempspec.modules.predict.pulse import PassProgress, Pulse


class Shared(Counter):
    """What a store of all processes does."""

    def add(self, name, amount):
        self[name] += amount
        return self[name]

    def compare_set(self, name, expected, desired):
        if self[name] == 0 and not expected:
            self[name] = desired
        return self[name].encode()


@pytest.fixture
def two(monkeypatch):
    """The dealers of two processes."""
    store = Shared()
    monkeypatch.setattr(dealing, "_shared_store", lambda: store)
    monkeypatch.setattr(dealing, "PAUSE", 0.0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    return Dealer(), Dealer()


def alone():
    dealer = Dealer.__new__(Dealer)
    dealer._store, dealer._own, dealer._code = None, Counter(), 0
    return dealer


class Written:
    """A writer that counts its ticks."""

    ticks = 0

    def tick(self):
        self.ticks += 1


def test_every_number_is_taken_once_by_whoever_asks(two):
    one, other = two
    assert [one.take("a"), one.take("a"), other.take("a"), one.take("a")] == [0, 1, 2, 3]
    assert other.take("b") == 0
    single = alone()
    assert [single.take("a"), single.take("a")] == [0, 1]


def test_a_signal_to_one_process_stops_all(two):
    now = [0.0]
    one, other = (
        Pulse(dealer, Written(), PassProgress(Pace("p", 1)), stop, clock=lambda: now[0])
        for dealer, stop in zip(two, (lambda: 0, lambda: 143), strict=True)
    )
    assert not one()
    assert other()
    now[0] = 1.0
    assert one()
    assert (one.code, other.code) == (143, 143)


def test_every_process_shows_what_all_have_done(two):
    one, other = (PassProgress(Pace("p", 9)) for _ in two)
    one.rows, one.finished, one.tally.tokens = 2, 10, 14
    other.rows, other.finished, other.tally.tokens = 1, 5, 5
    for progress, dealer in zip((one, other, one), (*two, two[0]), strict=True):
        progress.exchange(dealer)
    assert one.pace.counts == other.pace.counts == (3, 15, 19, 0, 0)


def test_who_is_done_waits_until_all_are_or_are_told_to_stop(two):
    one, other = two
    looks = []

    def arrive():
        looks.append(other.add("arrived", 1) if len(looks) == 3 else 0)
        return False

    one.meet(arrive)
    assert len(looks) == 4
    one, other = two
    one._store["arrived"] = 0
    other.tell(FAILED)
    one.meet(lambda: one.stop_code() == FAILED)


def test_who_was_told_to_stop_as_the_last_arrived_does_not_leave(two):
    one, other = two
    one.tell(143)
    one.meet(one.stop_code)
    other.meet(lambda: pytest.fail("all have arrived"))
    first, second = one.settle(143), other.settle(0)
    assert first == second == 143


@pytest.mark.parametrize("first", [0, 143])
def test_the_first_that_asks_settles_it_for_all(two, first):
    assert [two[0].settle(first), two[1].settle(143 - first)] == [first, first]
    assert alone().settle(143) == 143


def test_the_first_process_leaves_behind_the_others(two, monkeypatch):
    one, other = two
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    clock = iter(range(100))

    def seconds():
        if (now := next(clock)) == 3:
            monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
            other.leave()
            monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
        return now

    one.leave(seconds)
    assert next(clock) == 4
    one._store["left"] = 0
    one.leave(seconds)
    assert next(clock) - 4 > dealing.LEAVING


def test_a_process_without_a_sign_is_not_waited_for_for_ever(two):
    one, other = two
    now = iter(range(0, 100_000, 600))

    def still_working():
        if one.add("looks", 1) < 20:
            other.beat()
        return False

    with pytest.raises(UserError, match="1 of 2 processes are silent"):
        one.meet(still_working, clock=lambda: next(now))
    assert 20 <= one.add("looks", 0) < 30


def test_a_first_process_that_is_gone_is_one_line(two, monkeypatch):
    def gone(name, amount):
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(two[0]._store, "add", gone, raising=False)
    with pytest.raises(UserError, match="the first process of the run is gone"):
        two[0].take("a")
