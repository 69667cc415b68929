"""From text to token ids: documents, prompts, responses, conversations. It knows no file, no batch, no model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tempspec.errors import UserError

_PLAIN_TURN = "User: {}\nAssistant: {}\n"
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

Turns = list[dict[str, Any]]


def fold(text: str) -> str:
    r"""Every run of whitespace as one space.

    >>> fold("Once\n\nupon  a time")
    'Once upon a time'
    """
    return re.sub(r"\s+", " ", text)


def before_answer(turns: Turns) -> Turns:
    """The turns that an answer follows: a final assistant turn is left out.

    Raises:
        ValueError: there is no such turn.
    """
    asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    if not asked:
        raise ValueError("expected a turn before the assistant's")
    return asked


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and how texts are put to it.

    A document and a prompt start with what the tokenizer itself puts at the start (BOS, where it adds one); documents
    and responses end with EOS, where the tokenizer has one; a prompt never does. Prompt and response are tokenised
    apart, so that the boundary is exact.

    Args:
        tokenizer: a transformers tokenizer.
        fold_whitespace: turn every run of whitespace into one space, for vocabularies without a newline.
        add_bos: put BOS at the start even where the tokenizer does not, for models that were trained so.
    """

    tokenizer: Any
    fold_whitespace: bool = False
    add_bos: bool = False

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole documents, from BOS to EOS."""
        return [self._closed(ids) for ids in self.prompts(texts)]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that something follows: BOS but no EOS."""
        return [self._opened(ids) for ids in self._tokenise(texts, special=True)]

    def responses(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that follow a prompt: no BOS, but EOS."""
        return [self._closed(ids) for ids in self._tokenise(texts, special=False)]

    def conversation(self, turns: Turns) -> tuple[list[int], list[bool]]:
        """Ids of a conversation under the chat template, and which of them an assistant wrote.

        All assistant turns count where the template marks them (`{% generation %}`); else the last turn alone, with
        everything that the template puts behind it.

        Raises:
            ValueError: the last turn is not the assistant's, or the template cannot tell prompt from response.
        """
        if turns[-1]["role"] != "assistant":
            raise ValueError(f"the last turn must be the assistant's, got '{turns[-1]['role']}'")
        if _GENERATION_MARK.search(self._template()):
            marked = self._render(turns, return_assistant_tokens_mask=True)
            return list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
        ids, opening = list(self._render(turns)["input_ids"]), self.opening(turns)
        if ids[: len(opening)] != opening:
            raise ValueError("the chat template writes the prompt differently once it is answered")
        return ids, [False] * len(opening) + [True] * (len(ids) - len(opening))

    def opening(self, turns: Turns, tools: list[Any] | None = None) -> list[int]:
        """Ids of a conversation up to where the assistant is to speak next; a final assistant turn is left out.

        Raises:
            ValueError: there is nothing to answer, or the template refuses the turns.
        """
        return list(self._render(before_answer(turns), tools=tools, add_generation_prompt=True)["input_ids"])

    def asking(self, questions: Sequence[str], answers: Sequence[str]) -> list[int]:
        r"""Ids of a conversation whose last question waits for its answer.

        Under the chat template; where the tokenizer has none, as plain text: `User: QUESTION\nAssistant: ANSWER\n` for
        every answered question, then `User: QUESTION\nAssistant:`.

        Args:
            questions: what the user said, one more than there are answers.
            answers: what the assistant answered.

        Raises:
            ValueError: the template refuses the turns.
        """
        if not self.tokenizer.chat_template:
            answered = "".join(_PLAIN_TURN.format(*pair) for pair in zip(questions, answers, strict=False))
            return self.prompts([answered + _PLAIN_TURN.format(questions[-1], "").rstrip()])[0]
        turns = [{"role": "user", "content": questions[0]}]
        for answer, question in zip(answers, questions[1:], strict=True):
            turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
        return self.opening(turns)

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _tokenise(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if self.fold_whitespace:
            texts = [fold(text) for text in texts]
        encoded = self.tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def _opened(self, ids: list[int]) -> list[int]:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if len(ids) > 1 and ids[-1] == eos is not None:
            ids = ids[:-1]
        return [bos, *ids] if self.add_bos and bos is not None and ids[:1] != [bos] else ids

    def _closed(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]

    def _template(self) -> str:
        template = self.tokenizer.chat_template
        if not template:
            raise UserError(
                f"the tokenizer {self.tokenizer.name_or_path} has no chat template, which `messages` need; "
                "use prompt and response columns, or a chat model's tokenizer"
            )
        return str(self.tokenizer.get_chat_template())

    def _render(self, turns: Turns, **options: Any) -> Any:
        self._template()
        if self.fold_whitespace:
            turns = [{**turn, "content": fold(turn["content"])} for turn in turns]
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **options)
        except TemplateError as error:
            raise ValueError(f"the chat template refuses it: {' '.join(str(error).split())}") from error
