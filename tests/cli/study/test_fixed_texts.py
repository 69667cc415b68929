import json

from tempspec.cli.study.fixed_texts import continuations
from tempspec.data.encoding import Encoder
from tempspec.data.prompts import PromptSource, read_prompts
from tempspec.models.loading import load_tokenizer


def test_a_prompt_without_a_response_has_no_continuation(world, tmp_path):
    rows = [{"prompt": "w1 w2"}, {"prompt": "w3 w4", "response": " w5"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = PromptSource(str(tmp_path / "p.jsonl"))
    tokenizer = load_tokenizer(str(world / "target"))
    encoder = Encoder(tokenizer)
    found = continuations(source, read_prompts("s", source, encoder), encoder, 8)
    assert [tokenizer.decode(row["prompt_ids"], skip_special_tokens=True) for row in found] == ["w3 w4"]
