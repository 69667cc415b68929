import pytest
import torch

from tempspec.metrics.prefixes import PromptSums, prefix_split


def sums(generator, keys, shift=0.0):
    tokens_U = torch.randint(1, 9, (len(keys),), generator=generator).double()
    alpha_U = torch.rand(len(keys), generator=generator).double() * 0.1 + 0.8 - shift
    return PromptSums.of((alpha_U * tokens_U)[:, None], tokens_U[:, None], torch.tensor(keys))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_the_two_parts_add_up_to_the_fall(generator):
    split = prefix_split(*(sums(generator, range(30), shift) for shift in (0.0, 0.1, 0.3)), replicates=200)
    assert split.fall.value == pytest.approx(split.laws.value + split.prefixes.value)
    assert split.laws.low < 0.1 < split.laws.high
    assert split.prefixes.low < 0.2 < split.prefixes.high
    assert split.fall.prompts == 30


def test_equal_laws_leave_all_to_prefixes_and_the_other_way(generator):
    first, second = sums(generator, range(9)), sums(generator, range(9), 0.2)
    assert prefix_split(first, first, second).laws.to_dict() | {"prompts": 0} == dict.fromkeys(
        ("value", "low", "high", "prompts"), 0
    )
    assert prefix_split(first, second, second).prefixes.value == 0


def test_only_prompts_that_all_three_have_count(generator):
    parts = [sums(generator, range(at, at + 12)) for at in (0, 2, 4)]
    common = torch.arange(4, 12)
    narrowed = [part.only(common) for part in parts]
    assert prefix_split(*parts) == prefix_split(*narrowed)
    assert prefix_split(*parts).fall.prompts == 8


def test_without_a_common_prompt_nothing_is_claimed(generator):
    split = prefix_split(*(sums(generator, [key]) for key in (1, 2, 3)))
    assert str(split.fall) == "-"
    assert split.fall.prompts == 0
