"""What bfloat16 and float16 change on a real pair: laws, acceptance, loss and gradient, and text in another batch.

Needs `--assets FOLDER` with `weights/babyllama-target`, `weights/babyllama-draft` and `data/tinystories.jsonl`.

    OMP_NUM_THREADS=1 python benchmarks/precision.py --assets FOLDER

Every number is a difference from float32 on the same tokens, but those of batches: these compare one dtype with itself.
"""

import json
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from goals import Goal, finish, parse
from torch import Tensor

from tempspec.core.acceptance import overlap
from tempspec.core.divergences import forward_kl, negative_log_acceptance
from tempspec.core.sampling import log_law
from tempspec.decoding.engine import Engine
from tempspec.interfaces import Completion, Request
from tempspec.metrics.ratio import ClusteredRatio
from tempspec.models.loading import load_model, load_tokenizer, real_vocabulary
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import TokenwiseRejection

TEMPERATURES = (0.0, 0.5, 1.0, 1.5)
HALVES = ("bfloat16", "float16")
LENGTH, PROMPT, NEW = 128, 32, 64
SAMPLES = 8
"""Texts of each prompt that measured acceptance is counted on."""


class Pair:
    """Target and draft in one dtype.

    Args:
        assets: the folder with weights/.
        dtype: of both models' weights.
        seed: of the first text's noise.
    """

    def __init__(self, assets: Path, dtype: str, seed: int) -> None:
        self.seed = seed
        paths = (str(assets / f"weights/babyllama-{name}") for name in ("target", "draft"))
        self.target, self.draft = (load_model(path, dtype=dtype) for path in paths)
        self.vocabulary = real_vocabulary(load_tokenizer(str(assets / "weights/babyllama-target")), self.target)

    @torch.inference_mode()
    def laws(self, ids_BT: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The log-laws p and q behind every token, `[B, T, V]` each."""
        temperature_B = torch.full((len(ids_BT),), temperature)
        models = (self.target, self.draft)
        logits = (model(ids_BT, use_cache=False).logits[..., : self.vocabulary].float() for model in models)
        logp, logq = (log_law(each, temperature_B, any_greedy=temperature == 0) for each in logits)
        return logp, logq

    def decode(
        self, prompts: list[tuple[int, ...]], temperature: float, plain: bool = False, samples: int = 1
    ) -> list[Completion]:
        """What the engine gives, in the order of the prompts: sixteen at a time with drafts, or plainly one by one.

        Every prompt has `samples` texts, one behind the other, and every text a seed of its own, from `seed` on.
        """
        rules = {"verifier": TokenwiseRejection(), "drafter": CausalLM(), "length": FixedLength(4), "analytic": True}
        speculative = {"draft": self.draft, "slots": 16} | rules
        engine = Engine(self.target, self.vocabulary, **({"slots": 1} if plain else speculative))
        requests = [
            Request(prompt, temperature, max_new_tokens=NEW, seed=self.seed + number, key=str(number))
            for number, prompt in enumerate(prompt for prompt in prompts for _ in range(samples))
        ]
        return sorted(engine.run(requests), key=lambda completion: int(completion.request.key))


def distance(logp: Tensor, logq: Tensor) -> Tensor:
    """Total variation of each position."""
    return 1 - overlap(logp, logq)


def slope(pair: Pair, ids_BT: Tensor, loss: Callable[[Tensor, Tensor], Tensor], autocast: bool) -> tuple[float, Tensor]:
    """A batch's loss at T = 1 and its gradient on the draft's weights, as fit has it with `bf16-mixed` or without."""
    pair.draft.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            logits_p = pair.target(ids_BT, use_cache=False).logits
        logits_q = pair.draft(ids_BT, use_cache=False).logits
    logp, logq = (logits[..., : pair.vocabulary].float().log_softmax(-1) for logits in (logits_p, logits_q))
    value = loss(logp, logq).mean()
    value.backward()
    weights = (weight for weight in pair.draft.parameters() if weight.grad is not None)
    return value.item(), torch.cat([weight.grad.flatten() for weight in weights])


def compare_laws(whole: Pair, half: Pair, ids_BT: Tensor, name: str) -> float:
    """Print a line a temperature; returns the largest difference of mean acceptance."""
    worst = 0.0
    for temperature in TEMPERATURES:
        (logp, logq), (halfp, halfq) = (pair.laws(ids_BT, temperature) for pair in (whole, half))
        moved = overlap(halfp, halfq) - overlap(logp, logq)
        p, q = distance(logp, halfp), distance(logq, halfq)
        worst = max(worst, abs(moved.mean().item()))
        print(
            f"| {name} | {temperature:g} | {moved.mean():+.5f} | {moved.abs().mean():.5f} | {p.mean():.5f} | "
            f"{p.flatten().quantile(0.99):.4f} | {p.max():.4f} | {q.mean():.5f} |",
            flush=True,
        )
    return worst


def compare_batches(pair: Pair, ids_BT: Tensor, prompts: list[tuple[int, ...]], name: str) -> tuple[float, float]:
    """Print a dtype against itself: laws of rows alone and together, greedy text plain and drafted; returns both."""
    together = pair.laws(ids_BT, 1.0)[0]
    alone = torch.cat([pair.laws(row_T[None], 1.0)[0] for row_T in ids_BT])
    law = distance(together, alone).max().item()
    texts = [[each.tokens for each in pair.decode(prompts, 0.0, plain)] for plain in (True, False)]
    differ = mean(one != other for one, other in zip(*texts, strict=True))
    print(f"| {name} | {law:.2g} | {differ:.3f} |", flush=True)
    return law, differ


def measured_gap(pair: Pair, prompts: list[tuple[int, ...]], name: str, samples: int) -> float:
    """Print measured against analytic acceptance at T = 1; returns the gap in half widths of its interval."""
    found = pair.decode(prompts, 1.0, samples=samples)
    tested = torch.tensor([float(sum(each.tested)) for each in found])
    rates = {
        "accepted": [sum(each.accepted) for each in found],
        "expected": [sum(each.expected_acceptance) for each in found],
    }
    gap = ClusteredRatio()
    accepted, expected = (torch.tensor(rates[key], dtype=torch.float64) for key in ("accepted", "expected"))
    gap.update(accepted - expected, tested.double(), torch.arange(len(found)) // samples)
    estimate = gap.estimate()
    print(f"| {name} | {accepted.sum() / tested.sum():.4f} | {expected.sum() / tested.sum():.4f} | {estimate} |")
    half = max(estimate.high - estimate.value, estimate.value - estimate.low)
    return abs(estimate.value) / half


def main() -> None:
    """Print four tables and judge them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first text's noise; the next ones count on")
    arguments = parse(parser)
    if arguments.assets is None:
        parser.error("--assets FOLDER is needed: the folder with weights/ and data/")
    assets, rows = Path(arguments.assets), 8 if arguments.quick else 64
    tokenizer = load_tokenizer(str(assets / "weights/babyllama-target"))
    lines = (assets / "data/tinystories.jsonl").read_text().splitlines()
    stories = (" ".join(json.loads(line)["text"].split()) for line in lines)
    ids = [ids for story in stories if len(ids := tokenizer(story[: 2 * LENGTH])["input_ids"]) >= LENGTH][:rows]
    ids_BT = torch.tensor([row[:LENGTH] for row in ids])
    prompts = [tuple(row[:PROMPT]) for row in ids]
    pairs = {dtype: Pair(assets, dtype, arguments.seed) for dtype in ("float32", *HALVES)}

    print("| weights | T | acceptance | a token | TV of p | its 99% | its largest | TV of q |\n|" + "---|" * 8)
    moved = {name: compare_laws(pairs["float32"], pairs[name], ids_BT, name) for name in HALVES}
    print(
        "\n| weights | law alone and in a batch, largest TV | greedy texts, plain and drafted, differ |\n|---|---|---|"
    )
    batches = {name: compare_batches(pair, ids_BT, prompts, name) for name, pair in pairs.items()}
    print("\n| weights | measured acceptance | analytic | difference |\n|---|---|---|---|")
    gaps = {name: measured_gap(pair, prompts, name, 1 if arguments.quick else SAMPLES) for name, pair in pairs.items()}
    print("\n| loss | float32 | bf16-mixed | gradients' relative difference | cosine |\n|---|---|---|---|---|")
    losses = []
    for loss in (forward_kl, negative_log_acceptance):
        (exact, gradient), (mixed, other) = (slope(pairs["float32"], ids_BT, loss, on) for on in (False, True))
        apart = (other - gradient).norm() / gradient.norm()
        cosine = torch.cosine_similarity(other, gradient, dim=0)
        print(f"| {loss.__name__} | {exact:.5f} | {mixed:.5f} | {apart:.4f} | {cosine:.5f} |")
        losses.append(abs(mixed / exact - 1))
    finish(
        [
            *(Goal(f"mean acceptance of {name} from float32's", moved[name], high=0.005, digits=5) for name in HALVES),
            Goal("law of float32 alone and in a batch, largest TV", batches["float32"][0], high=1e-4, digits=7),
            Goal("greedy texts of float32 that differ between the two", batches["float32"][1], high=0),
            *(Goal(f"|measured - analytic| of {name}, in half widths", gap, high=1.0) for name, gap in gaps.items()),
            Goal("relative difference of a loss under bf16-mixed, the larger", max(losses), high=0.01, digits=5),
        ]
    )


if __name__ == "__main__":
    main()
