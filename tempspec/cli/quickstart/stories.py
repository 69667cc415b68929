"""Little stories from a small grammar: the text that the quickstart's models learn (floor 6).

A model of a hundred thousand weights learns real text badly in a minute: its distributions stay flat, and flat ones are
easy to match. Of these stories it learns nearly all in that time, as a large model does of its own text. They have what
makes drafting hard or easy: words that are certain after a letter, choices between words, and names to remember. The
same seed gives the same stories on every machine.
"""

import random
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import yaml  # type: ignore[import-untyped]

__all__ = ["stories"]


def stories(seed: int) -> Iterator[str]:
    """Stories without end, each of some 400 characters.

    Args:
        seed: decides all of them.

    >>> next(stories(1))[:60] == next(stories(1))[:60] != next(stories(2))[:60]
    True
    """
    generator = random.Random(seed)
    grammar = yaml.safe_load(resources.files(__package__).joinpath("stories.yaml").read_text("utf-8"))
    while True:
        yield _story(generator, grammar)


def _story(generator: random.Random, grammar: Mapping[str, Any]) -> str:
    """One story; `_` marks the second animal."""
    words = {kind: generator.sample(listed.split(), 2) for kind, listed in grammar["words"].items()}
    filled = {f"{kind}{mark}": word for kind, pair in words.items() for mark, word in zip(("", "_"), pair, strict=True)}
    filled["place"], filled["there"] = generator.sample(grammar["places"], 2)
    return " ".join(generator.choice(part) for part in grammar["parts"]).format(**filled)
