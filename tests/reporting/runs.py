"""Small finished runs and a study, written by the writers that the subcommands use."""

import random

import torch

from tempspec.data.environment import describe_environment, write_environment
from tempspec.files import write_atomically
from tempspec.interfaces import BASELINE
from tempspec.metrics.prefixes import PromptSums
from tempspec.modules.predict.row_store import RowStore
from tempspec.reporting.records import prompt_rows, write_metrics_json, write_parquet
from tempspec.reporting.study_index import DraftIndex, Prefixes, Status, StudyIndex, write_study

HOSTILE = "<img src=x onerror=alert(1)>&\"' {{7*191}} $\\frac$ _"
PROMPTS = 12
ROUNDS = 20


def row(generator, rate, verifier, prompt_set, temperature, draft_temperature, prompt, pass_):
    """The record of a request whose drafted tokens are each accepted with probability `rate`; 3 a round."""
    plain = verifier == BASELINE
    drafted = [0 if plain else 3] * ROUNDS
    accepted = [next((i for i in range(most) if generator.random() >= rate), most) for most in drafted]
    key = f"{verifier}/{prompt_set}/{temperature}/{draft_temperature}/{prompt}/{pass_}"
    return {
        "key": key,
        "pass": pass_,
        "verifier": verifier,
        "prompt_set": prompt_set,
        "prompt_index": prompt,
        "prompt_key": prompt if prompt_set == "in" else prompt + 1000,
        "category": "math" if prompt % 2 else "",
        "turn": 1,
        "sample": 0,
        "target_temperature": temperature,
        "draft_temperature": draft_temperature,
        "seed": 1,
        "prompt_tokens": 5,
        "tokens": [3] * (sum(accepted) + ROUNDS),
        "finish": "length",
        "drafted": drafted,
        "tested": [min(count + 1, most) for count, most in zip(accepted, drafted, strict=True)],
        "accepted": accepted,
        "expected_acceptance": [],
        "seconds_prefill": 0.01,
        "seconds_draft": 0.0 if plain else 0.2,
        "seconds_verify": 1.0,
        "seconds_overhead": 0.1,
    }


def write_predict(folder, rates, *, sets=("in",), verifier="token", draft_temperatures=(None,), prompts=PROMPTS):
    """Leave what predict leaves: `rates` is acceptance by target temperature; None drafts at the same temperature."""
    generator = random.Random(0)
    cells = [(verifier, t if d is None else d, t, rate) for t, rate in rates.items() for d in draft_temperatures]
    cells += [(BASELINE, t, t, 0.0) for t in rates]
    rows = [
        row(generator, rate, name, prompt_set, t, d, prompt, pass_)
        for name, d, t, rate in cells
        for prompt_set in sets
        for pass_ in ("acceptance", "timing")
        for prompt in range(prompts)
    ]
    store = RowStore(folder / "predict", "predictions", {})
    store.append(rows)
    store.finish([row["key"] for row in rows])
    write_metrics_json(folder / "predict" / "metrics.json", {}, parameter_ratio=0.25)
    write_atomically(
        folder / "predict" / "config.yaml", f"seed_everything: 1\nrun: {folder.name}\nrates: {list(rates.values())}\n"
    )
    write_environment(folder / "predict", describe_environment({}, device="cpu"))
    return folder


def write_validate(folder, fall, sets=("in",), temperatures=(0.0, 1.0, 1.5)):
    """Leave what validate leaves: acceptance falls by `fall` for each unit of temperature."""
    key_U = torch.arange(PROMPTS)
    noise_U1 = torch.rand(PROMPTS, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10

    def measured(value):
        return PromptSums.of(10 * (value + noise_U1), torch.full((PROMPTS, 1), 10.0), key_U)

    found = {
        ("acceptance", t, d): measured(0.8 - fall * t - abs(t - d) / 4) for t in temperatures for d in temperatures
    }
    found |= {("argmax", t, t): measured(0.6 - fall * t) for t in temperatures}
    found |= {("entropy", t, t): measured(t) for t in temperatures}
    rows = [record for name in sets for record in prompt_rows(name, found)]
    write_parquet(folder / "validate" / "acceptance.parquet", rows)
    write_metrics_json(folder / "validate" / "metrics.json", {})
    return folder


def write_small_study(folder, name="small"):
    """A study of two drafts, trained at 1 and at 1.5, with both domains, prefixes, and a cell that is missing."""
    for draft, rate in (("cold", 0.5), ("hot", 0.8)):
        place = write_predict(folder / draft, {0.0: 0.8, 1.0: 0.7, 1.5: rate}, sets=("in", "out"))
        write_validate(place, 0.1, sets=("in", "in sampled@1.5"))
    drafts = {
        HOSTILE: DraftIndex({"train_temperature": 1.0}, {"0": "cold", "1": "missing"}),
        "hot": DraftIndex({"train_temperature": 1.5}, {"0": "hot"}),
    }
    index = StudyIndex(
        name=name,
        kind="custom",
        drafts=drafts,
        prompt_sets={"in": {"domain": "in"}, "out": {"domain": "out"}},
        target_temperatures=[0.0, 1.0, 1.5],
        draft_temperatures=["same"],
        reference_temperature=1.0,
        prefixes=Prefixes({"in": "in"}, {"in": {"1.5": "in sampled@1.5"}}),
        status=Status(11, 12),
    )
    write_study(folder, index)
    return folder


def write_own_texts(folder, rates, *, planned=(), prompts=PROMPTS, domains=None, labels=None, later=None):
    """A study of which validate alone ran: `rates` is acceptance by draft, seed and T, on each T's own text.

    A rate may be a list with one for each prompt. Files also have T at another draft temperature, and another metric.
    The drafts that `later` names are heads, with what it adds to the rates for each drafted token after the first.
    """
    sets = domains or {"chat": "in"}
    for draft, seeds in rates.items():
        for seed, at in seeds.items():
            added = {"": 0.0} | {f"/{number}": more for number, more in enumerate((later or {}).get(draft, ()), 2)}
            rows = [
                row
                for name in sets
                for t, rate in at.items()
                for end, more in added.items()
                for row in _own_text_rows(name, t, torch.as_tensor(rate) + more, prompts, end)
            ]
            write_parquet(folder / f"{draft}-s{seed}" / "validate" / "acceptance.parquet", rows)
            write_metrics_json(folder / f"{draft}-s{seed}" / "validate" / "metrics.json", {})
    temperatures = sorted({t for seeds in rates.values() for at in seeds.values() for t in at})
    sampled = {name: {f"{t:g}": f"{name} sampled@{t:g}" for t in temperatures} for name in sets}
    found = {draft: {str(seed): f"{draft}-s{seed}" for seed in [*seeds, *planned]} for draft, seeds in rates.items()}
    index = StudyIndex(
        name=folder.name,
        kind="custom",
        drafts={draft: DraftIndex((labels or {}).get(draft, {}), seeds) for draft, seeds in found.items()},
        prompt_sets={name: {"domain": domain} for name, domain in sets.items()},
        target_temperatures=temperatures,
        draft_temperatures=["same"],
        reference_temperature=1.0,
        prefixes=Prefixes({}, sampled),
        status=Status(0, 1),
    )
    write_study(folder, index)
    return folder


def _own_text_rows(name, t, rate, prompts, end):
    """Rows of one set; prompts have 5 to 7 tokens, and differ in acceptance by as much for every draft."""
    key_U = torch.arange(prompts) + 1000 * (name != "chat")
    tokens_U1 = 5.0 + (key_U % 3)[:, None]
    rate_U1 = torch.as_tensor(rate, dtype=torch.float64).expand(prompts)[:, None] + (key_U % 5)[:, None] / 50
    found = {
        ("acceptance", t, t): PromptSums.of(rate_U1 * tokens_U1, tokens_U1, key_U),
        ("acceptance", t, t + 1): PromptSums.of(tokens_U1, tokens_U1, key_U),
        ("entropy", t, t): PromptSums.of(2 * tokens_U1, tokens_U1, key_U),
    }
    return prompt_rows(f"{name} sampled@{t:g}{end}", found)
