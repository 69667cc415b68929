import json

import pytest

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
FORMS = {
    "plain": ("a.jsonl", [{"accepted": [2, 0, 4], "drafted": 4}], (9, 3, 6, 12), True),
    "ragged": ("a.jsonl", [{"accepted": [2, 0], "drafted": [4, 2]}], (4, 2, 2, 6), True),
    "undrafted": ("a.jsonl", [{"accepted": [2, 0]}], (4, 2, None, None), True),
    "vllm record": ("a.jsonl", [VLLM], (53, 43, 10, 129), True),
    "vllm response": ("a.json", [{"metrics": {"speculative_decoding": VLLM}}], (53, 43, 10, 129), True),
    "vllm choice": ("a.json", [{"choices": [{"speculative_decoding_stats": VLLM}]}], (53, 43, 10, 129), True),
    "sglang response": ("a.jsonl", [{"text": "x", "meta_info": SGLANG}], (100, 40, None, None), True),
    "sglang counts": (
        "a.jsonl",
        [SGLANG | {"spec_accept_token_num": 60, "spec_draft_token_num": 160}],
        (100, 40, 60, 160),
        True,
    ),
    "counters": ("metrics.prom", COUNTERS, (250, 100, 150, 400), False),
    "vllm log": ("vllm.log", VLLM_LOG, (200, 80, 30, 80), False),
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
    assert tuple(None if None in column else sum(column) for column in zip(*parts, strict=True)) == expected


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
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
