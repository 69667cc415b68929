"""Every architecture decodes as its own `generate` does, or is refused in one line."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tempspec.decoding.engine import Engine
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import TokenwiseRejection
from tests.models.test_ragged import CONFIGS, SHAPE, longrope

from .engines import greedy_text, run

HEADS = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SHORT = {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
NO_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def gpt_neo(window):
    kinds = [[["global", "local"], 1]]
    return transformers.GPTNeoConfig(
        vocab_size=40, hidden_size=32, num_layers=2, num_heads=4, attention_types=kinds, window_size=window, **NO_IDS
    )


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
DECODED = CONFIGS | {
    "phi3-longrope": longrope(44),
    "phimoe-longrope": longrope(44, "phimoe"),
    "llama-dynamic": transformers.LlamaConfig(**SHAPE | {"max_position_embeddings": 44}, rope_parameters=DYNAMIC),
    "phi": transformers.PhiConfig(**SHAPE),
    "falcon": transformers.FalconConfig(**HEADS, **NO_IDS, alibi=False),
    "mpt": transformers.MptConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
    "gptj": transformers.GPTJConfig(**SHORT, **NO_IDS, rotary_dim=4, n_positions=128),
    "gpt-neo-short-rows": gpt_neo(48),
}
REFUSED = {
    "bloom": transformers.BloomConfig(**HEADS),
    "falcon-alibi": transformers.FalconConfig(**HEADS, alibi=True, multi_query=False),
    "openai-gpt": transformers.OpenAIGPTConfig(**SHORT),
    "rwkv": transformers.RwkvConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2),
    "gpt-neo": gpt_neo(40),
}


def model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)  # logits far from uniform
    return model


def requests():
    generator = torch.Generator().manual_seed(3)
    prompts = [tuple(torch.randint(2, 40, (length,), generator=generator).tolist()) for length in (3, 19, 33)]
    return [Request(prompt, 0.0, max_new_tokens=10, key=str(place)) for place, prompt in enumerate(prompts)]


@pytest.mark.parametrize("name", DECODED)
def test_the_text_is_that_of_generate(name):
    target = model(DECODED[name])
    for completion in run(Engine(target, 40, slots=3), requests()):
        assert completion.tokens == greedy_text(target, completion.request.prompt, 10)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_go_astray_is_one_line(name):
    with pytest.raises(UserError, match="choose another model") as caught:
        run(Engine(model(REFUSED[name]), 40, slots=3), requests())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["phi3", "phimoe"])
def test_rows_longer_than_longropes_short_factors_are_one_line(kind):
    with pytest.raises(
        UserError, match=r"has 33 tokens and may get 10 more, expected at most 42 together: there"
    ) as no:
        run(Engine(model(longrope(42, kind)), 40, slots=3), requests())
    assert "\n" not in str(no.value)


def test_a_longrope_draft_drafts_the_same_in_any_company():
    target, draft = model(CONFIGS["llama"]), model(longrope(24))
    draft.load_state_dict(draft.state_dict() | {"lm_head.weight": target.lm_head.weight})

    def counts(asked):
        engine = Engine(
            target, 40, verifier=TokenwiseRejection(), drafter=CausalLM(), length=FixedLength(3), draft=draft, slots=3
        )
        return {done.request.key: (done.tokens, done.drafted, done.accepted) for done in engine.run(asked)}

    several = [replace(request, target_temperature=1.0, max_new_tokens=30) for request in requests()]
    together = counts(several)
    assert together == {key: value for one in several for key, value in counts([one]).items()}
    assert 3 in together["0"][1]
    assert not any(together["2"][1])  # nothing is drafted behind the switch
