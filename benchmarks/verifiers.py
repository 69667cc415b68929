"""Block efficiency of every lossless rule at equal budgets of verified tokens on a real pair; lossy rules' price.

    OMP_NUM_THREADS=1 python benchmarks/verifiers.py --assets FOLDER [--quick] [--output FILE]
    python benchmarks/verifiers.py --table FILE

Needs `weights/babyllama-target`, `weights/babyllama-draft` and `data/tinystories.jsonl`. Everything is counted in
tokens and target calls, not in seconds: the pair's costs are near 1 and say nothing about speed. `--output` keeps the
counts of every prompt, from which `--table` prints tables and goals again without decoding.

Axes: N positions, V vocabulary, K children.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import torch
from goals import Goal, finish, parse
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core import k_sequential, lossy, tree_verification
from tempspec.core.acceptance import overlap
from tempspec.core.noise import Stream, fold, uniform
from tempspec.core.sampling import inverse_cdf
from tempspec.core.tree_verification import Siblings
from tempspec.core.trees import optimal_parents
from tempspec.decoding.engine import Engine
from tempspec.interfaces import Completion, Drafter, Request, Verifier
from tempspec.models.loading import load_model, load_tokenizer
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.lossy_verifiers import Ensemble, KLBudget, Lenience, SpeculativeCascade, Typical
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import KSequential, RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, GumbelCoupling, SampledMatch, TokenwiseRejection

TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
RESAMPLES = 2000
PATHS = {5: [-1, -1, 0, 1, 2], 16: list(range(-1, 0)) * 4 + list(range(12))}
BUSHY = {5: [-1, -1, -1, 0, 1], 16: [-1] * 4 + [0, 0, 0, 1, 1, 2, 3] + [4, 4, 5, 7, 9]}

ORDER = (
    ("block, chain", "token-wise, chain"),
    ("token-wise, chain", "sampled match, chain"),
    ("traversal, independent paths", "recursive, independent paths"),
    ("recursive, independent paths", "naive, paths"),
    ("traversal, distinct", "recursive, distinct"),
    ("traversal, greedy drafts", "recursive, greedy drafts"),
    ("traversal, dynamic top", "recursive, dynamic top"),
)
"""Rules of one draft, the better first."""

CLAIM = "token-wise, chain"
"""The rule of four tokens that the best of sixteen is held against."""

Rule = tuple[Verifier, Drafter, int]
Counts = dict[str, dict[float, Tensor]]
"""Emitted tokens and target calls of every prompt, `[P, 2]`, by rule and temperature."""


@dataclass(frozen=True)
class Measured:
    """What the goals are read from.

    Attributes:
        tables: counts by the number of verified tokens.
        one_level: P(emitted is a draft) of one level of K drafts, by K, rule and temperature.
    """

    tables: dict[int, Counts]
    one_level: dict[int, dict[str, dict[float, float]]]

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        tables = {
            budget: {rule: {t: counts_P2.tolist() for t, counts_P2 in row.items()} for rule, row in table.items()}
            for budget, table in self.tables.items()
        }
        path.write_text(json.dumps({"tables": tables, "one_level": self.one_level}) + "\n")

    @classmethod
    def read(cls, path: Path) -> Measured:
        """What `write` kept."""
        held = json.loads(path.read_text())
        tables = {
            int(budget): {
                rule: {float(t): torch.tensor(counts).double() for t, counts in row.items()}
                for rule, row in table.items()
            }
            for budget, table in held["tables"].items()
        }
        one_level = {
            int(count): {rule: {float(t): value for t, value in row.items()} for rule, row in table.items()}
            for count, table in held["one_level"].items()
        }
        return cls(tables, one_level)


def main() -> None:
    """Measure, or read what was measured; print the tables and the goals."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a JSON file to keep the counts in")
    parser.add_argument("--table", type=Path, help="such a file: print its tables and goals, decode nothing")
    options = parse(parser)
    if options.table is not None:
        measured = Measured.read(options.table)
    elif options.assets is not None:
        measured = measure(Path(options.assets), quick=options.quick)
    else:
        raise SystemExit("no --assets and no --table given: nothing to measure")
    if options.output is not None:
        measured.write(options.output)
    show_one_level(measured.one_level)
    for budget, table in measured.tables.items():
        show(budget, table)
    finish([*claim(measured.tables), *order(measured.tables), *bounds(measured.one_level)])


def measure(assets: Path, *, quick: bool) -> Measured:
    """Decode with every rule at every budget; print what needs no goal on the way."""
    count, tokens = (8, 24) if quick else (32, 64)
    target, draft = (load(assets / "weights" / name) for name in ("babyllama-target", "babyllama-draft"))
    texts = stories(assets, count)
    tables = {}
    for budget in (5, 16):
        shape = optimal_parents(rank_acceptance(target, draft, texts, 1.5), budget, 8)
        print(f"optimal static tree of {budget} for T = 1.5, distinct siblings: {list(shape)}", flush=True)
        tables[budget] = efficiency(rules(budget, list(shape)), target, draft, texts, tokens)
    lossy_rules(target, draft, texts)
    tables[4] = efficiency({CLAIM: (TokenwiseRejection(), CausalLM(), 4)}, target, draft, texts, tokens)
    return Measured(tables, one_level(target, draft, texts))


# -- goals -------------------------------------------------------------------------------------------------------------


def claim(tables: dict[int, Counts]) -> list[Goal]:
    """The best rule of 16 tokens over token-wise rejection of 4 at T = 1.5.

    The rule is chosen on every other prompt and measured on the rest: the best of many is flattered by the prompts that
    made it the best.
    """
    many, few = tables[16], tables[4][CLAIM][1.5]
    best = max(many, key=lambda name: mean(many[name][1.5][::2]))
    low, middle, high = gain(many[best][1.5][1::2], few[1::2])
    print(f"\nT = 1.5, chosen on half of the prompts, measured on the other: {best} with 16 over {CLAIM} with 4:")
    print(f"{middle:+.1%} [{low:+.1%}, {high:+.1%}]")
    return [
        Goal(f"T = 1.5, {best} of 16 over {CLAIM} of 4, gain", middle, low=0.25),
        Goal("T = 1.5, that gain's lower end", low, low=0.0),
    ]


def order(tables: dict[int, Counts]) -> list[Goal]:
    """A goal for each pair that theory orders: nowhere is the better rule worse by more than chance.

    The upper ends are simultaneous ones (Bonferroni, normal), since the least of many is looked at.
    """
    cells = [(budget, t) for budget in tables if budget != 4 for t in TEMPERATURES]
    width = NormalDist().inv_cdf(1 - 0.05 / (len(cells) * len(ORDER)))
    print("\nthe order of theory: least and greatest gain of the first rule over the second, by tokens and temperature")
    goals = []
    for after, before in ORDER:
        found = {cell: (tables[cell[0]][after][cell[1]], tables[cell[0]][before][cell[1]]) for cell in cells}
        values = {cell: mean(better) / mean(worse) - 1 for cell, (better, worse) in found.items()}
        upper = {
            cell: values[cell] + width * float((resampled(better) / resampled(worse)).std())
            for cell, (better, worse) in found.items()
        }
        ends = ", ".join(f"{values[cell]:+.1%} ({cell[0]}, T = {cell[1]})" for cell in _ends(values))
        print(f"{after} over {before}: {ends}")
        goals.append(Goal(f"{after} >= {before}, least upper end of the gain", min(upper.values()), low=0.0))
    return goals


def _ends(values: dict[tuple[int, float], float]) -> list[tuple[int, float]]:
    """Where the least and the greatest value are."""
    return [pick(values, key=values.__getitem__) for pick in (min, max)]


def bounds(table: dict[int, dict[str, dict[float, float]]]) -> list[Goal]:
    """No rule of independent drafts accepts more than the optimum; these are closed forms, without chance."""
    goals = []
    for count, rows in table.items():
        if count == 1:
            continue
        optimum = rows["optimum, independent"]
        for name in ("recursive, independent", "K-SEQ, independent"):
            slack = min(optimum[t] - rows[name][t] for t in optimum)
            goals.append(Goal(f"K = {count}, {name} <= the optimum, least slack", slack, low=-1e-9))
    return goals


# -- models and texts --------------------------------------------------------------------------------------------------


def load(folder: Path) -> PreTrainedModel:
    """A model in float32."""
    model = load_model(str(folder), dtype="float32")
    load_tokenizer(str(folder))
    return model


def stories(assets: Path, count: int) -> list[tuple[int, ...]]:
    """The first tokens of stories, whitespace collapsed."""
    tokenizer = load_tokenizer(str(assets / "weights/babyllama-target"))
    lines = (assets / "data/tinystories.jsonl").read_text().splitlines()[:count]
    texts = [" ".join(json.loads(line)["text"].split()) for line in lines]
    return [tuple(tokenizer(text)["input_ids"]) for text in texts]


def rules(budget: int, shape: list[int]) -> dict[str, Rule]:
    """The lossless rules at one budget, with their drafters and draft lengths."""

    def tree(parents: list[int], siblings: Siblings) -> tuple[Drafter, int]:
        return StaticTree(parents=parents, siblings=siblings), 8

    chain = (CausalLM(), budget)
    return {
        "token-wise, chain": (TokenwiseRejection(), *chain),
        "block, chain": (BlockVerification(), *chain),
        "sampled match, chain": (SampledMatch(), *chain),
        "Gumbel coupling, chain": (GumbelCoupling(), *chain),
        "naive, paths": (SampledMatch(), *tree(PATHS[budget], "independent")),
        "recursive, independent paths": (RecursiveRejection(), *tree(PATHS[budget], "independent")),
        "K-SEQ, independent paths": (KSequential(), *tree(PATHS[budget], "independent")),
        "traversal, independent paths": (Traversal(), *tree(PATHS[budget], "independent")),
        "recursive, distinct": (RecursiveRejection(), *tree(shape, "distinct")),
        "traversal, distinct": (Traversal(), *tree(shape, "distinct")),
        "recursive, greedy drafts": (RecursiveRejection(), *tree(BUSHY[budget], "greedy")),
        "traversal, greedy drafts": (Traversal(), *tree(BUSHY[budget], "greedy")),
        "recursive, dynamic top": (RecursiveRejection(), DynamicTree(4, 6, budget), 6),
        "traversal, dynamic top": (Traversal(), DynamicTree(4, 6, budget), 6),
    }


# -- decoding ----------------------------------------------------------------------------------------------------------


def efficiency(
    table: dict[str, Rule], target: PreTrainedModel, draft: PreTrainedModel, texts: list[tuple[int, ...]], tokens: int
) -> Counts:
    """Emitted tokens and target calls of every prompt, `[P, 2]`, by rule and temperature."""
    found: Counts = {}
    for name, (verifier, drafter, longest) in table.items():
        engine = Engine(
            target,
            target.config.vocab_size,
            verifier=verifier,
            drafter=drafter,
            length=FixedLength(longest),
            draft=draft,
            slots=64,
        )
        requests = [
            Request(text[:48], t, max_new_tokens=tokens, seed=int(fold(index, int(10 * t))), key=f"{t}/{index}")
            for t in TEMPERATURES
            for index, text in enumerate(texts)
        ]
        done: dict[str, Completion] = {c.request.key: c for c in engine.run(requests)}
        found[name] = {
            t: torch.tensor(
                [[len(c.tokens), c.target_calls] for i in range(len(texts)) for c in [done[f"{t}/{i}"]]]
            ).double()
            for t in TEMPERATURES
        }
    return found


def mean(counts_P2: Tensor) -> float:
    """Block efficiency."""
    return float(counts_P2[:, 0].sum() / counts_P2[:, 1].sum())


def resampled(counts_P2: Tensor) -> Tensor:
    """Block efficiency of bootstrap samples of the prompts; the same prompts for every rule."""
    prompts = len(counts_P2)
    pick = (uniform(int(Stream.BOOTSTRAP), torch.arange(RESAMPLES)[:, None], torch.arange(prompts)) * prompts).long()
    total = counts_P2[pick].sum(1)
    return total[:, 0] / total[:, 1]


def gain(counts_P2: Tensor, over_P2: Tensor) -> tuple[float, float, float]:
    """Relative gain and its paired 95% interval: low, value, high."""
    ratio = resampled(counts_P2) / resampled(over_P2) - 1
    low, high = torch.quantile(ratio, torch.tensor([0.025, 0.975]).double()).tolist()
    return low, mean(counts_P2) / mean(over_P2) - 1, high


def show(budget: int, table: Counts) -> None:
    """Print block efficiency with half the width of its interval."""
    print(f"\nblock efficiency, {budget} tokens verified a round")
    print(f"{'rule':32s}" + "".join(f"{f'T = {t}':>14s}" for t in TEMPERATURES))
    for name, row in table.items():
        cells = []
        for t in TEMPERATURES:
            low, high = torch.quantile(resampled(row[t]), torch.tensor([0.025, 0.975]).double()).tolist()
            cells.append(f"{mean(row[t]):8.2f} ±{(high - low) / 2:.2f}")
        print(f"{name:32s}" + "".join(f"{cell:>14s}" for cell in cells), flush=True)


# -- laws along the texts ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def laws(
    target: PreTrainedModel, draft: PreTrainedModel, texts: list[tuple[int, ...]], temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-laws of both models along the texts, `[N, V]` each."""
    rows = [torch.tensor([text[:160]]) for text in texts]
    both = [torch.cat([model(row).logits[0, 24:].double() for row in rows]) for model in (target, draft)]
    return (both[0] / temperature).log_softmax(-1), (both[1] / temperature).log_softmax(-1)


def one_level(
    target: PreTrainedModel, draft: PreTrainedModel, texts: list[tuple[int, ...]]
) -> dict[int, dict[str, dict[float, float]]]:
    """What each rule accepts of K drafts at one position, by K, rule and temperature; K = 1 is rejection."""
    closed = {
        "recursive, independent": tree_verification.recursive_acceptance,
        "K-SEQ, independent": k_sequential.sequential_acceptance,
        "optimum, independent": tree_verification.optimal_acceptance,
        "greedy drafts": tree_verification.greedy_draft_acceptance,
    }
    pairs = {t: laws(target, draft, texts, t) for t in TEMPERATURES[1:]}
    found = {1: {"optimum, independent": {t: float(overlap(*pair).mean()) for t, pair in pairs.items()}}}
    for count in (2, 4):
        found[count] = {
            name: {t: float(rule(*pair, count).mean()) for t, pair in pairs.items()} for name, rule in closed.items()
        }
    return found


def show_one_level(table: dict[int, dict[str, dict[float, float]]]) -> None:
    """Print it; one draft's optimum is rejection."""
    print(f"\n{'P(emitted is a draft)':32s}" + "".join(f"{f'T = {t}':>10s}" for t in TEMPERATURES[1:]))
    for count, rows in table.items():
        for name, row in rows.items():
            shown = "one draft, rejection" if count == 1 else f"{name}, K = {count}"
            print(f"{shown:32s}" + "".join(f"{value:10.4f}" for value in row.values()))


def rank_acceptance(
    target: PreTrainedModel, draft: PreTrainedModel, texts: list[tuple[int, ...]], temperature: float, count: int = 8
) -> list[float]:
    """P(the k-th of K distinct children is the accepted one) along the texts, one draw of children a position."""
    logp_NV, logq_NV = laws(target, draft, texts, temperature)
    rows = len(logp_NV)
    taken_NV = torch.zeros_like(logq_NV, dtype=torch.bool)
    tokens, drawn = [], []
    for rank in range(count):
        drawn.append(tree_verification.sibling_law(logq_NV, logq_NV, taken_NV, rank, count, "distinct"))
        tokens.append(inverse_cdf(drawn[-1].exp(), uniform(1, rank, torch.arange(rows))))
        taken_NV = taken_NV.scatter(1, tokens[-1][:, None], True)
    logp_NKV = logp_NV[:, None].expand(-1, count + 1, -1)
    coins = tree_verification.tree_coins(
        logp_NKV, torch.stack(drawn, 1), torch.stack(tokens, 1), torch.full((rows, count), -1),
        torch.full((rows,), count), joint=False,
    )  # fmt: skip
    reached_NK = torch.nn.functional.pad((1 - coins.coin_BN).cumprod(-1)[:, :-1], (1, 0), value=1.0)
    return (reached_NK * coins.coin_BN).mean(0).tolist()


def lossy_rules(target: PreTrainedModel, draft: PreTrainedModel, texts: list[tuple[int, ...]]) -> None:
    """What lossy rules accept of one token, and the distance of what they emit from the target."""
    table: dict[str, Verifier] = {
        "lenience .5": Lenience(0.5),
        "ensemble .5": Ensemble(0.5),
        "KL budget .05": KLBudget(0.05),
        "cascade .5": SpeculativeCascade(0.5),
        "typical .09, .3": Typical(),
    }
    print(f"\n{'lossy rules along the texts':28s}{'T':>6s}{'accepted':>10s}{'rejection':>10s}{'TV':>10s}{'KL':>10s}")
    for t in (0.5, 1.0, 1.5):
        logp_NV, logq_NV = laws(target, draft, texts, t)
        for name, rule in table.items():
            logpi_NV = rule.emitted_law(logp_NV[None], logq_NV[None])
            assert logpi_NV is not None
            total, divergence = lossy.distance(logpi_NV[0], logp_NV)
            accepted = overlap(logpi_NV[0], logq_NV)
            if isinstance(rule, Typical):
                threshold = torch.minimum(torch.tensor(0.09).double(), 0.3 * (logp_NV.exp() * logp_NV).sum(-1).exp())
                accepted = torch.where(logp_NV.exp() > threshold[:, None], logq_NV.exp(), 0.0).sum(-1)
            cells = (accepted.mean(), overlap(logp_NV, logq_NV).mean(), total.mean(), divergence.mean())
            print(f"{name:28s}{t:6.1f}" + "".join(f"{float(cell):10.4f}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
