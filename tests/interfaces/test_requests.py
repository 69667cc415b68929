import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempspec.interfaces import Request
from tempspec.interfaces.requests import COLDEST

NUMBERS = st.floats() | st.integers(-3, 300) | st.sampled_from([0.0, -0.0, 1.0, 1e-6, 9e-7, 1e308, math.inf, math.nan])


def is_temperature(value):
    return value == 0 or COLDEST <= value < math.inf


@given(
    prompt=st.lists(st.integers(), max_size=3).map(tuple),
    target_temperature=NUMBERS,
    draft_temperature=st.none() | NUMBERS,
    top_k=st.integers(),
    top_p=NUMBERS,
    min_p=NUMBERS,
    max_new_tokens=st.integers(),
    seed=st.integers(),
)
def test_a_request_is_decodable_or_refused_by_its_fields_name(**fields):
    inside = {
        "prompt": len(fields["prompt"]) > 0,
        "target_temperature": is_temperature(fields["target_temperature"]),
        "draft_temperature": fields["draft_temperature"] is None or is_temperature(fields["draft_temperature"]),
        "top_k": fields["top_k"] >= 0,
        "top_p": 0 < fields["top_p"] <= 1,
        "min_p": 0 <= fields["min_p"] <= 1,
        "max_new_tokens": fields["max_new_tokens"] >= 1,
        "seed": -(2**63) <= fields["seed"] < 2**63,
    }
    if all(inside.values()):
        request = Request(**fields)
        assert is_temperature(request.proposal_temperature)
        assert request.shortened(1).max_new_tokens == 1
        return
    wrong = next(name for name, fine in inside.items() if not fine)
    with pytest.raises(ValueError, match=rf"^{wrong} must be [^\n]*, got [^\n]*$"):
        Request(**fields)
