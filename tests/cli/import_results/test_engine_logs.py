"""What engines write, recorded from vLLM 0.32 in `recorded/` and written here by its documents, gives its counts."""

import json
from pathlib import Path

import pytest

from tempspec.cli.import_results.counts import ONLY_DRAFTING
from tempspec.cli.import_results.engine_logs import read_engine_log
from tempspec.errors import UserError

VLLM = {"num_spec_steps": 43, "num_accepted_draft_tokens": 10, "num_draft_tokens": 129, "num_spec_tokens": 3}
SGLANG = {"completion_tokens": 100, "spec_verify_ct": 40}
COUNTERS = """# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 40.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 60.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 400.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 150.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 90.0
"""
VLLM_LOG = (
    "INFO 09-09 11:51:35 [metrics.py:96] SpecDecoding metrics: Mean acceptance length: 2.50, Accepted throughput: 4.4 "
    "tokens/s, Drafted throughput: 4.9 tokens/s, Accepted: 30 tokens, Drafted: 80 tokens, "
    "Per-position acceptance rate: 0.9\n"
)
SGLANG_LOG = (
    "[2026-11-23] Decode batch. #running-req: 1, #token: 90, accept len: 2.00, accept rate: 0.25, gen throughput 1\n"
    "[2026-11-23] Decode batch. #running-req: 1, #token: 99, accept len: 3.00, accept rate: 0.75, gen throughput 1\n"
)
VLLM_0_8_LOG = (
    "INFO 04-02 [metrics.py:53] SpecDecoding metrics: Draft acceptance rate: 25.0%, Accepted: 30 tokens, "
    "Drafted: 120 tokens\n"
)
FORMER_LOG = (
    "INFO 10-16 19:05:47 metrics.py:367] Speculative metrics: Draft acceptance rate: 0.642, System efficiency: 0.598, "
    "Number of speculative tokens: 3, Number of accepted tokens: {}, Number of draft tokens: {}, "
    "Number of emitted tokens: {}.\n"
)
BENCH = {
    "completed": 4,
    "total_output_tokens": 44,
    "spec_decode_acceptance_rate": 50.0,
    "spec_decode_acceptance_length": 2.8,
    "spec_decode_num_drafts": 5,
    "spec_decode_draft_tokens": 18,
    "spec_decode_accepted_tokens": 9,
    "spec_decode_per_position_acceptance_rates": [1.0, 0.6, 0.2],
}
LLAMA = {"prompt_n": 1, "predicted_n": 200, "predicted_ms": 11082.606, "draft_n": 347, "draft_n_accepted": 65}
CHAT = {"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": 54}}
FORMS = {
    "plain": ("a.jsonl", [{"accepted": [2, 0, 4], "drafted": 4}], (9, 3, 6, 12), True),
    "ragged": ("a.jsonl", [{"accepted": [2, 0], "drafted": [4, 2]}], (4, 2, 2, 6), True),
    "undrafted": ("a.jsonl", [{"accepted": [2, 0]}], (4, 2, None, None), True),
    "vllm record": ("a.jsonl", [VLLM], (53, 43, 10, 129), True),
    "vllm response": ("a.json", [{"metrics": {"speculative_decoding": VLLM}}], (53, 43, 10, 129), True),
    "vllm chat": ("a.json", [CHAT | {"metrics": {"speculative_decoding": VLLM}}], (53, 43, 10, 129), True),
    "vllm bench": ("a.json", [BENCH], (41.354, 32.354, 9, 18), False),
    "vllm choice": ("a.json", [{"choices": [{"speculative_decoding_stats": VLLM}]}], (53, 43, 10, 129), True),
    "sglang response": ("a.jsonl", [{"text": "x", "meta_info": SGLANG}], (100, 40, None, None), True),
    "sglang counts": (
        "a.jsonl",
        [SGLANG | {"spec_accept_token_num": 60, "spec_draft_token_num": 160}],
        (100, 40, 60, 160),
        True,
    ),
    "llama.cpp response": ("a.jsonl", [CHAT | {"timings": LLAMA}], (199, 134, 65, 347), True),
    "llama.cpp completion": ("a.jsonl", [{"content": "x", "timings": LLAMA}], (199, 134, 65, 347), True),
    "llama.cpp, stopped": ("a.jsonl", [LLAMA | {"predicted_n": 4, "draft_n_accepted": 6}], (7, 1, 6, 347), True),
    "counters": ("metrics.prom", COUNTERS, (250, 100, 150, 400), False),
    "vllm log": ("vllm.log", VLLM_LOG, (200, 80, 30, 80), False),
    "vllm 0.8 log": ("vllm.log", VLLM_0_8_LOG * 2, (0, 0, 60, 240), False),
    "former vllm log": (
        "vllm.log",
        FORMER_LOG.format(9, 9, 9) + FORMER_LOG.format(80, 120, 100),
        (100, 40, 60, 120),
        False,
    ),
    "sglang log": ("sglang.log", SGLANG_LOG, (5, 2, 1, 2), False),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_its_counts(form, tmp_path):
    name, content, expected, per_request = FORMS[form]
    text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
    (tmp_path / name).write_text(text)
    log = read_engine_log(tmp_path / name)
    assert log.per_request == per_request
    parts = [(count.emitted, count.rounds, count.accepted, count.drafted) for count in log.counts]
    sums = tuple(None if None in column else round(sum(column), 3) for column in zip(*parts, strict=True))
    assert sums == expected


RECORDED = Path(__file__).parent / "recorded"


def shares(log):
    """Of all rounds that drafted, how many accepted each position."""
    drafting = sum(count.drafting for count in log.counts)
    return [
        round(sum(reached) / drafting, 3) for reached in zip(*(count.by_position for count in log.counts), strict=True)
    ]


def efficiency(log):
    return round(sum(count.emitted for count in log.counts) / sum(count.rounds for count in log.counts), 3)


@pytest.mark.parametrize(
    ("name", "length", "positions"),
    [
        ("draft_model.jsonl", 2.247, [0.6, 0.341, 0.2, 0.106]),
        ("ngram.jsonl", 2.296, [0.6, 0.54, 0.52, 0.52]),
        ("stream.txt", 5.0, [1.0, 1.0, 1.0, 1.0]),
        ("metrics.txt", 1.451, [0.268, 0.105, 0.049, 0.03]),
        ("chat.jsonl", 1.44, [0.38, 0.04, 0.02, 0.0]),
        ("bench.json", 1.373, [0.284, 0.082, 0.007, 0.0]),
        ("vllm.log", 1.438, [0.38, 0.04, 0.02, 0.0]),
        ("llama_metrics.txt", 1.345, [0.276, 0.052, 0.017, 0.0]),
    ],
)
def test_what_engines_wrote_is_read(name, length, positions):
    log = read_engine_log(RECORDED / name)
    assert (efficiency(log), shares(log)) == (length, positions)


def test_an_answer_of_a_vllm_without_draft_says_what_is_missing():
    with pytest.raises(
        UserError, match=r"plain.jsonl: record 1: an answer without metrics.speculative_decoding; start"
    ):
        read_engine_log(RECORDED / "plain.jsonl")


def test_rounds_without_a_draft_count_where_tokens_are_known():
    """vLLM's own mean acceptance length leaves them out: the figure of a method that sometimes drafts nothing."""
    records = [json.loads(line) for line in (RECORDED / "ngram.jsonl").read_text().splitlines()]
    own = [record["metrics"]["speculative_decoding"] for record in records]
    drafting, accepted = (sum(one[name] for one in own) for name in ("num_spec_steps", "num_accepted_draft_tokens"))
    tokens = sum(record["usage"]["completion_tokens"] - 1 for record in records)  # the first is of the prompt's pass
    log = read_engine_log(RECORDED / "ngram.jsonl")
    assert efficiency(log) < tokens / (tokens - accepted) < (accepted + drafting) / drafting
    assert log.note == ""


@pytest.mark.parametrize(("name", "length"), [("llama_completions.jsonl", 1.328), ("llama.log", 1.337)])
def test_what_llama_cpp_answered_and_logged_is_the_same(name, length):
    """Answers count the round that drafts nothing, too."""
    log = read_engine_log(RECORDED / name)
    assert [(count.accepted, count.drafted) for count in log.counts] == [(5, 64), (2, 40), (9, 46), (4, 66)]
    assert (efficiency(log), log.per_request) == (length, True)


def test_former_lines_of_llama_cpp_say_nothing_of_rounds(tmp_path):
    (tmp_path / "a.log").write_text("slot: draft acceptance rate = 0.57576 (   19 accepted /    33 generated)\n")
    (count,) = read_engine_log(tmp_path / "a.log").counts
    assert (count.rounds, count.accepted, count.drafted) == (0, 19, 33)


@pytest.mark.parametrize(("row", "note"), [(VLLM, ONLY_DRAFTING), (VLLM | {"completion_tokens": 54}, "")])
def test_a_figure_without_all_rounds_says_so(row, note, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert read_engine_log(tmp_path / "a.json").note == note


def test_two_pages_of_counters_are_a_difference(tmp_path):
    after = COUNTERS.replace(" 60.0", " 100.0").replace(" 150.0", " 170.0") + "vllm:generation_tokens_total 9.0\n"
    (tmp_path / "after.txt").write_text(after)
    (tmp_path / "before.txt").write_text(COUNTERS)
    (count,) = read_engine_log(tmp_path / "after.txt", tmp_path / "before.txt").counts
    assert (count.emitted, count.rounds, count.accepted, count.drafted) == (60, 40, 20, 0)
    with pytest.raises(UserError, match="got a lower spec_decode_num_drafts in the second file: exchange"):
        read_engine_log(tmp_path / "before.txt", tmp_path / "after.txt")


@pytest.mark.parametrize(("tokens", "finished", "rounds"), [(300, 10, 143.071), (200, 10, 100)])
def test_counters_tell_rounds_without_a_draft_too(tokens, finished, rounds, tmp_path):
    more = f'vllm:generation_tokens_total 300.0\nvllm:request_success_total{{finished_reason="stop"}} {finished}.0\n'
    (tmp_path / "a.txt").write_text(COUNTERS + more.replace("300", str(tokens)))
    log = read_engine_log(tmp_path / "a.txt")
    assert (round(log.counts[0].rounds, 3), log.note) == (rounds, "")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.jsonl",
            '{"choices": [{"text": "x"}], "metrics": null}',
            "start vLLM with --per-request-spec-decode-metrics",
        ),
        ("a.json", '{"spec_decode_num_drafts": 5}', "not a record of vLLM bench ('spec_decode_accepted_tokens')"),
        ("a.txt", 'data: {"id": "x", "choices": []}', "record 1: an answer without metrics.speculative_decoding"),
        ("a.txt", 'data: {"id": ', "a piece of a stream is not JSON"),
        ("a.jsonl", '{"text": "x"}', "record 1: holds no accepted lengths"),
        ("a.jsonl", '{"accepted": 3}', "record 1: not a record of accepted lengths"),
        ("a.jsonl", '{"accepted": [-1]}', "expected a number of 0 or more, got -1.0"),
        ("a.jsonl", '{"accepted": []}', "holds no verified round"),
        ("a.jsonl", '{"num_spec_steps": 3}', "not a record of vLLM requests ('num_accepted_draft_tokens')"),
        ("a.log", "nothing here", "holds no accepted lengths; expected requests with `accepted`"),
        ("metrics.txt", "vllm:spec_decode_num_drafts_total 0.0", "holds no accepted lengths"),
    ],
)
def test_another_file_is_one_line(name, text, says, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        read_engine_log(tmp_path / name)
    assert says.replace("-1.0", "-1") in str(caught.value)
    assert "\n" not in str(caught.value)
