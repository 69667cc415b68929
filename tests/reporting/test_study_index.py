import dataclasses
import json

import pytest

from tempspec.errors import UserError
from tempspec.reporting.study_index import FILE, DraftIndex, Prefixes, Status, StudyIndex, read_study, write_study

INDEX = StudyIndex(
    name="small",
    kind="custom",
    drafts={"plain": DraftIndex({"train_temperature": 1.0, "fitted": True}, {"0": "runs/plain-s0"})},
    prompt_sets={"code": {"domain": "in"}},
    target_temperatures=[0.0, 1.0],
    draft_temperatures=["same", 0.0],
    reference_temperature=1.0,
    prefixes=Prefixes({"code": "code"}, {"code": {"1": "code sampled@1"}}),
    status=Status(3, 4),
)


def test_what_is_written_is_read(tmp_path):
    assert write_study(tmp_path / "made", INDEX) == tmp_path / "made" / FILE
    assert read_study(tmp_path / "made") == INDEX


def test_a_folder_without_an_index_is_named(tmp_path):
    with pytest.raises(UserError, match=r"study\.json: expected a study's index, got no file; name a folder"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps(dataclasses.asdict(INDEX) | {"version": 2}),
        json.dumps(dataclasses.asdict(INDEX) | {"drafts": []}),
        "{}",
    ],
)
def test_what_is_no_index_is_refused_in_one_line(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError, match="again") as refused:
        read_study(tmp_path)
    assert "\n" not in str(refused.value)
