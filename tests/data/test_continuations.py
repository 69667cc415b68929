from tempspec.data.continuations import continuations
from tempspec.data.encoding import Encoder
from tempspec.data.prompts import PromptSource, read_prompts


def test_a_prompt_without_a_response_has_no_continuation(tokenizer, jsonl):
    source = PromptSource(jsonl([{"prompt": "the fox"}, {"prompt": "a red", "response": " hill"}]))
    encoder = Encoder(tokenizer)
    found = continuations(source, read_prompts("s", source, encoder), encoder, 8)
    assert [tokenizer.decode(row["prompt_ids"], skip_special_tokens=True) for row in found] == ["a red"]
