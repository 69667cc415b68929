import gzip
import json
import tempfile
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempspec.data.readers import READERS
from tempspec.data.sources import EXACT, Source, form_of, read, source_digest
from tempspec.errors import UserError

AWKWARD = ["12", "NA", "2024-01-01", 'a,"quoted"\nline', "null"]
"""Texts that a reader which guesses types turns into something else."""


def write_rows(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.parquet", "d.csv", "folder"])
def test_every_format_gives_the_same_rows_and_texts(tmp_path, name):
    rows = [{"question": text, "answer": text[::-1]} for text in AWKWARD]
    write_rows(tmp_path / name, rows)
    got = read(Source(str(tmp_path / name), prompt="question", response="answer"))
    assert list(got.remove_columns("line")) == [{"prompt": row["question"], "response": row["answer"]} for row in rows]
    assert got["line"] == [1, 2, 3, 4, 5]


def test_a_text_file_has_a_row_for_each_paragraph(tmp_path):
    (tmp_path / "t.txt").write_text("\n\none\ntwo\n  \n\nthree")
    assert read(Source(str(tmp_path / "t.txt")))["text"] == ["one\ntwo", "three"]


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.jsonl.gz", "d.csv", "d.txt", "lines.json"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    contents = {"d.json": '[{"text": "007"}]', "d.csv": "text,b\n007,c\n", "d.txt": "007\n"}
    content = contents.get(name, '{"text": "007"}\n').encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(Source(str(tmp_path / name)))["text"] == ["007"]


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"text": "a", "other": 1}, "text"),
        ({"text": "a", "prompt": "b", "response": "c"}, "pair"),
        ({"text": "a", "messages": [{"role": "user", "content": "b"}]}, "messages"),
    ],
)
def test_the_form_is_inferred(jsonl, row, form):
    assert form_of(read(Source(jsonl([row])))) == form


def test_the_generation_temperature_is_kept_and_may_be_unknown(jsonl):
    path = jsonl(
        [{"text": "a", "generation_temperature": 0}, {"text": "b", "generation_temperature": None}, {"text": "c"}]
    )
    assert read(Source(path))["generation_temperature"] == [0.0, None, None]


def test_prompts_alone_are_enough_where_no_response_is_needed(jsonl):
    path = jsonl([{"prompt": "a"}])
    assert list(read(Source(path), need_response=False)) == [{"prompt": "a", "line": 1}]
    with pytest.raises(UserError, match="it has prompt"):
        read(Source(path))


def test_a_limit_keeps_the_first_rows_that_are_not_blank(jsonl):
    path = jsonl([{"text": "  "}, {"text": "a"}, {"text": "b"}, {"text": "c"}])
    assert read(Source(path, limit=2))["text"] == ["a", "b"]


def test_the_digest_follows_content_and_options_and_not_the_name(jsonl):
    rows = [{"text": "a"}, {"text": "b"}]
    first, copy, other = jsonl(rows), jsonl(rows, "copy.jsonl"), jsonl(rows[:1], "other.jsonl")
    assert source_digest(Source(first)) == source_digest(Source(copy)) != source_digest(Source(other))
    assert source_digest(Source(first)) != source_digest(Source(first, limit=1))
    assert source_digest(Source(first)) != source_digest(Source(first, separator="\n"))


LINE = '{"text": "a"}\n'
BAD = {
    "missing file": ("gone.jsonl", None, {}, "no such file or folder"),
    "a folder that cannot be a hub name": ("no/such/folder", None, {}, "no such file or folder"),
    "empty file": ("d.jsonl", "", {}, "got an empty file"),
    "empty csv": ("d.csv", "", {}, "got an empty file"),
    "empty text": ("d.txt", "\n\n", {}, "got an empty file"),
    "blank rows": ("d.jsonl", '{"text": " "}\n', {}, "every row is blank"),
    "malformed line": (
        "d.jsonl",
        LINE + '{"text": "b"\n',
        {},
        "d.jsonl line 2: not JSON (Expecting ',' delimiter, column 13)",
    ),
    "malformed array": ("d.json", '[{"text": "b"},\n}]', {}, "line 2 is not JSON"),
    "no object": ("d.jsonl", LINE + "5\n", {}, "d.jsonl line 2: no JSON object (got int)"),
    "no object in an array": ("d.json", '[{"text": "b"}, 5]', {}, "d.json row 2: no JSON object (got int)"),
    "unknown column": ("d.jsonl", LINE, {"text": "texts"}, "no column 'texts'; did you mean 'text'"),
    "nothing to infer": ("d.jsonl", '{"body": "a"}\n', {}, "it has body; name yours, for example `text: body`"),
    "two forms": ("d.jsonl", LINE, {"text": "text", "prompt": "text"}, "name one of text, prompt with response"),
    "wrong type": ("d.jsonl", LINE + '{"text": 5}\n', {}, "line 2: text is no text (got int)"),
    "null": ("d.jsonl", LINE + '{"text": null}\n', {}, "line 2: text is null"),
    "a row without the column": ("d.jsonl", LINE + '{"b": "c"}\n', {}, "line 2: text is missing"),
    "messages of another shape": ("d.jsonl", '{"messages": ["hi"]}\n', {}, "line 1: messages is no list of messages"),
    "negative temperature": (
        "d.jsonl",
        '{"text": "a", "generation_temperature": -1}',
        {},
        "line 1: generation_temperature is no temperature (expected 0 or more",
    ),
    "temperature in words": (
        "d.jsonl",
        '{"text": "a", "generation_temperature": "hot"}',
        {},
        "line 1: generation_temperature is no temperature (expected 0 or more",
    ),
    "limit 0": ("d.jsonl", LINE, {"limit": 0}, "limit must be 1 or more, got 0"),
    "another format": ("d.pkl", "x", {}, "expected one of .jsonl"),
    "a parquet file that is none": ("d.parquet", "x", {}, "not a readable .parquet file"),
    "a ragged csv": ("d.csv", "text,b\n1,2\n1,2,3\n", {}, "d.csv row 2: another number of columns (expected 2, got 3)"),
    "not UTF-8": ("d.txt", b"caf\xe9 noir", {}, "expected UTF-8 text, got byte 0xe9"),
}


@pytest.mark.parametrize(("name", "content", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_that_names_the_file(tmp_path, name, content, options, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read(Source(str(path), **options))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_datasets_did_not_save_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text(LINE)
    with pytest.raises(UserError, match="expected a folder saved by datasets"):
        read(Source(str(tmp_path)))


def test_a_folder_with_splits_names_them(tmp_path):
    split = datasets.Dataset.from_list([{"text": "a"}])
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "d")
    with pytest.raises(UserError, match="holds the splits train, test"):
        read(Source(str(tmp_path / "d")))
    assert read(Source(str(tmp_path / "d" / "train")))["text"] == ["a"]


def test_a_hub_name_without_network_is_one_line(monkeypatch, tmp_path):
    # The library's own switch for a machine without network, which spares its minute of retries.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^nobody/nothing: .*the hub cannot be reached; check the name") as caught:
        read(Source("nobody/nothing"), cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_silent_hub_is_asked_once(monkeypatch, tmp_path):
    def silent(*args, **options):
        raise OSError("no route to host")

    def load(*args, **options):
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        return cached

    cached = datasets.Dataset.from_list([{"text": "a"}])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", silent)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read(Source("nobody/nothing"), cache_dir=tmp_path)["text"] == ["a"]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_lines_may_be_packed_and_a_torn_package_is_one_line(tmp_path):
    path = tmp_path / "HumanEval.jsonl.gz"
    whole = gzip.compress(b'{"task_id": "HumanEval/0", "prompt": "def f():"}\n' * 99, mtime=0)
    path.write_bytes(whole)
    assert read(Source(str(path)), need_response=False)["prompt"] == ["def f():"] * 99
    for torn in (whole[: len(whole) // 2], whole[:12] + b"\xff" * 30, b"{}"):
        path.write_bytes(torn)
        with pytest.raises(UserError, match=r"HumanEval.jsonl.gz: (its gzip stream is broken|cannot be read)"):
            read(Source(str(path)), need_response=False)


def test_questions_without_answers_are_nothing_to_train_on(jsonl):
    with pytest.raises(UserError, match=r"questions without answers.*`tempspec generate` writes"):
        read(Source(jsonl([{"question_id": 1, "category": "writing", "turns": ["a"]}])))


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = ("text", "prompt", "response", "messages", "turns", "generation_temperature", "category", *EXACT)


@given(rows=st.lists(st.fixed_dictionaries({"question": TEXT, "answer": TEXT}), min_size=1, max_size=6))
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.parquet", "d.csv"])
def test_whatever_the_texts_are_they_come_back_as_they_were(name, rows):
    kept = [row for row in rows if row["question"].strip() and row["answer"].strip()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write_rows(path, rows)
        source = Source(str(path), prompt="question", response="answer")
        if kept:
            found = [(row["prompt"], row["response"]) for row in read(source)]
            assert found == [(row["question"], row["answer"]) for row in kept]
        else:
            with pytest.raises(UserError, match="every row is blank"):
                read(source)


def is_rows_or_one_line(path, **options):
    """Whether a file is read as rows in normal form, or refused in one line that names it."""
    try:
        return len(read(Source(str(path)), **options)) > 0
    except UserError as error:
        return str(path) in str(error) and "\n" not in str(error)


@given(content=st.binary(max_size=80), need_response=st.booleans())
@pytest.mark.parametrize("name", [f"d{suffix}" for suffix in READERS])
def test_any_bytes_are_rows_or_one_line(name, content, need_response):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        assert is_rows_or_one_line(path, need_response=need_response)


@given(
    rows=st.lists(st.dictionaries(st.sampled_from(COLUMNS), JSON, min_size=1), min_size=1, max_size=4),
    need_response=st.booleans(),
)
def test_any_values_in_known_columns_are_rows_or_one_line(rows, need_response):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "d.jsonl")
        write_rows(path, rows)
        assert is_rows_or_one_line(path, need_response=need_response)


@given(rows=st.lists(TEXT, min_size=1, max_size=8), limit=st.integers(1, 9))
def test_a_limit_is_a_beginning(rows, limit):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "d.jsonl")
        write_rows(path, [{"text": "whole"}, *({"text": row} for row in rows)])
        assert read(Source(str(path), limit=limit))["text"] == read(Source(str(path)))["text"][:limit]
