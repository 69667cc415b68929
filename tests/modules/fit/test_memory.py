"""The estimate against the memory that a fit really takes, and its laws."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.fit_memory import measured
from tempspec import registry
from tempspec.errors import UserError
from tempspec.interfaces import LossContext
from tempspec.models.conditioning import condition
from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import ModelOptions, load_model, save_model
from tempspec.models.pair import Pair
from tempspec.models.tapping import head_target
from tempspec.modules.fit.memory import Way, estimate, sizes, ways
from tempspec.modules.fit.objective import Objective, chunked
from tempspec.modules.fit.rehearsal import Live
from tempspec.modules.outputs import HiddenStates, LogitPairs
from tests import tiny

FACTOR = 1.2
"""How far the estimate may be off, as docs/scale.md says."""
WORDS = 8000
ROWS = {"short": (16, 64), "long": (1, 1024)}


def llama(layers, hidden):
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    return tiny.llama(0, WORDS, layers, context=1024, hidden_size=hidden, intermediate_size=3 * hidden, **heads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A larger pair, a tiny one of the same tokenizer, and a text."""
    folder = tmp_path_factory.mktemp("estimate")
    words = ["</s>", *(f"w{number}" for number in range(1, WORDS))]
    tokenizer = tiny.tokenizer(words, unknown="w1", eos_token="</s>", unk_token="w1")
    for name, shape in {"target": (7, 320), "draft": (2, 320), "tiny": (7, 16)}.items():
        save_model(llama(*shape), tokenizer, folder / name)
    text = " ".join(f"w{1 + 3 * number % (WORDS - 1)}" for number in range(2047))  # two whole long rows, with the end
    (folder / "text.jsonl").write_text((json.dumps({"text": text}) + "\n") * 3)
    return folder


def pair(folder, **options):
    return Pair(str(folder / "target"), str(folder / "draft"), None, ModelOptions(**options))


@cache
def pair_sizes(folder, batch_size=1, length=16, **options):
    """Those of the pair: each is a rehearsal, and several tests ask for the same."""
    return sizes(pair(folder), batch_size=batch_size, length=length, **options)


@cache
def head_sizes(folder, batch=4, length=128, steps=3, **options):
    made = Pair(str(folder / "target"), None, None, ModelOptions(), head=Eagle3())
    return sizes(made, batch_size=batch, length=length, head_steps=steps, **options)


def most(found, kind):
    """The most bytes of a kind at any time."""
    return max(getattr(moment, kind) for moment in found.moments)


def command(folder, target, length, batch, *more, stage="fit", **draft):
    config = {
        "run": f"{folder}/run-{target}",
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_checkpointing": False,
        },
        "model": {"target": f"{folder}/{target}", **draft},
        "data": {
            "train": {"path": f"{folder}/text.jsonl"},
            "max_length": length,
            "batch_size": batch,
            "validation_fraction": 0,
            "cache_dir": f"{folder}/cache",
        },
    }
    path = folder / f"{len(list(folder.glob('*.yaml')))}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return [stage, "--config", str(path), *more]


@pytest.mark.slow
@pytest.mark.parametrize("rows", ROWS)
def test_a_fit_takes_what_was_estimated_within_the_factor(folder, rows):
    commands = [command(folder, "tiny", 8, 1, draft=f"{folder}/tiny")]
    expected, (batch, length) = {}, ROWS[rows]
    for attention in ("eager", "sdpa"):
        more = "--model.loading.attn_implementation", attention
        commands.append(command(folder, "target", length, batch, *more, draft=f"{folder}/draft"))
        found = sizes(pair(folder, attn_implementation=attention), batch_size=batch, length=length)
        expected[attention] = estimate(found, Way("one device", 1)).total
    quotients = {case: expected[case] / got for case, got in zip(expected, measured(commands), strict=True)}
    assert all(1 / FACTOR < quotient < FACTOR for quotient in quotients.values()), quotients
    matrices = 2 * 8 * batch * length**2 * 4  # of both layers' heads, which only eager attention keeps
    assert expected["eager"] - expected["sdpa"] == pytest.approx(matrices, rel=0.2)


HEADS = {
    "one step": {"steps": 1},
    "three steps": {},
    "a draft vocabulary": {"vocabulary": 2000},
    "features": {"cached": True},
    "long rows": {"rows": "long"},
    "long rows, steps taken again": {"rows": "long", "again": True},
    "all temperatures": {"rank": 8},
}


@pytest.mark.slow
def test_a_heads_fit_takes_what_was_estimated(folder):
    features, expected = ("--model.features.folder", f"{folder}/features"), {}
    commands = [
        command(folder, "tiny", 8, 1, head="Eagle3"),
        command(folder, "target", 64, 16, *features, "--cache-features", stage="generate", head="Eagle3"),
    ]
    for name, case in HEADS.items():
        batch, length = ROWS[case.get("rows", "short")]
        vocabulary, steps, cached = case.get("vocabulary"), case.get("steps", 3), case.get("cached", False)
        own = {"conditioning_rank": case.get("rank", 0), "gradient_checkpointing": case.get("again", False)}
        kind = {"class_path": "Eagle3", "init_args": {"draft_vocabulary": vocabulary}}
        options = {"head": kind, "head_training": {"steps": steps}} | own
        commands.append(command(folder, "target", length, batch, *features * cached, **options))
        made = Pair(str(folder / "target"), None, None, ModelOptions(), head=Eagle3(draft_vocabulary=vocabulary))
        found = sizes(made, batch_size=batch, length=length, head_steps=steps, from_features=cached, **own)
        expected[name] = estimate(found, Way("one device", 1)).total
    quotients = {name: expected[name] / got for name, got in zip(HEADS, measured(commands)[1:], strict=True)}
    assert all(1 / FACTOR < quotient < FACTOR for quotient in quotients.values()), quotients


@pytest.mark.slow
def test_a_heads_step_counts_what_it_is_made_of(folder):
    plain, single = (head_sizes(folder, steps=steps, chunk_tokens=64) for steps in (3, 1))
    assert single.draft_weights == plain.draft_weights
    assert 2 < most(plain, "activations") / most(single, "activations") < 4
    assert most(plain, "logits") < 1.5 * most(single, "logits")  # those of a chunk, however many steps
    again, conditioned = head_sizes(folder, gradient_checkpointing=True), head_sizes(folder, conditioning_rank=4)
    assert most(again, "activations") < 0.8 * most(plain, "activations")
    assert conditioned.draft_weights > plain.draft_weights
    assert estimate(head_sizes(folder, chunk_tokens=0), Way("one device", 1)).total > 0


def test_a_heads_folder_is_estimated_by_its_own_sizes(folder, tmp_path):
    known = head_target(load_model(str(folder / "target")))
    kind = Eagle3(draft_vocabulary=100)
    kind.save(kind.build(known, torch.arange(100)), known, tmp_path / "head", "plain", torch.bfloat16)
    made = Pair(str(folder / "target"), str(tmp_path / "head"), None, ModelOptions(), head=Eagle3())
    found, new = sizes(made, batch_size=1, length=16), head_sizes(folder, 1, 16)
    assert found.draft_weights == new.draft_weights - 4 * (WORDS - 100) * 320
    assert not found.whole  # a head is never in parts


def test_more_devices_never_take_more_of_each(folder):
    found = pair_sizes(folder)
    for one, two in zip(ways(4)[1:], ways(8)[1:], strict=True):
        assert estimate(found, two).total <= estimate(found, one).total
    assert len({estimate(found, way).total for way in ways(8)}) == 5


def test_weights_count_exactly(folder):
    module: LightningModule = llama(2, 320)
    found = pair_sizes(folder)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert found.draft_weights == 4 * parameters
    assert found.states == pytest.approx(8 * parameters, rel=0.01)
    half = sizes(pair(folder, dtype="bfloat16"), batch_size=1, length=16)
    assert half.target_layers * 2 == found.target_layers


def test_a_cached_teacher_takes_the_target_away(folder):
    whole, cached = pair_sizes(folder), pair_sizes(folder, from_cache=True)
    for way in ways(8):
        assert estimate(cached, way) == replace(estimate(whole, way), target=0)


def test_changes_by_temperature_count(folder):
    plain, conditioned = pair_sizes(folder, 4, 128), pair_sizes(folder, 4, 128, conditioning_rank=4)
    draft = condition(load_model(str(folder / "draft")), rank=4)
    assert conditioned.draft_weights == 4 * sum(parameter.numel() for parameter in draft.parameters())
    for part in ("draft_weights", "draft_layer", "states"):
        assert getattr(conditioned, part) > getattr(plain, part)
    assert most(conditioned, "activations") > most(plain, "activations")


def test_chunks_of_a_named_size_and_whole_logits(folder):
    default, half, whole = (pair_sizes(folder, 4, 128, chunk_tokens=tokens) for tokens in (512, 256, 0))
    head = 4 * WORDS * 320
    assert most(half, "logits") - head == pytest.approx((most(default, "logits") - head) * 256 / (4 * 127), rel=0.03)
    assert set(whole.moments) == set(whole.whole)
    assert most(whole, "logits") > most(half, "logits")


DIVERGENCES = {
    "ForwardKL": {},
    "JensenShannon": {"beta": 0.3},
    "TotalVariation": {},
    "LKHybrid": {},
    "LogitDifference": {},
    "NegativeLogAcceptance": {},
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_loss_counts_by_its_own_code(name):
    def peak(mode):
        with mode:
            weight_VH, hidden_NH = torch.ones(64, 8).requires_grad_(), torch.ones(40, 8).requires_grad_()
            one_GN = torch.ones(1, 40)
            divergence = registry.get("divergences", name)(**DIVERGENCES[name])
            objective = Objective(divergence, one_GN, one_GN, one_GN[0, :1], one_GN[0], LossContext())
            with Live([weight_VH, hidden_NH, one_GN]) as live:
                heads = HiddenStates(hidden_NH, weight_VH.detach()), HiddenStates(hidden_NH, weight_VH)
                chunked(LogitPairs(*heads, 64, 40), objective).total.backward()
        return max(moment.activations for moment in live.largest("chunks"))

    real = peak(nullcontext())
    assert peak(FakeTensorMode()) == real
    assert 5 < real / (40 * 64 * 4) < 16


def test_layers_that_are_computed_again_keep_their_input_alone(folder):
    plain, again = pair_sizes(folder, 4, 128), pair_sizes(folder, 4, 128, gradient_checkpointing=True)
    assert most(again, "activations") < 0.7 * most(plain, "activations")
    assert again.draft_weights == plain.draft_weights


def test_mixed_precision_takes_half_of_the_activations(folder):
    full, mixed = pair_sizes(folder, 4, 128), pair_sizes(folder, 4, 128, precision="bf16-mixed")
    assert 0.4 < most(mixed, "activations") / most(full, "activations") < 0.9
    assert mixed.draft_weights == full.draft_weights
    assert 2 * pair_sizes(folder, precision="bf16-true").draft_weights == full.draft_weights


def test_a_reference_draft_counts_on_every_device(folder):
    alone, selected = pair_sizes(folder), pair_sizes(folder, reference=str(folder / "draft"))
    weights = sum(parameter.numel() for parameter in load_model(str(folder / "draft")).parameters())
    for way in ways(8):
        more = estimate(selected, way).total - estimate(alone, way).total
        assert more == estimate(selected, way).reference
        assert 4 * weights < more < 4.2 * weights


def test_a_draft_of_the_targets_layers(folder):
    made = Pair(str(folder / "target"), None, 2, ModelOptions())
    assert sizes(made, batch_size=1, length=16) == pair_sizes(folder)


def test_no_draft(folder):
    with pytest.raises(UserError, match="needs a draft"):
        sizes(Pair(str(folder / "target"), None, None, ModelOptions()), batch_size=1, length=16)
