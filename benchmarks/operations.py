"""Single operations against what they replace: attention of grouped queries, truncation, training without a mask.

OMP_NUM_THREADS=1 python benchmarks/operations.py
"""

import statistics
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from time import process_time

import torch
from goals import Goal, finish, parse
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tempspec.core.sampling import truncate
from tempspec.models.attention import grouped_sdpa
from tempspec.models.reading import Reading

HEADS, SHARED, SIZE = 16, 2, 64
CONTEXT = 4096
ROWS, VOCABULARY = 8, 128_256
TEXT = 2048


class Layer(nn.Module):
    """What an attention function looks at in a layer: sixteen heads on two."""

    num_key_value_groups = HEADS // SHARED
    is_causal = True


def ratio(repetitions: int, before: Callable[[], object], now: Callable[[], object]) -> float:
    """How many times as long the first takes as the second: medians of processor seconds, timed in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(repetitions):
        for seconds, run in zip(taken, (before, now), strict=True):
            start = process_time()
            run()
            seconds.append(process_time() - start)
    return statistics.median(taken[0]) / statistics.median(taken[1])


def attention(repetitions: int) -> Iterator[Goal]:
    """A verify pass of five tokens after 4,096: one copy of the keys for each head, and none."""
    for rows, goal in ((1, 3.0), (ROWS, 5.0)):
        query = torch.randn(rows, HEADS, 5, SIZE)
        key, value = (torch.randn(rows, SHARED, CONTEXT + 5, SIZE) for _ in "kv")
        mask = torch.zeros(rows, 1, 5, CONTEXT + 5)
        given = Layer(), query, key, value, mask
        times = ratio(repetitions, lambda: sdpa_attention_forward(*given), lambda: grouped_sdpa(*given))  # noqa: B023
        yield Goal(f"grouped attention, {rows} rows after {CONTEXT} tokens, over sdpa", times, low=goal)


def sorted_top_k(logp_BNV: Tensor, k: int) -> Tensor:
    """Top-k by sorting the vocabulary."""
    floor = logp_BNV.sort(-1, descending=True).values[..., k - 1 : k]
    return logp_BNV.masked_fill(logp_BNV < floor, -torch.inf).log_softmax(-1)


def sorted_top_p(logp_BNV: Tensor, p: float) -> Tensor:
    """Top-p by sorting the vocabulary."""
    likely = logp_BNV.sort(stable=True, dim=-1, descending=True)
    before = likely.values.exp().cumsum(-1) - likely.values.exp()
    drop = torch.zeros_like(logp_BNV, dtype=torch.bool).scatter_(-1, likely.indices, before >= p)
    return logp_BNV.masked_fill(drop, -torch.inf).log_softmax(-1)


def truncation(repetitions: int) -> Iterator[Goal]:
    """Distributions of eight rows of 128,256 tokens that are about as sharp as a language model's."""
    logp = (torch.randn(ROWS, 1, VOCABULARY) * 5).log_softmax(-1)
    k, p = torch.full((ROWS,), 50), torch.full((ROWS,), 0.9)
    assert torch.equal(truncate(logp, top_k_B=k), sorted_top_k(logp, 50))
    assert torch.equal(truncate(logp, top_p_B=p), sorted_top_p(logp, 0.9))
    times = ratio(repetitions, lambda: sorted_top_k(logp, 50), lambda: truncate(logp, top_k_B=k, most_k=50))
    yield Goal("top-k 50, whole, over sorting", times, low=10.0)
    times = ratio(repetitions, lambda: logp.sort(-1, descending=True), lambda: logp.topk(50, -1))
    yield Goal("the 50th largest value over sorting", times, low=50.0)
    times = ratio(repetitions, lambda: sorted_top_p(logp, 0.9), lambda: truncate(logp, top_p_B=p))
    yield Goal("top-p 0.9, whole, over sorting", times, low=4.0)


def padding(repetitions: int) -> Iterator[Goal]:
    """A training pass over two rows, one of them half padding on the right: with its mask, and without."""
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=HEADS * SIZE // 2,
        intermediate_size=3 * HEADS * SIZE // 2,
        num_hidden_layers=2,
        num_attention_heads=HEADS // 2,
        num_key_value_heads=SHARED,
    )
    model = AutoModelForCausalLM.from_config(config)
    seen = torch.ones(2, TEXT, dtype=torch.int64)
    seen[1, TEXT // 2 :] = 0
    batch = {"input_ids": torch.randint(512, (2, TEXT)), "attention_mask": seen}

    def train(masked: bool) -> None:
        out = model.base_model(**Reading(masked).inputs(batch)).last_hidden_state
        out[seen.bool()].square().mean().backward()

    times = ratio(repetitions, lambda: train(True), lambda: train(False))
    yield Goal(f"training on rows of {TEXT} with a padding mask, over none", times, low=1.5)


def main() -> None:
    """Measure, print, and exit 1 where a goal is missed."""
    args = parse(ArgumentParser(description=__doc__))
    torch.manual_seed(0)
    repetitions = 3 if args.quick else 15
    finish([*attention(repetitions), *truncation(repetitions), *padding(repetitions)])


if __name__ == "__main__":
    main()
