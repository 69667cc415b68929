"""Where the assistant speaks in a conversation, by characters of its rendered text. It knows no token (floor 5)."""

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from jinja2 import TemplateError

from tempspec.data.skipped import Unusable
from tempspec.errors import UserError
from tempspec.models.tokens import Span

Messages = Sequence[dict[str, Any]]
Tools = Sequence[dict[str, Any]]

REWRITTEN = "turns that the template rewrites"
UNASKED = "turns that answer nothing"
EMPTY = "turns with nothing to learn"
UNMARKED = "turns that the template does not mark"

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SENTINEL = "9c1f0d5e8b7a4c62"
"""In place of what somebody says, to see where a template writes it."""
_MOST_SKELETONS = 1024
_TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What a template raises at a conversation that it was not made for."""


class Found(NamedTuple):
    """A rendered conversation.

    Attributes:
        text: all of it.
        spans: the characters of every turn that can be learned, begin and end, in order.
        unlearned: for every assistant turn that cannot be, the reason.
    """

    text: str
    spans: list[Span]
    unlearned: list[str]


class _Skeleton(NamedTuple):
    """How a template writes conversations with these roles in this order.

    Attributes:
        glues: what it writes before, between and after what is said, one more than there are messages.
        turns: for every turn that can be learned, its message, and how many characters it begins before and ends after
            what is said there.
        unlearned: as in `Found`.
    """

    glues: list[str]
    turns: list[tuple[int, int, int]]
    unlearned: list[str]


def before_answer(messages: Messages) -> Messages:
    """The turns that an answer follows: a final assistant turn is left out.

    Raises:
        ValueError: there is no such turn.
    """
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if not asked:
        raise ValueError("expected a turn before the assistant's")
    return asked


class ChatTemplate:
    """A tokenizer's chat template, and where it writes what the assistant says.

    A turn runs from the end of the generation prompt to the end of the turn, its end mark included; blanks after a
    special token that ends it are the template's own. Both borders are found by rendering the conversation up to
    there: what is rendered must be how the whole begins. A turn that ends otherwise when more follows is taken where
    the template writes it word for word. What the template writes around the turns depends, for nearly all of them, on
    the roles alone: it is found once for every order of roles, and then only compared.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._skeletons: dict[tuple[str, ...], _Skeleton | None] = {}

    def marks_answers(self, tools: Tools | None = None) -> bool:
        """Whether the template itself says what the assistant writes (`{% generation %}`).

        Raises:
            UserError: the tokenizer has no template.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the tokenizer {self.tokenizer.name_or_path} has no chat template, which `messages` need; "
                "use prompt and response columns, or a chat model's tokenizer"
            )
        return _marks(self.tokenizer.get_chat_template(tools=tools))

    def render(self, messages: Messages, tools: Tools | None = None, **options: Any) -> Any:
        """What the template makes of messages: text, or what `options` of `apply_chat_template` ask for.

        Raises:
            Unusable: it takes no such messages.
        """
        try:
            made = self.tokenizer.apply_chat_template(list(messages), tools=tools, **{"tokenize": False} | options)
        except _TEMPLATE_FAULTS as error:
            raise Unusable("the chat template refuses it", " ".join(str(error).split())) from error
        return made

    def render_plain(self, conversations: Sequence[Messages]) -> list[str] | None:
        """The texts of conversations without tools, at least one, by one call: it takes less time than one each.

        Returns:
            One text for each; None where the template refuses one of them, and rendering one by one says which.
        """
        batch: Any = [list(messages) for messages in conversations]
        try:
            return self.render(batch)
        except Unusable:
            return None

    def find(self, messages: Messages, tools: Tools | None = None, text: str | None = None) -> Found:
        """The text of a conversation, and the assistant's turns in it.

        Args:
            messages: who says what.
            tools: what the assistant may call.
            text: what the template makes of both, where that is known.

        Raises:
            Unusable: the template refuses it, or its last turn cannot be told from its prompt.
        """
        check(messages)
        text = self.render(messages, tools) if text is None else text
        for message in messages:
            content = message.get("content")
            if content and not isinstance(content, str) and str(content) in text:
                raise Unusable("content in parts, which the chat template cannot write", f"got {str(content)[:60]}")
        if tools is None and all(map(_is_plain, messages)):
            skeleton = self._skeleton(tuple(message["role"] for message in messages))
            spans = skeleton and _fit(skeleton, [message["content"] for message in messages], text)
            if skeleton and spans is not None:
                return Found(text, spans, skeleton.unlearned)
        return self._searched(messages, tools, text)

    def _searched(self, messages: Messages, tools: Tools | None, text: str) -> Found:
        """Every border by renderings of its own."""
        asked = (index for index, message in enumerate(messages) if message["role"] == "assistant")
        found = [self._turn(messages, tools, text, index) for index in asked]
        return Found(
            text,
            [each for each in found if not isinstance(each, str)],
            [each for each in found if isinstance(each, str)],
        )

    def _turn(self, messages: Messages, tools: Tools | None, text: str, index: int) -> Span | str:
        """Where a turn is, or why it cannot be learned."""
        last = index == len(messages) - 1
        if index == 0:
            if last:
                raise Unusable("there is no turn before the assistant's")
            return UNASKED
        opening = self._prefix(messages[:index], tools, text, add_generation_prompt=True)
        if opening is None:
            if last:
                raise Unusable(
                    "the chat template writes the prompt differently once it is answered",
                    "that is the template's doing, not the row's: use one with {% generation %}, or answers with the "
                    "thinking that its generation prompt asks for",
                )
            return REWRITTEN
        if last:
            return opening, opening + len(self._trimmed(text[opening:]))
        closing = self._prefix(messages[: index + 1], tools, text)
        if closing is not None and closing >= opening:
            return opening, opening + len(self._trimmed(text[opening:closing]))
        closing = self._verbatim(messages, tools, text, index, opening)
        return REWRITTEN if closing is None else (opening, closing)

    def _prefix(self, messages: Messages, tools: Tools | None, text: str, **options: Any) -> int | None:
        """Where the first messages end in a text, if it begins with them."""
        try:
            prefix = self.render(messages, tools, **options)
        except Unusable:
            return None
        return len(prefix) if text.startswith(prefix) else None

    def _verbatim(self, messages: Messages, tools: Tools | None, text: str, index: int, opening: int) -> int | None:
        """Where a turn ends that is in a text as it was said: found by saying something else in its place."""
        message = messages[index]
        changed = [*messages[:index], message | {"content": _SENTINEL}, *messages[index + 1 :]]
        try:
            before, found, after = self.render(changed, tools).partition(_SENTINEL)
        except Unusable:
            return None
        end = len(text) - len(after)
        if not (found and text.startswith(before) and text.endswith(after) and opening <= len(before) <= end):
            return None
        rest, mark = text[end:].lstrip(), self._end_mark(text)
        if mark and rest.startswith(mark):
            end = len(text) - len(rest) + len(mark)
        said = [value.strip() for name, value in message.items() if name != "role" and isinstance(value, str)]
        return end if all(part in text[opening:end] for part in said) else None

    def _end_mark(self, text: str) -> str:
        """The special token that ends a text, empty where none does."""
        return next((mark for mark in self._special if text.rstrip().endswith(mark)), "")

    def _trimmed(self, turn: str) -> str:
        """A turn without the blanks after its end mark, which nobody is asked for."""
        return turn.rstrip() if self._end_mark(turn) else turn

    @cached_property
    def _special(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        return (*self.tokenizer.all_special_tokens, *(str(token) for token in added if token.special))

    def _skeleton(self, roles: tuple[str, ...]) -> _Skeleton | None:
        if roles not in self._skeletons and len(self._skeletons) < _MOST_SKELETONS:
            self._skeletons[roles] = self._skeleton_of(roles)
        return self._skeletons.get(roles)

    def _skeleton_of(self, roles: tuple[str, ...]) -> _Skeleton | None:
        """What the template writes around anything that is said, from a conversation of sentinels."""
        said = [f"{_SENTINEL[::-1]}-{index}-" for index in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, said, strict=True)]
        try:
            found = self._searched(messages, None, self.render(messages))
        except Unusable:
            return None
        glues, rest = [], found.text
        for content in said:
            glue, there, rest = rest.partition(content)
            if not there:
                return None
            glues.append(glue)
        begins = [found.text.index(content) for content in said]
        turns = []
        for begin, end in found.spans:
            inside = [index for index, place in enumerate(begins) if begin <= place < end]
            if len(inside) != 1:
                return None
            (index,) = inside
            turns.append((index, begins[index] - begin, end - begins[index] - len(said[index])))
        return _Skeleton([*glues, rest], turns, found.unlearned)


@lru_cache
def _marks(template: str) -> bool:
    return bool(_GENERATION_MARK.search(template))


def check(messages: Messages) -> None:
    """Refuse a conversation that nothing can be learned from.

    Raises:
        Unusable: it does not end with the assistant.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise Unusable("the last turn is not the assistant's", f"got '{messages[-1]['role']}'" if messages else "")


def _is_plain(message: dict[str, Any]) -> bool:
    """Whether a message holds a text that somebody says, and nothing else."""
    if not isinstance(message.get("content"), str):
        return False
    return len(message) == 2 or all(  # role and content
        value is None for name, value in message.items() if name not in ("role", "content")
    )


def _fit(skeleton: _Skeleton, said: Sequence[str], text: str) -> list[Span] | None:
    """The turns in a text, if it is the skeleton with what is said put in, as it is or without outer blanks."""
    position, places = len(skeleton.glues[0]), []
    if not text.startswith(skeleton.glues[0]):
        return None
    for content, glue in zip(said, skeleton.glues[1:], strict=True):
        end = _end_of(content, glue, text, position) or _end_of(content.strip(), glue, text, position)
        if end is None:
            return None
        places.append((position, end))
        position = end + len(glue)
    if position != len(text):
        return None
    return [(places[index][0] - back, places[index][1] + ahead) for index, back, ahead in skeleton.turns]


def _end_of(said: str, glue: str, text: str, position: int) -> int | None:
    """Where in a text something ends that was said at a position, if it and then the template's own follow there."""
    end = position + len(said)
    return end if text.startswith(said, position) and text.startswith(glue, end) else None
