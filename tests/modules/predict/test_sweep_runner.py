import gc
import json
import math
import shutil
import weakref
from functools import partial
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from tempspec.data.module import TextDataModule
from tempspec.data.prompts import PromptSource
from tempspec.decoding.engine import Engine
from tempspec.decoding.sweep import Sweep
from tempspec.errors import UserError
from tempspec.interfaces import BASELINE, Request
from tempspec.metrics.collection import SweepMetrics
from tempspec.metrics.rows import cell_of
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.predict.dealing import FAILED
from tempspec.modules.predict.row_metrics import sweep_metrics
from tempspec.modules.predict.row_store import RowStore
from tempspec.plugins.drafters import PromptLookup
from tempspec.plugins.lengths import Goodput
from tempspec.plugins.lossy_verifiers import MARS, Ensemble
from tempspec.plugins.verifiers import BlockVerification, GreedyMatch, TokenwiseRejection
from tempspec.reporting.records import write_metrics_json
from tests.modules.runs import data_module, quiet_trainer
from tests.slow import slow_but

VERIFIERS = {"token": TokenwiseRejection(), "block": BlockVerification(), "greedy": GreedyMatch()}


def module_of(pair, sweep=None, **options):
    default = Sweep([0.0, 1.0], max_new_tokens=12, slots=3, timing_prompts=1, samples=2)
    options = {"draft": str(pair / "draft"), "verifiers": VERIFIERS} | options
    return DistillationModule(str(pair / "target"), sweep=sweep or default, **options)


@pytest.fixture
def make(pair):
    return partial(module_of, pair)


def predict(module, data, trainer):
    trainer().predict(module, data, return_predictions=False)
    return module.runner.store.rows(module.runner.order)


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """The default sweep, done once: its module, run folder and rows, which nobody may change."""
    folder = tmp_path_factory.mktemp("whole")
    module, data = module_of(pair), data_module(pair, folder / "cache")
    rows = predict(module, data, partial(quiet_trainer, folder / "run"))
    return SimpleNamespace(module=module, run=folder / "run", rows=rows)


@pytest.fixture
def done(whole, tmp_path):
    """The same in the run folder of this test."""
    shutil.copytree(whole.run, tmp_path / "run")
    return whole


TIMES = ("seconds_prefill", "seconds_draft", "seconds_verify", "seconds_overhead")


CLOSED_FORMS = ("expected_acceptance", "expected_length")


def without_times(rows, *more):
    return [{name: value for name, value in row.items() if name not in (*TIMES, "timed_in", *more)} for row in rows]


def assert_same_rows(found, whole):
    """Equal but for the last digits of closed forms: logits depend in theirs on a row's neighbours."""
    assert without_times(found, *CLOSED_FORMS) == without_times(whole, *CLOSED_FORMS)
    for left, right in zip(found, whole, strict=True):
        for name in CLOSED_FORMS:
            assert left[name] == pytest.approx(right[name], abs=1e-4)


def test_every_cell_of_the_sweep_gets_its_rows(whole):
    rows = whole.rows
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys))
    acceptance = [row for row in rows if row["pass"] == "acceptance"]
    # 6 + 2 prompts; token and block: one sample at 0 and two at 1; greedy: temperature 0 alone
    assert len(acceptance) == (6 + 2) * (3 + 3 + 1)
    timing = [row for row in rows if row["pass"] == "timing"]
    # one prompt of each set; at 0: baseline and three rules; at 1: baseline and two
    assert len(timing) == 2 * (4 + 3)
    assert {(row["timed_on"], row["timed_in"]) for row in acceptance} == {("", "")}
    ((machine, session),) = {(row["timed_on"], row["timed_in"]) for row in timing}
    assert "threads, torch" in machine
    assert session.endswith("UTC")
    assert all(bool(row["text"]) == (row["tokens"] != [0]) for row in rows)


def test_rows_hold_what_the_engine_alone_gives(whole, data):
    module = whole.module
    row = next(row for row in whole.rows if row["key"].startswith("acceptance/block/chat/3/t1/d1/s1"))
    prompt = data.prompt_sets()["chat"][3]
    request = Request(prompt.ids, 1.0, max_new_tokens=12, seed=row["seed"], stop_ids=frozenset({0}))
    engine = Engine(
        module.pair.target_model,
        24,
        verifier=BlockVerification(),
        drafter=module.runner.drafter,
        length=module.runner.length,
        draft=module.draft,
    )
    (completion,) = engine.run([request])
    assert row["tokens"] == completion.tokens
    assert row["accepted"] == completion.accepted
    assert row["prompt_key"] == prompt.key


def test_verifiers_agree_at_temperature_zero(whole):
    texts = {}
    for row in whole.rows:
        if row["target_temperature"] == 0:
            texts.setdefault((row["prompt_set"], row["prompt_index"]), set()).add(tuple(row["tokens"]))
    assert all(len(found) == 1 for found in texts.values())


@pytest.mark.parametrize(("context", "told"), [(8, True), (9, False)])
def test_rows_that_may_outgrow_the_draft_are_told_of_once(make, data, trainer, caplog, context, told):
    module = make(Sweep([0.0], max_new_tokens=4, timing_prompts=0), verifiers={"token": TokenwiseRejection()})
    module.configure_model()
    module.draft.config.max_position_embeddings = context  # prompts have 5 tokens
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        predict(module, data, trainer)
    lines = [line for line in caplog.messages if "rows may grow to" in line]
    assert len(lines) == told
    assert all("9 tokens, but the draft was made for at most 8: beyond" in line for line in lines)


class Power(Exception):
    """The plug is pulled."""


@pytest.mark.parametrize("parts", slow_but(1, among=[0, 1, 7, 12]))
def test_an_interrupted_sweep_loses_and_repeats_no_row(make, data, trainer, monkeypatch, whole, parts):
    at_once = Sweep([0.0, 1.0], max_new_tokens=12, slots=3, timing_prompts=1, samples=2, write_every=0)
    written, append = [], RowStore.append

    def fail_after(store, rows):
        if len(written) == parts:
            raise Power
        written.append([row["key"] for row in rows])
        append(store, rows)

    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "append", fail_after)
        with pytest.raises(Power):
            trainer().predict(make(at_once), data, return_predictions=False)
    first = {key for keys in written for key in keys}

    def record(store, rows):
        written.append([row["key"] for row in rows])
        append(store, rows)

    monkeypatch.setattr(RowStore, "append", record)
    rows = predict(make(at_once), data, trainer)
    assert_same_rows(rows, whole.rows)
    decoded = [key for keys in written for key in keys]
    assert len(decoded) == len(set(decoded)) == len(whole.rows)
    assert first <= set(decoded)


def test_a_finished_sweep_decodes_nothing_more(make, data, trainer, monkeypatch, done):
    monkeypatch.setattr(Engine, "run", None)
    assert predict(make(), data, trainer) == done.rows


def test_more_temperatures_and_verifiers_may_join_later(make, data, trainer):
    few = predict(
        make(Sweep([1.0], max_new_tokens=8, timing_prompts=0), verifiers={"a": VERIFIERS["token"]}), data, trainer
    )
    both = {"a": VERIFIERS["token"], "b": VERIFIERS["block"]}
    more = predict(make(Sweep([0.5, 1.0], max_new_tokens=8, timing_prompts=0), verifiers=both), data, trainer)
    assert len(more) == 4 * len(few)
    kept = {row["key"]: row for row in more}
    assert all(kept[row["key"]] == row for row in few)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"verifiers": {"token": BlockVerification()}}, "verifier token"),
        ({"drafter": PromptLookup()}, "drafter"),
        ({"sweep": Sweep([0.0], max_new_tokens=9)}, "sampling"),
        ({"draft": None, "draft_layers": 1}, "draft"),
        ({"sweep": Sweep([0.0], max_new_tokens=12, seed=5)}, "seed"),
    ],
)
@pytest.mark.usefixtures("done")
def test_rows_of_another_configuration_are_not_continued(make, data, trainer, changed, what):
    with pytest.raises(UserError, match=rf"another configuration \(changed: [^)]*{what}"):
        predict(make(**changed), data, trainer)


def other_prompts(data, pair, tmp_path, change):
    """The data module with the lines of `prompts.jsonl` changed."""
    lines = change((pair / "prompts.jsonl").read_text().splitlines())
    (tmp_path / "other.jsonl").write_text("\n".join(lines))
    options = {name: getattr(data, name) for name in ("max_length", "batch_size")}
    prompts = {"chat": PromptSource(str(tmp_path / "other.jsonl"))}
    return TextDataModule(str(pair / "target"), prompts=prompts, cache_dir=str(tmp_path / "cache"), **options)


def test_rows_of_another_sweep_stay_and_are_not_counted(make, data, trainer, tmp_path):
    sweeps = [Sweep([t], max_new_tokens=6, timing_prompts=0) for t in (0.0, 1.0)]
    rule = {"token": TokenwiseRejection()}
    cold = predict(make(sweeps[0], verifiers=rule), data, trainer)
    module = make(sweeps[1], verifiers=rule)
    warm = predict(module, data, trainer)
    held = pq.read_table(tmp_path / "run/predict/predictions.parquet").to_pylist()
    assert held == warm + cold
    whole, _ = sweep_metrics(module.runner.store, module.runner.order)
    assert {cell.target_temperature for cell in whole.cells} == {1.0}


def test_a_longer_prompt_set_goes_on_and_another_is_refused(make, data, trainer, pair, tmp_path):
    sweep = Sweep([0.0], max_new_tokens=6, timing_prompts=0)
    few = other_prompts(data, pair, tmp_path, lambda lines: lines[:3])
    first = predict(make(sweep), few, trainer)
    more = other_prompts(data, pair, tmp_path, lambda lines: lines)
    rows = predict(make(sweep), more, trainer)
    assert len(rows) == 2 * len(first)
    assert [row for row in rows if row["prompt_index"] < 3] == first
    assert len(predict(make(sweep), few, trainer)) == len(first)
    others = other_prompts(data, pair, tmp_path, lambda lines: lines[::-1])
    with pytest.raises(UserError, match=r"\(changed: prompts chat\): choose another --run folder"):
        predict(make(sweep), others, trainer)


def test_metrics_from_disk_are_those_of_the_rows(whole):
    runner = whole.module.runner
    metrics, named = sweep_metrics(runner.store, runner.order, 0.5)
    assert repr(metrics.estimates()) == repr(SweepMetrics.of_rows(whole.rows, parameter_ratio=0.5).estimates())
    assert not named.cells


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_predict_and_generate_run_in_half_precision(make, data, trainer, precision):
    sweep = Sweep([0.0], generation_temperatures=[0.0], max_new_tokens=4, timing_prompts=0)
    for generating in (False, True):
        module = make(sweep, verifiers={"token": TokenwiseRejection()})
        if generating:
            module.begin_generation()
        trainer(precision=precision).predict(module, data, return_predictions=False)
        assert len(module.runner.store.keys()) == 8


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_the_trainers_precision_changes_no_row(make, data, trainer, tmp_path, precision):
    sweep = Sweep([1.0], max_new_tokens=8, timing_prompts=0)
    module = make(sweep)
    trainer(precision=precision).predict(module, data, return_predictions=False)
    assert module.draft.dtype == module.pair.target_model.dtype == torch.float32
    found = module.runner.store.rows(module.runner.order)
    shutil.rmtree(tmp_path / "run")
    assert_same_rows(found, predict(make(sweep), data, trainer))


def test_validate_measures_the_draft_in_its_own_dtype(make, data, trainer):
    module = make()
    trainer(precision="bf16-true").validate(module, data, verbose=False)
    assert module.draft.dtype == torch.float32


def test_rows_that_other_tokens_would_end_are_refused(make, data, trainer):
    sweep = Sweep([0.0], max_new_tokens=4, timing_prompts=0)
    predict(make(sweep), data, trainer)
    module = make(sweep)
    module.pair.stop_ids = frozenset({0, 5})  # as another generation_config.json has them
    with pytest.raises(UserError, match=r"\(changed: stop tokens\)"):
        predict(module, data, trainer)


def test_rows_that_cannot_be_written_end_all_processes(make, data, trainer, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowStore, "append", full)
    module = make(Sweep([0.0], max_new_tokens=4, timing_prompts=0, write_every=1000.0))
    with pytest.raises(OSError, match="No space"):
        predict(module, data, trainer)
    assert module.runner._dealer.stop_code() == FAILED


def test_slots_are_full_until_the_work_runs_out(make, data, trainer):
    module = make(Sweep([0.0, 1.0], max_new_tokens=12, slots=4, timing_prompts=0))
    predict(module, data, trainer)
    shares = module.runner.busy_share()
    assert shares["busy_share"] == 1.0
    assert 0.5 < shares["busy_share_to_the_end"] < 1.0


def test_speed_is_measured_at_each_batch_size(make, data, trainer):
    sweep = Sweep([0.0, 1.0], max_new_tokens=6, slots=3, timing_prompts=2, timing_slots=[1, 2])
    module = make(sweep, verifiers={"token": TokenwiseRejection()})
    rows = predict(module, data, trainer)
    timed = [row for row in rows if row["pass"] == "timing"]
    assert {(row["timing_slots"], row["verifier"]) for row in timed} == {
        (size, label) for size in (1, 2) for label in (BASELINE, "token")
    }
    assert len(timed) == 2 * 2 * 2 * 2 * 2  # sets, prompts, temperatures, labels, sizes
    assert all(row["timing_slots"] == 0 for row in rows if row["pass"] == "acceptance")
    whole, _ = sweep_metrics(module.runner.store, module.runner.order)
    for cell, found in whole.estimates().items():
        for size, name in ((1, "tokens_per_second"), (2, "tokens_per_second_at_2")):
            members = [r for r in timed if r["timing_slots"] == size and cell_of(r) == cell]
            seconds = sum(row[name] for row in members for name in TIMES)
            assert found[name].value == pytest.approx(sum(len(row["tokens"]) for row in members) / seconds)
        assert (found["speedup_at_2"].prompts > 0) if cell.verifier == "token" else ("speedup_at_2" not in found)


def test_the_engines_of_a_pass_are_gone_before_the_next(make, data, trainer, monkeypatch):
    alive, made = [], Engine.__init__

    def count(engine, *args, **options):
        gc.collect()
        alive.append(sum(one() is not None for one in engines))
        engines.append(weakref.ref(engine))
        made(engine, *args, **options)

    engines = []
    monkeypatch.setattr(Engine, "__init__", count)
    predict(make(Sweep([0.0], max_new_tokens=3, timing_prompts=1)), data, trainer)
    # the reader of prompts; three rules, of which each takes over the caches of the one before; the baseline, for which
    # the last one's are dropped; and, side by side with it, the three rules again, timed
    assert alive == [0, 0, 1, 1, 1, 1, 2, 3]


def test_a_dropped_option_is_told_of_in_one_line(make, data, trainer, caplog):
    sweep = Sweep([0.0], max_new_tokens=4, timing_prompts=0, batch_size=8)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        predict(make(sweep), data, trainer)
    (line,) = [line for line in caplog.messages if "batch_size" in line]
    assert "sweep.slots" in line
    assert "sweep.write_every" in line


def test_a_drafter_without_a_model_needs_no_draft(make, data, trainer):
    module = make(draft=None, drafter=PromptLookup(), verifiers={"token": TokenwiseRejection()})
    rows = predict(module, data, trainer)
    assert module.draft is None
    assert any(sum(row["drafted"]) for row in rows)


def test_draft_temperatures_are_crossed_with_the_targets(make, data, trainer):
    sweep = Sweep([0.5, 1.0], draft_temperatures=["same", 0.0, 1.0], max_new_tokens=6, timing_prompts=0)
    rows = predict(make(sweep, verifiers={"token": TokenwiseRejection()}), data, trainer)
    cells = {(row["target_temperature"], row["draft_temperature"]) for row in rows}
    assert cells == {(0.5, 0.5), (0.5, 0.0), (0.5, 1.0), (1.0, 1.0), (1.0, 0.0)}


def test_estimates_of_a_sweep_cover_every_cell(whole):
    metrics = SweepMetrics.of_rows(whole.rows, parameter_ratio=0.5)
    estimates = metrics.estimates()
    timed = [cell for cell in estimates if cell.verifier != BASELINE]
    assert len(timed) == 2 * (2 + 2 + 1)
    for cell in timed:
        assert 0 <= estimates[cell]["acceptance_rate"].value <= 1
        assert estimates[cell]["block_efficiency"].value >= 1
        assert estimates[cell]["speedup"].value > 0
    split = [SweepMetrics.of_rows(whole.rows, rank=rank, world=2) for rank in range(2)]
    for cell in timed:
        sums = [share[cell].acceptance_rate.sums() for share in split]
        torch.testing.assert_close((sums[0] + sums[1]).numerator_SW, metrics[cell].acceptance_rate.sums().numerator_SW)


def test_goodput_measures_the_pair_once_and_the_run_keeps_it(make, data, trainer, tmp_path, monkeypatch):
    sweep = Sweep([0.0, 1.0], max_new_tokens=8, slots=2, timing_prompts=0)
    options = {"verifiers": {"token": TokenwiseRejection()}, "length": Goodput(longest=3)}
    rows = predict(make(sweep, **options), data, trainer)
    assert len(rows) == 16
    (path,) = tmp_path.rglob("step_times.json")
    seconds = json.loads(path.read_text())["seconds"]
    assert len(seconds["verify"]) == 4
    assert min(seconds["draft"], *seconds["verify"]) > 0

    def measured_again(engine, text):
        raise AssertionError("step times were kept")

    monkeypatch.setattr(Engine, "step_times", measured_again)
    more = Sweep([0.0, 1.0, 1.5], max_new_tokens=8, slots=2, timing_prompts=0)
    module = make(more, **options)
    assert len(predict(module, data, trainer)) == 24
    assert module.runner.length is options["length"]


def test_a_lossy_rule_reports_its_distance_and_infinity_is_null(make, data, trainer, tmp_path):
    rules = {"token": TokenwiseRejection(), "mixed": Ensemble(0.5), "mars": MARS()}
    rows = predict(make(Sweep([0.0, 1.0], max_new_tokens=8, timing_prompts=0), verifiers=rules), data, trainer)
    estimates = SweepMetrics.of_rows(rows).estimates()
    write_metrics_json(tmp_path / "metrics.json", estimates)
    cells = json.loads((tmp_path / "metrics.json").read_text())["cells"]
    found = {(cell["verifier"], cell["target_temperature"]): cell["metrics"] for cell in cells}
    warm, cold = found["mixed", 1.0], found["mixed", 0.0]
    assert 0 < warm["total_variation_from_target"]["value"] < 0.5
    assert warm["kl_from_target"]["value"] > 0
    assert cold["kl_from_target"]["value"] is None
    assert cold["kl_from_target"]["prompts"] > 0 < cold["total_variation_from_target"]["value"]
    for cell in (found["token", 1.0], found["mars", 0.0]):
        assert all(cell[name]["prompts"] == 0 for name in ("kl_from_target", "total_variation_from_target"))
    assert any(math.isinf(value) for row in rows for value in row["kl"])


def test_generate_writes_the_targets_text_with_exact_ids(make, data, trainer):
    sweep = Sweep(generation_temperatures=[0.0, 1.0], max_new_tokens=10, samples=2)
    module = make(sweep, draft=None)
    module.begin_generation()
    rows = predict(module, data, trainer)
    assert module.draft is None
    assert len(rows) == (6 + 2) * 3
    for row in rows:
        prompt = data.prompt_sets()[row["prompt_set"]][int(row["key"].split("/")[3])]
        assert tuple(row["prompt_ids"]) == prompt.ids
        assert row["response"] == module.tokenizer.decode(row["response_ids"], skip_special_tokens=True)
    greedy = next(row for row in rows if row["generation_temperature"] == 0)
    ids = torch.tensor([greedy["prompt_ids"]])
    padding = list(range(24, 32))  # of the target's head: no real ids
    options = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, "suppress_tokens": padding}
    text = module.pair.target_model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert text[0, ids.shape[1] :].tolist() == greedy["response_ids"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"target_temperatures": [-0.5]}, r"target_temperature must be 0 \(argmax\) or at least 1e-06, got -0.5"),
        ({"draft_temperatures": [-1.0]}, r"draft_temperature must be 0 \(argmax\) or at least 1e-06, got -1.0"),
        ({"target_temperatures": []}, "at least one temperature"),
        ({"generation_temperatures": []}, "at least one temperature"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\]"),
        ({"min_p": 2.0}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
        ({"samples": 0}, "samples must be 1 or more"),
        ({"slots": 0}, "slots must be 1 or more"),
        ({"timing_prompts": -1}, "timing_prompts must be 0"),
        ({"timing_slots": []}, "timing_slots must hold batch sizes"),
        ({"timing_slots": [0, 1]}, "timing_slots must hold batch sizes"),
        ({"timing_slots": [1, 16]}, "timing_prompts must be at least 16"),
        ({"write_every": -1.0}, "write_every must be 0"),
        ({"write_every": float("nan")}, "write_every must be 0"),
    ],
)
def test_sweeps_refuse_values_out_of_range(options, what):
    with pytest.raises(ValueError, match=what):
        Sweep(**options)


def test_a_greedy_rule_alone_needs_temperature_zero(make, data, trainer):
    with pytest.raises(UserError, match="nothing to decode"):
        predict(make(Sweep([1.0]), verifiers={"greedy": GreedyMatch()}), data, trainer)


def test_the_baselines_name_is_taken(make, data, trainer):
    with pytest.raises(UserError, match="the name of the baseline"):
        predict(make(verifiers={BASELINE: TokenwiseRejection()}), data, trainer)
