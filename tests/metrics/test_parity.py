"""The same counts from both sides are the same figures; two engines of one law agree, two of different ones do not."""

from dataclasses import replace

import pytest
import torch

from tempspec.metrics.parity import Counted, agrees, compare, counted_row, figures

K = 3


def lengths(share, rounds, generator):
    """Accepted lengths of rounds in which each token is accepted with this chance."""
    accepted_RK = torch.rand(rounds, K, generator=generator) < share
    return accepted_RK.long().cumprod(1).sum(1).tolist()


def engine(key, accepted):
    """As an engine counts rounds: how many reached each position."""
    reached = [sum(one >= place for one in accepted) for place in range(1, K + 1)]
    return Counted.of_reached(key, len(accepted), len(accepted), reached)


def row(key, accepted, *, finish="stop"):
    """As our rows have them."""
    tested = [min(one + 1, K) for one in accepted]
    return {"prompt_key": key, "finish": finish, "drafted": [K] * len(accepted), "tested": tested, "accepted": accepted}


def served(share, seed, prompts=16):
    generator = torch.Generator().manual_seed(seed)
    return figures(engine(key, lengths(share, 40, generator)) for key in range(prompts))


@pytest.mark.parametrize("first", [0, K])
def test_rows_and_an_engines_counts_are_the_same_figures(first):
    """An engine has our first round in its pass over the prompt, whatever that accepted."""
    accepted = lengths(0.6, 50, torch.Generator().manual_seed(0))
    assert counted_row(row(7, [first, *accepted]), K) == engine(7, accepted)


def test_a_draft_that_ends_itself_is_counted_as_engines_do():
    """A lookup drafts what it finds: the positions after that are not accepted, and tokens per call are fewer."""
    generator = torch.Generator().manual_seed(0)
    drafted = torch.randint(0, K + 1, (50,), generator=generator).tolist()
    accepted = [min(pair) for pair in zip(lengths(0.8, 50, generator), drafted, strict=True)]
    expected = replace(engine(7, accepted), drafting=sum(map(bool, drafted)))
    expected = replace(expected, tested=(expected.drafting, *expected.tested[1:]))
    counted = counted_row(row(7, [0, *accepted]) | {"drafted": [K, *drafted]}, K)
    assert counted == expected
    sums = figures([counted])["block efficiency"]
    assert sums.numerator_SW[0, 0] / sums.denominator_SW[0, 0] == pytest.approx(1 + sum(accepted) / 50)


def test_block_efficiency_is_emitted_tokens_per_call():
    accepted = lengths(0.6, 50, torch.Generator().manual_seed(0))
    sums = figures([engine(7, accepted)])["block efficiency"]
    assert torch.isclose(
        sums.numerator_SW[0, 0] / sums.denominator_SW[0, 0], torch.tensor(1 + sum(accepted) / 50).double()
    )


def test_a_last_round_that_the_length_cuts_changes_no_figure():
    """As a round without a draft it does not count."""
    cut = row(7, [2, 1]) | {"finish": "length", "drafted": [3, 3, 0], "tested": [3, 2, 0], "accepted": [2, 1, 0]}
    assert counted_row(cut, K) == counted_row(row(7, [2, 1]), K)


def test_equal_counts_agree_without_any_width():
    lines = compare(served(0.6, 0), served(0.6, 0))
    assert agrees(lines)
    assert {line.difference.value for line in lines} == {0.0}


def test_engines_of_one_law_agree_and_of_two_do_not():
    same = [agrees(compare(served(0.6, seed), served(0.6, 100 + seed), among=10)) for seed in range(20)]
    other = [agrees(compare(served(0.45, seed), served(0.6, 100 + seed), among=10)) for seed in range(20)]
    assert sum(same) >= 19
    assert not any(other)


def test_other_groups_of_requests_are_compared_without_pairing():
    theirs = served(0.6, 1, prompts=12)
    ours = figures(engine(1000 + key, lengths(0.6, 40, torch.Generator().manual_seed(key))) for key in range(16))
    (line, *_) = compare(theirs, ours)
    assert line.difference.prompts == 12
    assert agrees(compare(theirs, ours, among=10))
