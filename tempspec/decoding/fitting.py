"""Prompts that the target cannot read, told by their place in the user's files (floor 4)."""

from collections.abc import Iterable

from tempspec.decoding.engine import Engine
from tempspec.decoding.worklist import WorkItem
from tempspec.errors import UserError

__all__ = ["check_items"]


def check_items(engine: Engine, items: Iterable[WorkItem], context: int) -> None:
    """Refuse items that an engine cannot decode.

    Args:
        engine: any with the target.
        items: the openings of a work list.
        context: the tokens that the target can read.

    Raises:
        UserError: see `Engine.check`; it names the file and the row, and the option that leaves long prompts out.
    """
    for item in items:
        tokens = len(item.request.prompt)
        if tokens >= context:
            raise UserError(
                f"{item.prompt.place}: this prompt has {tokens} tokens, expected fewer than the target's context of "
                f"{context}: shorten it, or leave long prompts out with max_prompt_tokens of the prompt set "
                f"{item.prompt_set}, such as {max(context // 2, 1)}"
            )
        engine.check(item.request)
