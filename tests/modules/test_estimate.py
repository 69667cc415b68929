"""The estimate against the memory that a fit really takes, and its laws."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from lightning.pytorch import LightningModule
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tempspec.errors import UserError
from tempspec.models.conditioning import condition
from tempspec.models.loading import ModelOptions, load_model, save_model
from tempspec.modules.estimate import Way, estimate, sizes, ways
from tempspec.modules.pair import Pair

FACTOR = 2
"""How far the estimate may be off, as docs/scale.md says."""
WORDS = 8000

FIT = r"""
import gc, json, re, resource, sys
from tempspec.__main__ import main
def peak():  # getrusage would count what the process that started this one held
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) * 1024
def held():
    gc.collect()
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize()
first, second = json.loads(sys.argv[1])
assert main(first) == 0
before = held()
assert main(second) == 0
print("bytes", peak() - before)
"""


def llama(layers, hidden):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=8,
            max_position_embeddings=256,
            tie_word_embeddings=False,
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A larger pair, a tiny one of the same tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("estimate")
    backend = Tokenizer(WordLevel({"</s>": 0} | {f"w{number}": number for number in range(1, WORDS)}, unk_token="w1"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="w1")
    for name, shape in {"target": (4, 320), "draft": (2, 320), "tiny": (1, 16)}.items():
        save_model(llama(*shape), tokenizer, folder / name)
    text = " ".join(f"w{1 + number % (WORDS - 1)}" for number in range(0, 5000, 3))
    (folder / "text.jsonl").write_text((json.dumps({"text": text}) + "\n") * 3)
    return folder


def pair(folder, **options):
    return Pair(str(folder / "target"), str(folder / "draft"), None, ModelOptions(**options))


def command(folder, target, draft, length, batch):
    data = f"{{train: {{path: {folder}/text.jsonl}}, max_length: {length}, batch_size: {batch}, "
    data += f"validation_fraction: 0, cache_dir: {folder}/cache}}"
    trainer = "{max_steps: 2, accelerator: cpu, enable_progress_bar: false, enable_checkpointing: false}"
    path = folder / f"{target}.yaml"
    path.write_text(
        f"run: {folder}/run-{target}\ntrainer: {trainer}\ndata: {data}\n"
        f"model: {{target: {folder}/{target}, draft: {folder}/{draft}}}\n"
    )
    return ["fit", "--config", str(path)]


def test_a_fit_takes_what_was_estimated_within_the_factor(folder):
    commands = [command(folder, "tiny", "tiny", 8, 1), command(folder, "target", "draft", 128, 4)]
    done = subprocess.run([sys.executable, "-c", FIT, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split("bytes ")[1])
    expected = estimate(sizes(pair(folder), batch_size=4, length=128), Way("one device", 1)).total
    assert measured / FACTOR < expected < measured * FACTOR


def test_more_devices_never_take_more_of_each(folder):
    found = sizes(pair(folder), batch_size=1, length=16)
    for one, two in zip(ways(4)[1:], ways(8)[1:], strict=True):
        assert estimate(found, two).total <= estimate(found, one).total
    assert len({estimate(found, way).total for way in ways(8)}) == 5


def test_weights_count_exactly(folder):
    module: LightningModule = llama(2, 320)
    found = sizes(pair(folder), batch_size=1, length=16)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert found.draft_weights == 4 * parameters
    assert found.states == pytest.approx(8 * parameters, rel=0.01)
    half = sizes(pair(folder, dtype="bfloat16"), batch_size=1, length=16)
    assert half.target_layers * 2 == found.target_layers


def test_a_cached_teacher_takes_the_target_away(folder):
    whole, cached = (sizes(pair(folder), batch_size=1, length=16, from_cache=told) for told in (False, True))
    for way in ways(8):
        assert estimate(cached, way) == replace(estimate(whole, way), target=0)


def test_changes_by_temperature_count(folder):
    plain, conditioned = (sizes(pair(folder), batch_size=1, length=16, conditioning_rank=rank) for rank in (0, 4))
    draft = condition(load_model(str(folder / "draft")), rank=4)
    assert conditioned.draft_weights == 4 * sum(parameter.numel() for parameter in draft.parameters())
    for part in ("draft_weights", "draft_layer", "states", "activations"):
        assert getattr(conditioned, part) > getattr(plain, part)


def test_chunks_of_a_named_size_and_whole_logits(folder):
    default, half, whole = (
        sizes(pair(folder), batch_size=4, length=128, chunk_tokens=tokens) for tokens in (512, 256, 0)
    )
    head = 4 * WORDS * 320
    assert half.loss - head == (default.loss - head) / 2
    assert whole.loss == whole.whole == default.loss - head  # 512 tokens are the whole batch


def test_a_reference_draft_counts_on_every_device(folder):
    alone, selected = (
        sizes(pair(folder), batch_size=1, length=16, reference=path) for path in (None, str(folder / "draft"))
    )
    weights = sum(parameter.numel() for parameter in load_model(str(folder / "draft")).parameters())
    for way in ways(8):
        more = estimate(selected, way).total - estimate(alone, way).total
        assert more == estimate(selected, way).reference
        assert 4 * weights < more < 4.2 * weights


def test_a_draft_of_the_targets_layers(folder):
    made = Pair(str(folder / "target"), None, 2, ModelOptions())
    assert sizes(made, batch_size=1, length=16) == sizes(pair(folder), batch_size=1, length=16)


def test_no_draft(folder):
    with pytest.raises(UserError, match="needs a draft"):
        sizes(Pair(str(folder / "target"), None, None, ModelOptions()), batch_size=1, length=16)
