"""Conversations of several turns in predict and generate: the history of each is its own cell's."""

import json
from dataclasses import replace

import pytest

from tempspec.data.encoding import Encoder
from tempspec.data.module import TextDataModule
from tempspec.data.prompts import PromptSource
from tempspec.decoding.sweep import Sweep
from tempspec.interfaces import BASELINE
from tempspec.metrics.collection import SweepMetrics
from tempspec.metrics.rows import category_cell_of
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.predict.row_store import RowStore
from tempspec.plugins.verifiers import BlockVerification, TokenwiseRejection
from tests.slow import slow_but

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["w3 w4 w5", "w6 w7", "w8"]},
    {"question_id": 2, "category": "math", "turns": ["w9 w3", "w2"]},
    {"question_id": 3, "category": "math", "turns": ["w5"]},
]


@pytest.fixture
def talks(pair, tmp_path):
    """Makes a data module over a question file."""

    def make(questions=QUESTIONS):
        file = tmp_path / "question.jsonl"
        file.write_text("\n".join(map(json.dumps, questions)))
        return TextDataModule(
            tokenizer=str(pair / "target"),
            prompts={"mt": PromptSource(str(file))},
            cache_dir=str(tmp_path / "cache"),
        )

    return make


@pytest.fixture
def decode(pair, trainer):
    """Runs predict, or generate; returns the rows."""

    def run(data, sweep=None, generating=False):
        default = Sweep([0.0, 1.0], max_new_tokens=5, slots=2, timing_prompts=1, samples=2, write_every=0)
        module = DistillationModule(
            str(pair / "target"),
            draft=str(pair / "draft"),
            verifiers={"token": TokenwiseRejection(), "block": BlockVerification()},
            sweep=sweep or default,
        )
        if generating:
            module.begin_generation()
        trainer().predict(module, data, return_predictions=False)
        return module.runner.store.rows(module.runner.order)

    return run


def history(rows, row):
    """The answers before a row, in its own cell."""
    opening = row["key"].partition("/turn")[0]
    return [other["text"] for other in rows if other["key"].partition("/turn")[0] == opening][: row["turn"] - 1]


def test_every_turn_follows_the_answers_of_its_own_cell(talks, decode):
    data = talks()
    rows = decode(data)
    encoder = Encoder(data.tokenizer)
    cells = 2 * (1 + 2)  # two rules; one sample at 0, two at 1
    assert sum(row["pass"] == "acceptance" for row in rows) == cells * (3 + 2 + 1)
    assert sum(row["pass"] == "timing" for row in rows) == 3 * 2 * 3  # three ways at two temperatures, of three turns
    for row in rows:
        question = QUESTIONS[row["prompt_index"]]
        assert row["category"] == question["category"]
        asked = encoder.asking(question["turns"][: row["turn"]], history(rows, row))
        assert row["prompt_tokens"] == len(asked)
    assert len({row["prompt_key"] for row in rows}) == 3


def test_rules_agree_on_a_whole_conversation_at_temperature_zero(talks, decode):
    texts = {}
    for row in decode(talks()):
        if row["target_temperature"] == 0:
            texts.setdefault((row["prompt_index"], row["turn"]), set()).add(tuple(row["tokens"]))
    assert len(texts) == 6
    assert all(len(found) == 1 for found in texts.values())


class Power(Exception):
    """The plug is pulled."""


@pytest.mark.parametrize("parts", slow_but(5, among=[1, 5]))
def test_an_interrupted_conversation_goes_on_at_its_next_turn(talks, decode, monkeypatch, tmp_path, parts):
    whole = decode(talks())
    (tmp_path / "run").rename(tmp_path / "whole")
    written, interrupted, append = [], [], RowStore.append

    def record(store, rows):
        if len(written) == parts and not interrupted:
            interrupted.append(parts)
            raise Power
        written.append([row["key"] for row in rows])
        append(store, rows)

    monkeypatch.setattr(RowStore, "append", record)
    with pytest.raises(Power):
        decode(talks())
    rows = decode(talks())
    keys = [key for part in written for key in part]
    assert len(keys) == len(set(keys)) == len(whole)
    assert [(row["key"], row["tokens"]) for row in rows] == [(row["key"], row["tokens"]) for row in whole]


def test_a_conversation_that_outgrows_the_context_ends_there(talks, decode):
    long = {"category": "writing", "turns": ["w3", " ".join(["w4"] * 70), "w5"]}  # the context has 64 positions
    rows = decode(talks([long, *QUESTIONS[2:]]))
    assert {(row["prompt_index"], row["turn"]) for row in rows} == {(0, 1), (1, 1)}


def test_categories_share_out_the_rows_of_their_set(talks, decode):
    rows = decode(talks())
    whole = SweepMetrics.of_rows(rows)
    parts = SweepMetrics.of_rows(rows, cell=category_cell_of)
    assert {cell.category for cell in parts.cells} == {"writing", "math"}
    for cell in whole.cells:
        shares = [parts[part].block_efficiency.sums() for part in parts.cells if replace(part, category="") == cell]
        counted = sum(share.numerator_SW.sum() for share in shares)
        assert counted == whole[cell].block_efficiency.sums().numerator_SW.sum()
    timed = {cell: found for cell, found in parts.estimates().items() if cell.category == "writing"}
    assert all("speedup" in found for cell, found in timed.items() if cell.verifier != BASELINE)


def test_generate_answers_every_turn(talks, decode):
    sweep = Sweep(generation_temperatures=[1.0], max_new_tokens=5)
    rows = decode(talks(), sweep, generating=True)
    assert [(row["category"], row["turn"]) for row in rows] == [
        *(("writing", turn) for turn in (1, 2, 3)),
        *(("math", turn) for turn in (1, 2)),
        ("math", 1),
    ]
    assert rows[1]["prompt_ids"][: len(rows[0]["prompt_ids"])] == rows[0]["prompt_ids"]
