"""A row of generate: text and exact ids of prompt and response, and how they were sampled (floor 5)."""

from typing import Any

from tempspec.decoding.worklist import WorkItem
from tempspec.models.pair import Pair

__all__ = ["generated_row"]


def generated_row(item: WorkItem, pair: Pair, digest: str, text: str, ids: list[int], finish: str) -> dict[str, Any]:
    """What generate keeps of a completion: text and exact ids of prompt and response, and how they were sampled.

    Args:
        item: what was asked.
        pair: whose tokenizer writes the prompt's text.
        digest: of that tokenizer.
        text: the response.
        ids: its tokens.
        finish: `stop` or `length`.
    """
    prompt = list(item.request.prompt)
    return {
        "key": item.key,
        "prompt": pair.tokenizer.decode(prompt, skip_special_tokens=True),
        "response": text,
        "prompt_ids": prompt,
        "response_ids": ids,
        "tokenizer": digest,
        "generation_temperature": item.request.target_temperature,
        "prompt_set": item.prompt_set,
        "category": item.prompt.category,
        "turn": item.turn,
        "sample": item.sample,
        "seed": item.request.seed,
        "finish": finish,
    }
