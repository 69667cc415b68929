"""From text to token ids: documents, prompts, pairs, conversations. It knows no file, no batch, no model (floor 5)."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from tempspec.data.skipped import Unusable
from tempspec.data.turns import EMPTY, UNMARKED, ChatTemplate, Messages, Tools, before_answer, check
from tempspec.models.tokens import Encoded, Marked, Tokeniser

__all__ = ["Conversation", "Encoder", "PromptResponse", "before_answer", "on_one_line"]

_PLAIN_TURN = "User: {}\nAssistant: {}\n"
_FEW = 8
"""Tokens up to which a turn is looked at, whether it says anything."""


def on_one_line(text: str) -> str:
    r"""Every run of whitespace as one space.

    >>> on_one_line("Once\n\nupon  a time")
    'Once upon a time'
    """
    return re.sub(r"\s+", " ", text)


class PromptResponse(NamedTuple):
    """A prompt, what follows it, and whether that came to its end by itself."""

    prompt: str
    response: str
    ended: bool = True


class Conversation(NamedTuple):
    """Messages as the chat template takes them, its tools, and whether the last answer came to its end by itself."""

    messages: Messages
    tools: Tools | None = None
    ended: bool = True


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and how texts are put to it.

    A document and a prompt start with what the tokenizer itself puts at the start (BOS, where it adds one), unless
    their text begins with it already; documents and responses end with EOS, where the tokenizer has one, unless they
    were cut; a prompt never does. Prompt and response are tokenised as one text, and so are the turns of a
    conversation (`Tokeniser`).

    Args:
        tokenizer: a transformers tokenizer.
        collapse_whitespace: turn every run of whitespace into one space, for vocabularies without a newline.
        add_bos: put BOS at the start even where the tokenizer does not, for models that were trained so.
    """

    tokenizer: Any
    collapse_whitespace: bool = False
    add_bos: bool = False

    # -- texts --------------------------------------------------------------------------------------------------------

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole documents, from BOS to EOS."""
        return [each.ids.tolist() for each in self.pairs(PromptResponse("", text) for text in texts)]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that something follows: BOS but no EOS."""
        return [each.ids.tolist() for each in self.pairs(PromptResponse("", text, ended=False) for text in texts)]

    def pairs(self, pairs: Iterable[PromptResponse]) -> list[Encoded]:
        """Prompts with what follows them, which is learned; without a prompt, a document."""
        return self._tokeniser.encode([self._joined(pair) for pair in pairs])

    def following(self, prompt: Sequence[int], text: str, *, ended: bool) -> list[int]:
        """Ids of a text that was written after a prompt; EOS is put back where it ended by itself."""
        return self._tokeniser.following(prompt, on_one_line(text) if self.collapse_whitespace else text, ended=ended)

    def text(self, ids: Sequence[int]) -> str:
        """What ids say, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    # -- conversations ------------------------------------------------------------------------------------------------

    def conversations(self, conversations: Sequence[Conversation]) -> list[Encoded | Unusable]:
        """Conversations under the chat template, of which what the assistant says is learned, or why that cannot be.

        Where the template marks it (`{% generation %}`), transformers' own mask says what that is; else the turns are
        found in the rendered text. A turn of which nothing is left but its end is not learned.
        """
        made: list[Encoded | Unusable | None] = [None] * len(conversations)
        texts: dict[int, Marked] = {}
        unlearned: dict[int, list[str]] = {}
        folded = [self._folded(each.messages) for each in conversations]
        rendered = self._rendered(conversations, folded)
        for index, (each, messages) in enumerate(zip(conversations, folded, strict=True)):
            try:
                if self._template.marks_answers(each.tools):
                    made[index] = self._marked_by_template(messages, each.tools)
                else:
                    text, spans, unlearned[index] = self._template.find(messages, each.tools, rendered.get(index))
                    texts[index] = Marked(text, spans)
            except Unusable as reason:
                made[index] = reason
        for index, found in zip(texts, self._tokeniser.encode(list(texts.values())), strict=True):
            found.unlearned = list(unlearned[index])
            made[index] = found
        for encoded, each in zip(made, conversations, strict=True):
            if isinstance(encoded, Encoded):
                self._leave_out_ends(encoded, ended=each.ended)
        return made  # type: ignore[return-value]  # nothing is None any more

    def opening(self, messages: Messages, tools: Tools | None = None) -> list[int]:
        """Ids of a conversation up to where the assistant is to speak next; a final assistant turn is left out.

        Raises:
            ValueError: there is nothing to answer, or the template refuses the turns.
        """
        self._template.marks_answers(tools)
        asked = self._folded(before_answer(messages))
        text = self._template.render(asked, tools, add_generation_prompt=True)
        return self._tokeniser.encode([Marked(text, [])])[0].ids.tolist()

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

    # -- parts --------------------------------------------------------------------------------------------------------

    @cached_property
    def _tokeniser(self) -> Tokeniser:
        return Tokeniser(self.tokenizer, self.add_bos)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    def _joined(self, pair: PromptResponse) -> Marked:
        prompt, both = pair.prompt, pair.prompt + pair.response
        if self.collapse_whitespace:
            prompt, both = on_one_line(prompt), on_one_line(both)
        return Marked(both, [(len(prompt), len(both))], opened=True, closed=pair.ended)

    def _folded(self, messages: Messages) -> Messages:
        if not self.collapse_whitespace:
            return messages
        return [
            turn | {"content": on_one_line(turn["content"])} if isinstance(turn.get("content"), str) else turn
            for turn in messages
        ]

    def _rendered(self, conversations: Sequence[Conversation], folded: Sequence[Messages]) -> dict[int, str]:
        """The texts that one call of the template gives, by the conversation's number."""
        plain = [index for index, each in enumerate(conversations) if each.tools is None and each.messages]
        if not plain or self._template.marks_answers():
            return {}
        texts = self._template.render_plain([folded[index] for index in plain])
        return {} if texts is None else dict(zip(plain, texts, strict=True))

    def _marked_by_template(self, messages: Messages, tools: Tools | None) -> Encoded:
        """As transformers' own mask says."""
        check(messages)
        marked = self._template.render(
            messages, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        spans, position = [], 0
        for learned, run in groupby(marked["assistant_masks"]):
            end = position + len(list(run))
            spans += [(position, end)] if learned else []
            position = end
        missing = sum(message["role"] == "assistant" for message in messages) - len(spans)
        return Encoded(np.asarray(marked["input_ids"], dtype=np.int32), spans, unlearned=[UNMARKED] * missing)

    def _leave_out_ends(self, encoded: Encoded, *, ended: bool) -> None:
        """Take out turns that say nothing, and the end of a last turn that was cut."""
        if not ended and encoded.spans:
            begin, end = encoded.spans[-1]
            while end > begin and int(encoded.ids[end - 1]) in self._special_ids:
                end -= 1
            encoded.spans[-1] = begin, end
        said = [
            end - begin > _FEW or bool(self.text(encoded.ids[begin:end].tolist()).strip())
            for begin, end in encoded.spans
        ]
        encoded.unlearned += [EMPTY] * said.count(False)
        encoded.spans = [span for span, says in zip(encoded.spans, said, strict=True) if says]

    @cached_property
    def _special_ids(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {*self.tokenizer.all_special_ids, *(token for token, each in added if each.special)}
