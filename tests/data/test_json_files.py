"""JSON in all the ways that it is written to files."""

import json

import pytest

from tempspec.data.readers import place_of
from tempspec.data.skipped import Skipped
from tempspec.data.sources import Source, read
from tempspec.errors import UserError

ROWS = [{"text": "a"}, {"text": "b"}]
WRITTEN = {
    "a list": json.dumps(ROWS),
    "an indented list": json.dumps(ROWS, indent=2),
    "data": json.dumps({"data": ROWS}),
    "instances, indented": json.dumps({"type": "text_only", "instances": ROWS}, indent=2),
    "rows, an object a line": '{"rows": [\n' + ",\n".join(map(json.dumps, ROWS)) + "\n]}",
    "lines": "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("content", WRITTEN.values(), ids=WRITTEN)
def test_json_is_read_however_it_is_written(tmp_path, content):
    path = tmp_path / "d.json"
    path.write_text(content)
    found = read(Source(str(path)))
    assert found["text"][:] == ["a", "b"]
    assert found["line"][:] == [1, 2]


def test_lines_that_are_an_array_after_all_are_read(tmp_path):
    path = tmp_path / "d.jsonl"
    for content in (json.dumps(ROWS), json.dumps(ROWS, indent=1)):
        path.write_text(content)
        assert read(Source(str(path)))["text"][:] == ["a", "b"]


def test_one_conversation_is_a_row_and_wraps_none(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}, indent=1))
    assert len(read(Source(str(path)))) == 1


SQUAD = {"version": "1.1", "data": [{"title": "Ulm", "paragraphs": [{"context": "a", "qas": []}]}]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (SQUAD | {"data": [{"paragraphs": [{"context": "a"}]}]}, "paragraphs holds rows of its own"),
        (
            {"train": ROWS, "test": ROWS},
            "expected a list of rows or JSON Lines, got one object with the lists train, t",
        ),
        ({"0": {"text": "a"}, "1": {"text": "b"}}, "write a list of rows or JSON Lines"),
        ([], "got an empty file"),
        (5, "row 1: no JSON object (got int)"),
    ],
)
def test_an_object_that_is_no_file_of_rows_says_so(tmp_path, value, message):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError) as caught:
        read(Source(str(path)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("d.jsonl", b'{"text": "a"}\n\nx\n', "line 3"),
        ("d.json", b'{"text": "a"}\n\n{"text": 5}\n', "line 3"),
        ("d.json", b'[{"text": "a"},\n\n{"text": 5}]', "row 2"),
        ("d.csv", b"text,b\na,1\n\nb\nc,3\n", "row 2"),
        ("d.csv", b"text,b\na,1\ncaf\xe9,2\n", "row 2"),
    ],
)
def test_a_row_is_called_as_its_file_counts(tmp_path, name, content, place):
    path = tmp_path / name
    path.write_bytes(content)
    skipped = Skipped()
    assert "a" in read(Source(str(path)), skipped=skipped)["text"][:]
    assert skipped.first.startswith(f"{path} {place}: ")
    assert place_of(path, 7) == f"{path} {place.split()[0]} 7"


def test_rows_of_a_csv_keep_their_numbers_beside_ragged_ones(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,b\na,1\nb\nc,3\nd,4,5\ne,5\n")
    skipped = Skipped()
    found = read(Source(str(path)), skipped=skipped)
    assert list(zip(found["text"], found["line"], strict=True)) == [("a", 1), ("c", 3), ("e", 5)]
    assert skipped.as_dict() == {"another number of columns": 2}


def test_a_paragraph_is_counted_by_its_first_line(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("\none\ntwo\n\n\nthree\n\nfour")
    assert read(Source(str(path)))["line"][:] == [2, 6, 8]
