from typing import get_type_hints

from tempspec.interfaces import BASELINE, Completion, Request, Seconds
from tempspec.metrics.rows import DecodedRow, row_from_completion

PLACE = {"pass_": "timing", "prompt_set": "code", "prompt_index": 3, "prompt_key": -8, "sample": 1, "key": "code/3/1"}


def complete(**request):
    return Completion(
        request=Request(prompt=(4, 5), seed=9, **request),
        tokens=[1, 2, 3],
        finish="stop",
        drafted=[2, 1],
        tested=[2, 0],
        accepted=[1, 0],
        expected_acceptance=[1.5, 0.0],
        seconds=Seconds(prefill=1, draft=2, verify=3, overhead=4),
    )


def test_row_has_every_field_but_the_text_and_names_no_object():
    row = row_from_completion(complete(), label="block", **PLACE)
    assert row.keys() == get_type_hints(DecodedRow).keys() - {"text"}
    assert all(isinstance(value, str | int | float | list) for value in row.values())
    assert row["prompt_tokens"] == 2
    assert (row["seconds_prefill"], row["seconds_overhead"]) == (1, 4)


def test_draft_temperature_is_the_one_used():
    assert row_from_completion(complete(draft_temperature=0.0), label="block", **PLACE)["draft_temperature"] == 0
    assert row_from_completion(complete(target_temperature=0.5), label="block", **PLACE)["draft_temperature"] == 0.5
    plain = row_from_completion(complete(draft_temperature=0.0), label=BASELINE, **PLACE)
    assert plain["draft_temperature"] == plain["target_temperature"]
