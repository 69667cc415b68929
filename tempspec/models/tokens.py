"""Texts to token ids, with borders in them that are found by characters. It knows no chat template (floor 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from tokenizers import Encoding

Span = tuple[int, int]


class Marked(NamedTuple):
    """A text of which some parts are learned.

    Attributes:
        text: all of it.
        spans: the characters of those parts, begin and end, in order.
        opened: whether what the tokenizer puts at the start belongs before it.
        closed: whether EOS belongs after it; it is learned with what it ends.
    """

    text: str
    spans: Sequence[Span]
    opened: bool = False
    closed: bool = False


@dataclass
class Encoded:
    """Token ids, and which of them are learned.

    Attributes:
        ids: int32 `[T]`.
        spans: the tokens that are learned, begin and end, in order.
        asked: where a token reaches over the border before the first of them, the ids of what comes before it, when
            that is tokenised alone, int32 `[T]`.
        unlearned: for every part that should be learned and is not, the reason.
    """

    ids: np.ndarray
    spans: list[Span]
    asked: np.ndarray | None = None
    unlearned: list[str] = field(default_factory=list)

    @property
    def prompt(self) -> np.ndarray:
        """Ids of what comes before all that is learned, as they are when nothing follows yet."""
        return self.ids[: self.spans[0][0] if self.spans else None] if self.asked is None else self.asked


@dataclass(frozen=True)
class Tokeniser:
    """A tokenizer, and how marked texts are put to it.

    What belongs together is tokenised as one text: separately, what comes later may get a blank that nobody wrote.
    A token that reaches over a border is not learned: after what comes before alone, nobody is asked for it. What the
    tokenizer puts at the start or the end is not put there twice. Tokenizers of Python have no character positions:
    their texts are tokenised piece by piece.

    Args:
        tokenizer: a transformers tokenizer.
        add_bos: put BOS at the start even where the tokenizer does not.
    """

    tokenizer: Any
    add_bos: bool = False

    def encode(self, texts: Sequence[Marked]) -> list[Encoded]:
        """All texts by one call of the tokenizer, and one for the ends of prompts that a token reaches out of."""
        if not texts:
            return []
        made = self._by_characters(texts) if self.tokenizer.is_fast else [self._by_pieces(each) for each in texts]
        return [self._with_edges(encoded, marked) for encoded, marked in zip(made, texts, strict=True)]

    def _ids(self, texts: Sequence[str], *, special: bool = False) -> Any:
        return self.tokenizer(
            list(texts),
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    def _by_characters(self, texts: Sequence[Marked]) -> list[Encoded]:
        made, crossed = [], []
        for encoding, marked in zip(self._encodings([each.text for each in texts]), texts, strict=True):
            ids = _array(encoding.ids)
            borders = _Borders(encoding, len(ids), len(marked.text))
            spans = [borders.tokens_of(span) for span in marked.spans]
            made.append(Encoded(ids, spans))
            if spans and borders.start(spans[0][0]) != marked.spans[0][0]:
                kept = self._last_added(made[-1].ids[: spans[0][0]])
                begin = borders.place_of(kept)[0] if kept else 0
                crossed.append((made[-1], kept, marked.text[begin : marked.spans[0][0]]))
        if crossed:
            tails = list({tail for *_, tail in crossed})  # most are how the template opens an answer
            alone = dict(zip(tails, self._ids(tails)["input_ids"], strict=True))
            for encoded, kept, tail in crossed:
                encoded.asked = np.concatenate([encoded.ids[:kept], _array(alone[tail])])
        return made

    def _encodings(self, texts: list[str]) -> Sequence[Encoding]:
        """The texts by the library that transformers' fast tokenizers are made of.

        That takes a tenth less time than their own call. The call is made of the first text: it turns off what the
        file says of padding and truncation. A class of somebody else's may do more in its call, which then takes all
        texts.
        """
        if type(self.tokenizer).__module__.startswith("transformers."):
            (first,) = self._ids(texts[:1])["input_ids"]
            made: list[Encoding] = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
            if made[0].ids == first:
                return made
        return self._ids(texts).encodings

    def _last_added(self, ids: np.ndarray) -> int:
        """Where the last token is that texts are split at before all else: what follows cannot change what precedes."""
        return next((at for at in range(len(ids) - 1, -1, -1) if int(ids[at]) in self._added), 0)

    @cached_property
    def _added(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {token for token, each in added if each.special and not each.normalized}

    def _by_pieces(self, marked: Marked) -> Encoded:
        """What a tokenizer without character positions makes of the parts of a text, one by one."""
        self._say_that_pieces_are_tokenised  # noqa: B018  # once
        borders = [0, *(place for span in marked.spans for place in span), len(marked.text)]
        pieces = [marked.text[begin:end] for begin, end in pairwise(borders)]
        ids = self._ids(pieces)["input_ids"]
        ends = np.cumsum([len(piece) for piece in ids]).tolist()
        spans = [(ends[2 * index], ends[2 * index + 1]) for index in range(len(marked.spans))]
        return Encoded(_array([token for piece in ids for token in piece]), spans)

    @cached_property
    def _say_that_pieces_are_tokenised(self) -> None:
        name = type(self.tokenizer).__name__
        rank_zero_info(f"{name} gives no character positions: prompts and answers are tokenised piece by piece")

    def _with_edges(self, encoded: Encoded, marked: Marked) -> Encoded:
        """With what belongs before and after the text, where it is not there already."""
        ids, spans, asked, count = encoded.ids, encoded.spans, encoded.asked, len(encoded.ids)
        before, after = self._edges
        if marked.closed and ids[-1:].tolist() != after[-1:]:
            ids = np.concatenate([ids, _array(after)])
            spans = [(begin, len(ids) if end == count else end) for begin, end in spans]
        if marked.opened and ids[:1].tolist() != before[:1]:
            ids = np.concatenate([_array(before), ids])
            spans = [(begin + len(before), end + len(before)) for begin, end in spans]
            asked = asked if asked is None else np.concatenate([_array(before), asked])
        return Encoded(ids, spans, asked)

    @cached_property
    def _edges(self) -> tuple[list[int], list[int]]:
        """What comes before and after every document."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        plain, dressed = (self._ids(["a"], special=special)["input_ids"][0] for special in (False, True))
        at = next((at for at in range(len(dressed)) if dressed[at : at + len(plain)] == plain), 0)
        before, after = list(dressed[:at]), list(dressed[at + len(plain) :])
        if self.add_bos and bos is not None and before[:1] != [bos]:
            before = [bos, *before]
        return before, after if eos is None or after[-1:] == [eos] else [*after, eos]

    def following(self, prompt: Sequence[int], text: str, *, ended: bool) -> list[int]:
        """Ids of a text that was written after a prompt; EOS is put back where it ended by itself.

        It is tokenised after the prompt's own text, or, where a token would reach from one into the other, after
        another: the prompt's last token was not to be changed any more when the text was written.
        """
        context = str(self.tokenizer.decode(list(prompt), clean_up_tokenization_spaces=False))
        for before in (context, "\n", "a"):
            marked = Marked(before + text, [(len(before), len(before) + len(text))], opened=True, closed=ended)
            (both,) = self.encode([marked])
            if both.asked is None:
                break
        return both.ids[both.spans[0][0] :].tolist()


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.fromiter(ids, dtype=np.int32, count=len(ids))  # `asarray` looks at every number twice


class _Borders:
    """Where the tokens of a text begin and end, by characters.

    A token begins where the one before it ends: some tokenizers leave the blank at its start out of its position.

    Args:
        encoding: what the tokenizer gave.
        tokens: how many it has.
        characters: how many it has.
    """

    def __init__(self, encoding: Encoding, tokens: int, characters: int) -> None:
        self.token_at = encoding.char_to_token
        self.place_of: Callable[[int], Span] = encoding.token_to_chars  # type: ignore[assignment]  # every token has one
        self.tokens, self.characters = tokens, characters

    def end(self, token: int) -> int:
        """The character after a token's last; 0 before the first token."""
        return self.place_of(token)[1] if token >= 0 else 0

    def start(self, token: int) -> int:
        """A token's first character; that after the last one for the token after the last."""
        if token >= self.tokens:
            return self.characters
        return min(self.place_of(token)[0], self.end(token - 1))

    def tokens_of(self, span: Span) -> Span:
        """The tokens that lie within some characters, begin and end."""
        begin, end = self.first_from(span[0]), self.first_beyond(span[1])
        return begin, max(begin, end)

    def first_from(self, character: int) -> int:
        """The first token that begins at a character or after it."""
        if character <= 0:
            return 0
        token = self._near(character)
        while token < self.tokens and self.start(token) < character:
            token += 1
        while token > 0 and self.start(token - 1) >= character:
            token -= 1
        return token

    def first_beyond(self, character: int) -> int:
        """The first token that ends after a character."""
        if character >= self.characters:
            return self.tokens
        token = self._near(character)
        while token > 0 and self.end(token - 1) > character:
            token -= 1
        return token

    def _near(self, character: int) -> int:
        """The token of a character, or of the next that has one."""
        for place in range(character, self.characters):
            token = self.token_at(place)
            if token is not None:
                return token
        return self.tokens
