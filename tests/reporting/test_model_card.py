import pytest
import yaml

from tempspec.reporting.model_card import draft_card
from tests.gguf_file import byte_level, small_llama, write_gguf


def card(tmp_path, target, **loading):
    (tmp_path / "fit").mkdir()
    model = {"target": target, "draft_layers": 1, "loading": loading or None}
    (tmp_path / "fit" / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": {"train": None}}))
    return draft_card(tmp_path).content


def test_a_card_says_that_the_target_was_a_gguf_file(tmp_path):
    tokenizer = byte_level()
    write_gguf(tmp_path / "small-Q8_0.gguf", small_llama(tokenizer), tokenizer)
    text = card(tmp_path, str(tmp_path / "small-Q8_0.gguf"))
    assert "- target: `small-Q8_0.gguf`, dequantised from Q8_0 of small-Q8_0.gguf" in text
    assert 'from_pretrained("path/to/its/folder", gguf_file="small-Q8_0.gguf")' in text


def test_a_card_of_a_gguf_file_of_the_hub_names_it(tmp_path):
    text = card(tmp_path, "someone/a-GGUF:a-Q4_0.gguf")
    assert "- target: `someone/a-GGUF:a-Q4_0.gguf`, dequantised from GGUF of a-Q4_0.gguf" in text
    assert 'from_pretrained("someone/a-GGUF", gguf_file="a-Q4_0.gguf")' in text


@pytest.mark.parametrize(
    ("loading", "said"),
    [({}, "`someone/a`\n"), ({"quantization": {"quant_method": "torchao"}}, "`someone/a`, quantised by torchao when")],
)
def test_a_card_says_how_the_target_was_quantised(tmp_path, loading, said):
    text = card(tmp_path, "someone/a", **loading)
    assert f"- target: {said}" in text
    assert 'from_pretrained("someone/a")' in text


def test_a_card_has_the_commands_that_use_the_trained_law(tmp_path):
    text = card(tmp_path, "someone/a")
    assert "vllm serve someone/a " in text
    assert '"draft_sample_method": "probabilistic"' in text
    assert "--speculative-algorithm STANDALONE" in text
    assert "folded first" not in text


@pytest.mark.parametrize(("rank", "folded"), [(0, False), (4, True)])
def test_a_card_says_that_a_conditioned_head_is_folded(tmp_path, rank, folded):
    (tmp_path / "fit").mkdir()
    model = {"target": "someone/a", "head": "Eagle3", "conditioning_rank": rank}
    (tmp_path / "fit" / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": {"train": None}}))
    assert ("folded first: `tempspec export`" in draft_card(tmp_path).content) is folded
