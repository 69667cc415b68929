from dataclasses import dataclass

import pytest

from tempspec.decoding.fitting import check_items
from tempspec.decoding.sweep import Sweep
from tempspec.decoding.worklist import work_list
from tempspec.errors import UserError
from tempspec.plugins.verifiers import TokenwiseRejection


@dataclass(frozen=True)
class Prompt:
    ids: tuple[int, ...]
    place: str
    index: int = 0
    key: int = 1
    category: str = ""
    turns: int = 1


class Reader:
    """Reads everything."""

    def check(self, request):
        self.last = request


def test_a_prompt_beyond_the_context_names_its_row_and_option():
    prompts = {"sb": [Prompt((1, 2), "q.jsonl line 1"), Prompt((1,) * 9, "q.jsonl line 2")]}
    items = work_list(Sweep([0.0]), {"token": TokenwiseRejection()}, prompts)
    check_items(Reader(), items, 10)
    with pytest.raises(
        UserError,
        match=r"^q.jsonl line 2: this prompt has 9 tokens.*context of 9: .*"
        "max_prompt_tokens of the prompt set sb, such",
    ):
        check_items(Reader(), items, 9)
