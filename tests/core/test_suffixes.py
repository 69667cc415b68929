"""The oracle counts strings: how often the n-gram occurs, and how often with its continuation after it.

Recorded: drafts of `SuffixDecodingCache` of arctic-inference 0.1.1 for random texts in which counts are equal.
"""

import json
import random
from pathlib import Path

import pytest

from tempspec.core.suffixes import suffix_draft

TEXTS = [[random.Random(seed).randrange(3) for _ in range(seed % 23 + 2)] for seed in range(200)]


def occurrences(text, part):
    return sum(text[place : place + len(part)] == part for place in range(len(text) - len(part) + 1))


def expected(text, longest, depth, factor, least):
    """Each n-gram's greedy continuation by counted strings: the best sum of estimates, then the longest n-gram.

    None where tokens are equal that occur more than once.
    """
    found = []
    for count in range(1, min(len(text), depth)):
        gram, shares = list(text[-count:]), []
        draft = []
        many = occurrences(text, gram)
        while many > 1 and len(draft) < min(longest, int(count * factor + 1e-6), depth - count):
            counts = {token: occurrences(text, [*gram, *draft, token]) for token in set(text)}
            most = max(counts.values())
            if most == 0 or most / many < least:
                break
            equal = [token for token in counts if counts[token] == most]
            if len(equal) > 1 and most > 1:
                return None
            draft.append(min(equal, key=lambda token: first(text, [*gram, *draft, token])))
            shares.append(most / many)
        found.append((sum(shares), count, draft))
    return max(found, default=(0, 0, []))[2]


def first(text, part):
    return next(place for place in range(len(text)) if text[place : place + len(part)] == part)


@pytest.mark.parametrize(
    "options", [(4, 24, 1.0, 0.1), (8, 24, 2.0, 0.0), (3, 4, 1.0, 0.1), (8, 24, 0.5, 0.4), (8, 9, 4.0, 0.3)]
)
def test_drafts_are_those_of_counted_strings(options):
    found = {tuple(text): expected(text, *options) for text in TEXTS}
    told = {text: draft for text, draft in found.items() if draft is not None}
    assert len(told) > 60
    assert {text: suffix_draft(text, *options) for text in told} == told
    assert any(told.values())


def test_a_longer_match_may_draft_more():
    text = [1, 2, 3, 4, 5, 1, 2, 3]
    assert suffix_draft(text, 8) == [4, 5, 1]
    assert suffix_draft(text, 8, depth=4) == [4, 5]  # the bigram's two: the trigram has room for one
    assert suffix_draft(text, 8, factor=0.5) == [4]
    assert suffix_draft(text, 2) == [4, 5]


def test_rare_continuations_end_a_draft():
    text = [1, 2, 1, 3, 1, 4, 1]
    assert suffix_draft(text, 8, factor=3.0) == [2, 1, 3]
    assert suffix_draft(text, 8, factor=3.0, least=0.26) == []


def test_of_equal_counts_the_same_token_as_vllms_package_has():
    lines = (Path(__file__).parent / "recorded/suffixes.jsonl").read_text().splitlines()
    recorded = [json.loads(line) for line in lines]
    assert len(recorded) == 60
    for row in recorded:
        assert suffix_draft(*row["asked"]) == row["drafted"]


def test_the_most_frequent_continuation_wins_then_the_earliest():
    assert suffix_draft([7, 1, 7, 2, 7, 2, 7], 1, depth=2) == [2]
    assert suffix_draft([7, 1, 7, 2, 7], 1, depth=2) == [1]
