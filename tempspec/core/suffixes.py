"""Drafts what followed where the end of a text occurred before, by counts (floor 1).

Pure Python over token ids: what is compared is counted, not computed.
"""

from collections.abc import Iterator, Sequence

__all__ = ["suffix_draft"]

_ROUNDING = 1e-6
"""Added before a product of a length and a factor is rounded down."""


def suffix_draft(
    text: Sequence[int], longest: int, depth: int = 24, factor: float = 1.0, least: float = 0.1
) -> list[int]:
    """The continuation that a text's own counts expect most accepted tokens of.

    For each n the last n tokens are looked up. From their places the most frequent next token is taken, and again from
    the places of that. The share of the n-gram's places, its last one included, that continue like this estimates the
    probability that a token is accepted. The draft whose estimates add up to most wins, of equals the longest n-gram's.
    Of tokens that are equally frequent it takes the one that arctic-inference 0.1.1 takes, the package that vLLM drafts
    with. Oliaro et al. 2024, arXiv 2411.04975.

    Args:
        text: tokens so far.
        longest: the most tokens to draft.
        depth: the most tokens of an n-gram and its continuation.
        factor: a continuation has at most so many tokens for each token of the n-gram.
        least: the smallest estimate, 0 to 1.

    >>> suffix_draft([1, 2, 3, 4, 1, 2], 4)
    [3, 4]
    >>> suffix_draft([7, 1, 7, 2, 7, 2, 7], 4), suffix_draft([7, 1, 7, 2, 7, 2, 7], 4, depth=2), suffix_draft([1, 2], 4)
    ([2, 7], [2], [])
    """
    matched = _matched(text, depth - 1)
    best, most = [], 0.0
    for count in range(1, max(matched, default=0) + 1):
        ends = [end for end, length in enumerate(matched) if length >= count]
        room = min(longest, int(count * factor + _ROUNDING), depth - count)
        path = list(_path(text, [*ends, len(text)], room, least))
        if (score := sum(share for _, share in path)) >= most:
            best, most = [token for token, _ in path], score
    return best


def _matched(text: Sequence[int], most: int) -> list[int]:
    """How many of the tokens before each place but the last are those before the text's end, at most so many.

    >>> _matched([1, 2, 3, 1, 2], 4)
    [0, 0, 2, 0, 0]
    """
    return [_common(text, end, most) for end in range(len(text))]


def _common(text: Sequence[int], end: int, most: int) -> int:
    longest = min(end, most)
    return next((back for back in range(longest) if text[end - 1 - back] != text[-1 - back]), longest)


def _path(text: Sequence[int], places: list[int], room: int, least: float) -> Iterator[tuple[int, float]]:
    """The tokens that follow most often at some places, and the share of the places where they do."""
    begun = len(places)
    for _ in range(room):
        following: dict[int, list[int]] = {}
        for place in places:
            if place < len(text):
                following.setdefault(text[place], []).append(place + 1)
        if not following:
            return
        token = _first(following)
        places = following[token]
        if len(places) / begun < least:
            return
        yield token, len(places) / begun


def _first(following: dict[int, list[int]]) -> int:
    """The token with most places; of equals the one that `_ranked` has first.

    Args:
        following: the places of each token in ascending order; the tokens by their first place.
    """
    most = max(map(len, following.values()))
    equal = [token for token, places in following.items() if len(places) == most]
    if len(equal) == 1 or most == 1:
        return equal[0]
    places = sorted((place, token) for token, places in following.items() for place in places)
    return _ranked([token for _, token in places])[0]


def _ranked(tokens: list[int]) -> list[int]:
    """Tokens by descending counts, equals as the package's list has them.

    A new token is added at the end. One that comes again moves before all tokens that have the count of the one before
    it, unless that has more than one more.

    >>> _ranked([5, 6, 6, 5]), _ranked([5, 5, 6, 6])
    ([5, 6], [6, 5])
    """
    order: list[int] = []
    counts: dict[int, int] = {}
    for token in tokens:
        if token not in counts:
            order.append(token)
        elif (at := order.index(token)) and (before := counts[order[at - 1]]) <= counts[token] + 1:
            order.insert([counts[one] for one in order].index(before), order.pop(at))
        counts[token] = counts.get(token, 0) + 1
    return order
