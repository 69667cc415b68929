import re
from itertools import islice

from tempspec.cli.quickstart.stories import stories


def some(seed, count=300):
    return list(islice(stories(seed), count))


def test_a_seed_decides_the_stories_and_few_are_told_twice():
    assert some(3) == some(3)
    assert len({*some(3), *some(4)}) == 600


def test_every_story_is_whole_and_of_one_size():
    for story in some(0):
        assert story.endswith("The end.")
        assert not re.search(r"[{}_]", story)
        assert 250 < len(story) < 700


def test_two_animals_of_a_story_have_two_names():
    for story in some(1):
        names = set(re.findall(r"\b(?:Anna|Bruno|Clara|Dario|Elsa|Felix|Greta|Hugo|Ida|Jonas)\b", story))
        assert len(names) <= 2
