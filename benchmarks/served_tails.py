"""How well the tail of a served teacher is known: a power of the rank beside the whole distribution.

python benchmarks/served_tails.py --assets FOLDER
"""

import json
from argparse import ArgumentParser
from collections.abc import Iterator

import torch
from goals import Goal, finish, parse
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tempspec.core.sparse import top_k
from tempspec.core.tails import bounds, power_law

TEMPERATURES = (0.5, 0.75, 1.0, 1.5, 2.0)
MOST = {0.5: 0.005, 0.75: 0.01, 1.0: 1e-6, 1.5: 0.025, 2.0: 0.025}
"""The mean error of the tail's share that is allowed."""


@torch.inference_mode()
def logp_of(folder: str, texts: list[str], length: int) -> Tensor:
    """Log-probabilities at every token of some texts, float64 `[N, V]`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [tokenizer(text)["input_ids"][:length] for text in texts]
    return torch.cat([model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1) for ids in rows])


def goals_of(logp_NV: Tensor, kept: int) -> Iterator[Goal]:
    """The mean error of the tail's share at each temperature; prints the shares."""
    vocabulary = logp_NV.shape[-1]
    known = top_k(logp_NV, kept, TEMPERATURES)
    taken_NH = power_law(known.logit_NK, vocabulary, TEMPERATURES)
    for place, temperature in enumerate(TEMPERATURES):
        head_N = (known.logit_NK / temperature).logsumexp(-1)
        ends = bounds(known.logit_NK, vocabulary, temperature)
        sums = (known.logsum_NH[:, place], taken_NH[:, place], *ends)
        true_N, share_N, low_N, high_N = ((sum_N - head_N).sigmoid() for sum_N in sums)
        print(
            f"{kept} told, T = {temperature:g}: {true_N.mean():.4f} is the tail's, {share_N.mean():.4f} was taken, "
            f"between {low_N.mean():.4f} and {high_N.mean():.4f}"
        )
        error = float((share_N - true_N).abs().mean())
        yield Goal(
            f"mean error of the share, {kept} told, T = {temperature:g}", error, high=MOST[temperature], digits=4
        )


def main() -> None:
    """Print the shares and the goals."""
    options = parse(
        ArgumentParser(description=__doc__), "a folder with weights/bench-target and data/tinystories.jsonl"
    )
    with (options.assets / "data/tinystories.jsonl").open() as file:
        texts = ["<|endoftext|>" + json.loads(line)["text"] for line, _ in zip(file, range(16), strict=False)]
    logp_NV = logp_of(str(options.assets / "weights/bench-target"), texts, 64 if options.quick else 256)
    finish([goal for kept in (20, 64) for goal in goals_of(logp_NV, kept)])


if __name__ == "__main__":
    main()
