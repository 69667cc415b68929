"""How much of a target's mass the vocabularies of a head hold, by temperature and size.

A head that drafts the most frequent tokens of its training text is never accepted more often than that. The text is a
Parquet file of the target's own answers, as `tempspec generate` writes it; the last rows are held out.

    python benchmarks/vocabularies.py --target models/smollm2 --text runs/smollm2/generate/generated.parquet

Axes: T positions, V vocabulary, R a head's own, S sizes, A temperatures.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet
import torch
from goals import Goal, finish, parse
from torch import Tensor

from tempspec.core.vocabulary import counted, coverage, most_frequent
from tempspec.models.loading import load_model

SIZES = [4096, 8192, 16384, 32768]
TEMPERATURES = [0.0, 0.5, 1.0, 1.5, 2.0]


def answers(file: str) -> list[dict[str, list[int]]]:
    """Rows of prompt and response ids."""
    return pyarrow.parquet.read_table(file, columns=["prompt_ids", "response_ids"]).to_pylist()


def vocabularies(rows: list[dict[str, list[int]]], vocabulary: int) -> list[Tensor]:
    """The most frequent response tokens, `[R]` for each size."""
    tokens = torch.tensor([token for row in rows for token in row["response_ids"]])
    count_V = counted(tokens, torch.ones_like(tokens, dtype=torch.bool), vocabulary)
    print(f"{len(rows)} answers, {len(tokens)} tokens, {int((count_V > 0).sum())} of {vocabulary} ids among them")
    return [most_frequent(count_V, size) for size in SIZES]


@torch.no_grad()
def held_mass(target: Any, rows: list[dict[str, list[int]]], ids: list[Tensor]) -> Iterator[Tensor]:
    """The mass at each response position of held-out answers, `[T, S, A]` a row."""
    for row in rows:
        prompt, response = row["prompt_ids"], row["response_ids"]
        logits_TV = target(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
        yield torch.stack([coverage(logits_TV, ids_R, TEMPERATURES) for ids_R in ids], 1)


def main() -> None:
    """Measure and judge."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="the folder of the target")
    parser.add_argument("--text", required=True, help="its answers")
    parser.add_argument("--held", type=int, default=100, help="answers that are measured")
    options = parse(parser)
    rows, held = answers(options.text), 8 if options.quick else options.held
    target = load_model(options.target, dtype="float32")
    ids = vocabularies(rows[:-held], target.get_output_embeddings().weight.shape[0])
    mass_SA = torch.cat(list(held_mass(target, rows[-held:], ids))).mean(0)
    print("size   " + "".join(f"  T = {temperature:<4g}" for temperature in TEMPERATURES))
    for size, mass_A in zip(SIZES, mass_SA.tolist(), strict=True):
        print(f"{size:<7}" + "".join(f"  {mass:<8.4f}" for mass in mass_A))
    hot = TEMPERATURES.index(1.5)
    finish(
        [
            Goal("mass of 16384 tokens at T = 1", float(mass_SA[2, TEMPERATURES.index(1.0)]), low=0.95, digits=4),
            Goal("mass of 32768 tokens at T = 1.5", float(mass_SA[3, hot]), low=0.95, digits=4),
            Goal("mass of 4096 tokens at T = 1.5 over that at T = 0", float(mass_SA[0, hot] / mass_SA[0, 0]), high=1.0),
        ]
    )


if __name__ == "__main__":
    main()
