"""Block efficiency of every lossless rule at equal budgets of verified tokens on a real pair; lossy rules' price.

    OMP_NUM_THREADS=1 python benchmarks/verifiers.py --assets FOLDER [--quick]

Needs `weights/babyllama-target`, `weights/babyllama-draft` and `data/tinystories.jsonl`. Everything is counted in
tokens and target calls, not in seconds: the pair's costs are near 1 and say nothing about speed.

Axes: N positions, V vocabulary, K children.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import torch
from goals import Goal, finish, parse
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core import lossy, multidraft
from tempspec.core.acceptance import overlap
from tempspec.core.multidraft import Siblings
from tempspec.core.noise import Stream, fold, uniform
from tempspec.core.sampling import inverse_cdf
from tempspec.core.trees import optimal_parents
from tempspec.decoding.engine import Engine
from tempspec.interfaces import Completion, Drafter, Request, Verifier
from tempspec.models.loading import load_model, load_tokenizer
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.lossy import Ensemble, KLBudget, Lenience, SpeculativeCascade
from tempspec.plugins.tree_drafters import DynamicTree, StaticTree
from tempspec.plugins.tree_verifiers import KSequential, RecursiveRejection, Traversal
from tempspec.plugins.verifiers import BlockVerification, GumbelCoupling, SampledMatch, TokenwiseRejection, Typical

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

Rule = tuple[Verifier, Drafter, int]


def main() -> None:
    """Measure, print the tables and the claim."""
    options = parse(ArgumentParser(description=__doc__))
    if options.assets is None:
        raise SystemExit("no --assets given: nothing to measure")
    assets = Path(options.assets)
    count, tokens = (8, 24) if options.quick else (32, 64)
    target, draft = (load(assets / "weights" / name) for name in ("babyllama-target", "babyllama-draft"))
    texts = stories(assets, count)
    one_level(target, draft, texts)
    tables = {}
    for budget in (5, 16):
        shape = optimal_parents(rank_acceptance(target, draft, texts, 1.5), budget, 8)
        print(f"\noptimal static tree of {budget} for T = 1.5, distinct siblings: {list(shape)}")
        tables[budget] = efficiency(rules(budget, list(shape)), target, draft, texts, tokens)
        show(budget, tables[budget])
    lossy_rules(target, draft, texts)
    reference = efficiency({"token-wise, chain": (TokenwiseRejection(), CausalLM(), 4)}, target, draft, texts, tokens)
    show(4, reference)
    best = max(tables[16], key=lambda name: mean(tables[16][name][1.5]))
    low, middle, high = gain(tables[16][best][1.5], reference["token-wise, chain"][1.5])
    print(f"\nT = 1.5: {best} with 16 over token-wise with 4: {middle:+.1%} [{low:+.1%}, {high:+.1%}]")
    ordered = [
        (f"{after}, {before}, {budget} tokens, T = {t}", gain(table[after][t], table[before][t])[2])
        for budget, table in tables.items()
        for after, before in ORDER
        for t in TEMPERATURES
    ]
    name, worst = min(ordered, key=lambda pair: pair[1])
    print(f"least certain of {len(ordered)} pairs in the order of theory: {name}: gain at most {worst:+.1%}")
    finish(
        [
            Goal("T = 1.5, best of 16 over token-wise of 4, gain", middle, low=0.25),
            Goal("T = 1.5, that gain's lower end", low, low=0.0),
            Goal("the order of theory, least upper end of a gain that must be 0 or more", worst, low=0.0),
        ]
    )


def load(folder: Path) -> PreTrainedModel:
    """A model in float32."""
    model = load_model(str(folder), dtype="float32")
    load_tokenizer(str(folder))
    return model


def stories(assets: Path, count: int) -> list[tuple[int, ...]]:
    """The first tokens of stories, whitespace folded."""
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
) -> dict[str, dict[float, Tensor]]:
    """Emitted tokens and target calls of every prompt, `[P, 2]`, by rule and temperature."""
    found: dict[str, dict[float, Tensor]] = {}
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


def show(budget: int, table: dict[str, dict[float, Tensor]]) -> None:
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


def one_level(target: PreTrainedModel, draft: PreTrainedModel, texts: list[tuple[int, ...]]) -> None:
    """What each rule accepts of K drafts at one position, beside the optimum for independent drafts."""
    print(f"{'P(emitted is a draft)':32s}" + "".join(f"{f'T = {t}':>10s}" for t in TEMPERATURES[1:]))
    closed = {
        "recursive, independent": multidraft.recursive_acceptance,
        "K-SEQ, independent": multidraft.sequential_acceptance,
        "optimum, independent": multidraft.optimal_acceptance,
        "greedy drafts": multidraft.greedy_draft_acceptance,
    }
    pairs = [laws(target, draft, texts, t) for t in TEMPERATURES[1:]]
    print(f"{'one draft, rejection':32s}" + "".join(f"{float(overlap(*pair).mean()):10.4f}" for pair in pairs))
    for count in (2, 4):
        for name, rule in closed.items():
            cells = [float(rule(*pair, count).mean()) for pair in pairs]
            print(f"{f'{name}, K = {count}':32s}" + "".join(f"{cell:10.4f}" for cell in cells), flush=True)


def rank_acceptance(
    target: PreTrainedModel, draft: PreTrainedModel, texts: list[tuple[int, ...]], temperature: float, count: int = 8
) -> list[float]:
    """P(the k-th of K distinct children is the accepted one) along the texts, one draw of children a position."""
    logp_NV, logq_NV = laws(target, draft, texts, temperature)
    rows = len(logp_NV)
    taken_NV = torch.zeros_like(logq_NV, dtype=torch.bool)
    tokens, drawn = [], []
    for rank in range(count):
        drawn.append(multidraft.sibling_law(logq_NV, logq_NV, taken_NV, rank, count, "distinct"))
        tokens.append(inverse_cdf(drawn[-1].exp(), uniform(1, rank, torch.arange(rows))))
        taken_NV = taken_NV.scatter(1, tokens[-1][:, None], True)
    logp_NKV = logp_NV[:, None].expand(-1, count + 1, -1)
    coins = multidraft.tree_coins(
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
