"""How much of a target's mass the vocabularies of a head hold, and what they cost a draft, by domain and temperature.

A head that drafts the most frequent tokens of its training text is never accepted more often than the target gives
them mass. Of a draft that is trained, what it loses is measured: its law is cut to these tokens and renormalised. The
training text are Parquet files of the target's own answers, as `tempspec generate` writes them. What is measured are
answers to other prompts: `--held`, each at the temperature that it was sampled at, or the last rows of the text at all.

    python benchmarks/vocabularies.py --target models/smollm2 --text runs/smollm2/generate/generated.parquet
    python benchmarks/vocabularies.py --target models/smollm2 --text runs/smollm2/generate/generated.parquet
        --held texts/generated.parquet --draft runs/smollm2/fit/draft

Axes: T positions, V vocabulary, R a head's own, S sizes, A temperatures.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow.parquet
import torch
from goals import Goal, finish, parse
from torch import Tensor

from tempspec.core.acceptance import acceptance_grid
from tempspec.core.vocabulary import counted, coverage, most_frequent, widened
from tempspec.data.digest import key_of_ids
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.ratio import ClusteredRatio, paired_difference
from tempspec.models.loading import load_draft, load_model

SIZES = [4096, 8192, 16384, 32768]
TEMPERATURES = [0.0, 0.5, 1.0, 1.5]
ALL = "all"

Row = dict[str, Any]


class Place(NamedTuple):
    """What is measured, where: `mass`, `acceptance` or its `loss`; 0 is the size of the whole vocabulary."""

    what: str
    domain: str
    size: int
    temperature: float


def answers(files: list[str]) -> list[Row]:
    """Rows with prompt and response ids, and whatever else of a generated row is here."""
    columns = {"prompt_ids", "response_ids", "prompt_set", "generation_temperature"}
    tables = (pyarrow.parquet.read_table(file) for file in files)
    return [row for table in tables for row in table.select(sorted(columns & set(table.column_names))).to_pylist()]


def vocabularies(rows: list[Row], vocabulary: int) -> list[Tensor]:
    """The most frequent response tokens, `[R]` for each size."""
    tokens = torch.tensor([token for row in rows for token in row["response_ids"]])
    count_V = counted(tokens, torch.ones_like(tokens, dtype=torch.bool), vocabulary)
    print(f"{len(rows)} answers, {len(tokens)} tokens, {int((count_V > 0).sum())} of {vocabulary} ids among them")
    return [most_frequent(count_V, size) for size in SIZES]


@torch.no_grad()
def logits(model: Any, row: Row) -> Tensor:
    """Of the response positions, `[T, V]`."""
    prompt, response = row["prompt_ids"], row["response_ids"]
    return model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()


def measured(
    row: Row, p_TV: Tensor, q_TV: Tensor | None, ids: list[Tensor], at: float
) -> Iterator[tuple[Place, Tensor]]:
    """Values at every response position of a row, `[T]`, at one temperature."""
    domain = row.get("prompt_set") or "text"
    for size, ids_R in zip(SIZES, ids, strict=True):
        yield Place("mass", domain, size, at), coverage(p_TV, ids_R, [at])[:, 0]
    if q_TV is None:
        return
    for size, ids_R in zip([0, *SIZES], [torch.arange(p_TV.shape[-1]), *ids], strict=True):
        cut_TV = widened(q_TV[:, ids_R], ids_R, p_TV.shape[-1])
        yield Place("acceptance", domain, size, at), acceptance_grid(p_TV, cut_TV, [at], [at])[:, 0, 0]


def collected(target: Any, draft: Any, rows: list[Row], ids: list[Tensor]) -> dict[Place, ClusteredRatio]:
    """The ratios of all places, those of all domains together among them."""
    own = len({row.get("generation_temperature") for row in rows}) > 1
    found: dict[Place, ClusteredRatio] = {}
    for row in rows:
        if not row["response_ids"]:
            continue
        p_TV, q_TV = logits(target, row), None if draft is None else logits(draft, row)
        key = torch.tensor(key_of_ids(row["prompt_ids"]))
        for at in [row["generation_temperature"]] if own else TEMPERATURES:
            for place, value_T in measured(row, p_TV, q_TV, ids, at):
                for where in (place, place._replace(domain=ALL)):
                    ratio = found.setdefault(where, ClusteredRatio())
                    ratio.update(value_T, torch.ones_like(value_T), key.expand(len(value_T)))
    return found


def estimates(found: dict[Place, ClusteredRatio]) -> dict[Place, Estimate]:
    """All of them, and what each vocabulary costs: whole less cut, paired over prompts."""
    lost = {
        place._replace(what="loss"): paired_difference(found[place._replace(size=0)], ratio)
        for place, ratio in found.items()
        if place.what == "acceptance" and place.size
    }
    return {place: ratio.estimate() for place, ratio in found.items()} | lost


def show(found: dict[Place, Estimate]) -> None:
    """A table for each quantity and domain."""
    for what, domain in dict.fromkeys((place.what, place.domain) for place in found):
        here = {place: one for place, one in found.items() if (place.what, place.domain) == (what, domain)}
        temperatures = sorted({place.temperature for place in here})
        print(f"\n{what}, {domain}\n| size | " + " | ".join(f"T = {t:g}" for t in temperatures) + " |")
        print("|---" * (1 + len(temperatures)) + "|")
        for size in dict.fromkeys(place.size for place in here):
            cells = (format(here[Place(what, domain, size, t)], "+" * (what == "loss")) for t in temperatures)
            print(f"| {size or 'whole'} | " + " | ".join(cells) + " |")


def main() -> None:
    """Measure and judge."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="the folder of the target")
    parser.add_argument("--text", required=True, nargs="+", help="its answers that vocabularies are counted on")
    parser.add_argument("--held", help="its answers to other prompts, which are measured")
    parser.add_argument("--last", type=int, default=100, help="without --held: so many of the last answers")
    parser.add_argument("--draft", help="the folder of a draft that is cut")
    options = parse(parser)
    rows, last = answers(options.text), 8 if options.quick else options.last
    held = answers([options.held])[: last if options.quick else None] if options.held else rows[-last:]
    prompts = {tuple(row["prompt_ids"]) for row in held}
    target = load_model(options.target, dtype="float32")
    draft = load_draft(options.draft, dtype="float32") if options.draft else None
    size = target.get_output_embeddings().weight.shape[0]
    ids = vocabularies([row for row in rows if tuple(row["prompt_ids"]) not in prompts], size)
    found = estimates(collected(target, draft, held, ids))
    show(found)
    mass = {(place.size, place.temperature): one.value for place, one in found.items()
            if (place.what, place.domain) == ("mass", ALL)}  # fmt: skip
    finish(
        [
            Goal("mass of 16384 tokens at T = 1", mass[16384, 1.0], low=0.95, digits=4),
            Goal("mass of 32768 tokens at T = 1.5", mass[32768, 1.5], low=0.95, digits=4),
            Goal("mass of 4096 tokens at T = 1.5 over that at T = 0", mass[4096, 1.5] / mass[4096, 0.0], high=1.0),
        ]
    )


if __name__ == "__main__":
    main()
