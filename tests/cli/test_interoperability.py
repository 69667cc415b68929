"""What a run leaves for other programs: the draft's folder, its card, and counts to compare with an engine's."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tempspec.decoding.engine import Engine
from tempspec.interfaces import Request
from tempspec.models.loading import load_model
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import GreedyMatch

FEW = ("--model.sweep.max_new_tokens", 4, "--model.sweep.timing_prompts", 0)


@pytest.fixture
def distilled(run, world, tmp_path):
    """A run folder with a finished fit."""
    code, _, error = run("fit", "--config", world / "pair.yaml")
    assert code == 0, error
    return tmp_path / "runs" / "pair"


def test_the_folder_has_what_an_engine_asks_for(distilled):
    folder = distilled / "fit" / "draft"
    config = AutoConfig.from_pretrained(folder)
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.vocab_size == 16
    assert config.max_position_embeddings == 64
    assert GenerationConfig.from_pretrained(folder) is not None
    assert len(AutoTokenizer.from_pretrained(folder)) == 16
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".py", ".bin", ".pt", ".pkl"))]


def assisted(target, draft, prompt, tokens):
    """Text and target calls of transformers' own assisted generation."""
    calls = []
    hook = target.register_forward_hook(lambda *_: calls.append(1))
    draft.generation_config.num_assistant_tokens = 4
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": 0, "eos_token_id": -1}
    text = target.generate(ids, attention_mask=torch.ones_like(ids), assistant_model=draft, **options)
    hook.remove()
    return text[0, len(prompt) :].tolist(), len(calls)


def test_transformers_accepts_what_we_accept(distilled, world):
    target = load_model(str(world / "target"))
    draft = AutoModelForCausalLM.from_pretrained(distilled / "fit" / "draft").eval()
    engine = Engine(target, 16, verifier=GreedyMatch(), drafter=CausalLM(), length=FixedLength(4), draft=draft)
    for prompt in ((3, 4, 5), (7, 2, 9, 11), (14,)):
        (ours,) = engine.run([Request(prompt, 0.0, max_new_tokens=24)])
        assert (ours.tokens, ours.target_calls) == assisted(target, draft, prompt, 24)


def test_the_card_says_what_was_measured_and_what_was_not(distilled, run, world):
    file = distilled / "fit" / "draft" / "README.md"
    card = ModelCard.load(file)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None  # a local folder is no hub name
    assert "- divergence: ForwardKL" in card.text
    assert card.text.count("not measured with this draft") == 2
    assert run("validate", "--config", world / "pair.yaml", "--before")[0] == 0
    assert ModelCard.load(file).text.count("not measured with this draft") == 2
    for command in ("validate", "predict"):
        options = FEW if command == "predict" else ()
        code, _, error = run(command, "--config", world / "pair.yaml", *options)
        assert code == 0, error
    text = ModelCard.load(file).text
    assert "not measured" not in text
    assert "| held | analytic | 1.0 | 1.0 |" in text
    assert "| p | token | 1.0 | 1.0 | 3 |" in text


def test_an_engines_counts_stand_beside_ours(distilled, run, world, tmp_path):
    options = ("--model.draft", distilled / "fit" / "draft", "--model.sweep.target_temperatures", "[1.0]", *FEW)
    assert run("predict", "--config", world / "pair.yaml", *options)[0] == 0
    (tmp_path / "e.jsonl").write_text("\n".join(json.dumps({"accepted": [n % 5] * 3, "drafted": 4}) for n in range(9)))
    code, printed, error = run("import-results", "e.jsonl", "--run", distilled)
    assert code == 0, error
    theirs, ours = (line for line in printed.splitlines() if ("e.jsonl" in line or "token, p" in line))
    assert "9" in theirs.split()
    assert "[" in theirs
    assert "T = 1" in ours
    assert "above T = 0 an engine's draft may have another temperature" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no.jsonl"], "no.jsonl: no such file"),
        ([], "files"),
        (["e.jsonl", "--run", "nowhere"], "give a run whose predict is finished"),
    ],
)
def test_a_wrong_import_is_one_line(arguments, says, run, tmp_path):
    (tmp_path / "e.jsonl").write_text('{"accepted": [1]}')
    code, _, error = run("import-results", *arguments)
    assert code == 2
    assert says in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_fit_says_that_vllm_refuses_another_number_of_rows(run, world, tmp_path, caplog):
    wider = load_model(f"{world}/target")
    wider.resize_token_embeddings(24, mean_resizing=False)
    wider.save_pretrained(tmp_path / "wider")
    AutoTokenizer.from_pretrained(world / "target").save_pretrained(tmp_path / "wider")
    said = []
    for target in (world / "target", tmp_path / "wider"):
        line = ("fit", "--config", world / "pair.yaml", "--model.target", target, "--trainer.max_steps", 1)
        with caplog.at_level("INFO", logger="lightning.pytorch"):
            caplog.clear()
            code, _, error = run(*line, "--run", tmp_path / target.name)
        assert code == 0, error
        said.append([text for text in caplog.messages if "vLLM refuses a draft model with vocab_size 16" in text])
    assert [len(lines) for lines in said] == [0, 1]
