"""A cached teacher from a server: the log-probabilities that an engine gives the training rows (floor 5).

No weights of the target are on this machine: its tokenizer and configuration alone. vLLM and SGLang tell the K most
likely tokens at every token of a given text, raw: before any temperature or truncation.

Axes: N the row's response tokens, K kept tokens.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import TimeoutError as NothingYet
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from tempspec.core.sparse import SparseLogits
from tempspec.core.tails import bounds, told
from tempspec.decoding.pace import Pace, PassCounts
from tempspec.errors import UserError
from tempspec.models.loading import load_config, vocabulary_of_config
from tempspec.models.pair import Pair
from tempspec.modules.fit.cache_folder import CacheOrigin, counted_tokens
from tempspec.modules.fit.prompt_logprobs import TellingEngine, telling
from tempspec.modules.fit.teacher import cache_origin
from tempspec.modules.fit.teacher_cache import CachedTeacher, CacheWriter
from tempspec.modules.openai_client import Refused, Server, Trouble
from tempspec.modules.server_kind import Kind, listed_models, recognise

__all__ = ["ServedTeacher", "kept_of"]

SUM_SLACK = 1e-3
"""How far probabilities of one law may add up to more than 1: half precision moves each by less."""

LEAST_SUM = 0.9
"""What a law adds up to at least if no other token is likelier than the last one told: an engine's rows beyond the real
ids may have some of it."""

SAME = 0.5
"""In nats: how far half precision may move a log-probability between two calls, with room to spare."""

Text = tuple[list[int], list[int]]
"""Token ids that the server reads together, and the places of those that count."""


class NotRaw(ValueError):
    """Values that are no log-probabilities of a whole law."""


@dataclass
class ServedTeacher:
    """Writes a cached teacher of a server's log-probabilities, from where it stopped.

    Args:
        options: what is kept, and where.
        pair: names the target.
        data: the data module whose training rows the target reads.
        server: whom to ask.
        watch: called about once a second while answers are waited for.
    """

    options: CachedTeacher
    pair: Pair
    data: Any
    server: Server
    watch: Callable[[Pace], None] | None = None
    _trouble: Trouble = field(default_factory=lambda: Trouble(rank_zero_info), init=False)
    _engine: TellingEngine = field(init=False)

    def write(self) -> None:
        """Ask for what is missing.

        Raises:
            UserError: the server cannot tell what is asked for, or cannot be reached; another cache is in the folder,
                or the disk is too small.
        """
        if self.options.keep != "top":
            raise UserError(f"a served teacher keeps top tokens, got teacher.keep: {self.options.keep}; set it to top")
        self.pair.check_rows(self.data.max_length)
        self.data.setup("fit")
        origin = self._origin()
        writer = CacheWriter(self.options, origin)
        rank_zero_info(str(writer))
        if writer.begun < origin.rows:
            writer.write(self._kept(writer.begun, origin), counted_tokens(self.data.train_rows))

    def _origin(self) -> CacheOrigin:
        """What the cache is made of: a target that is known by its name, and the kind of server."""
        kind: Kind = recognise(self.server, self._trouble)
        self._engine = telling(self.server, kind.name)
        origin = cache_origin(self.pair, self.data)
        return replace(origin, vocabulary=self._vocabulary, weights="", served=kind.name, apart=bool(self.data.packed))

    def _kept(self, begun: int, origin: CacheOrigin) -> Iterator[tuple[int, SparseLogits]]:
        """The number of each row from one on, and what is kept of it, in their order."""
        rows = self.data.train_rows
        apart = origin.apart
        self._check(_texts(rows[begun], apart))
        pace = Pace("teacher", origin.rows, begun)
        pace.start()
        tokens = 0
        with ThreadPool(self.server.concurrency) as pool:
            due = (_texts(rows[number], apart) for number in range(begun, origin.rows))
            for done, kept in enumerate(_in_order(pool, self._ask, due, self.server.concurrency, self._seen(pace)), 1):
                tokens += len(kept.token_NK)
                pace.counts = PassCounts(done, tokens, tokens)
                yield begun + done - 1, kept

    def _seen(self, pace: Pace) -> Callable[[], None]:
        def show() -> None:
            pace.trouble = str(self._trouble)
            if self.watch is not None:
                self.watch(pace)

        return show

    # -- one row ------------------------------------------------------------------------------------------------------

    def _ask(self, texts: Sequence[Text], temperature: float = 1.0) -> SparseLogits:
        """What is kept of a row."""
        entries = [entry for text in texts for entry in self._entries(text, temperature)]
        try:
            return kept_of(entries, self._asked, self._vocabulary, self.options.temperatures)
        except ValueError as error:
            remedy = self._engine.raw if isinstance(error, NotRaw) else "lower teacher.tokens"
            raise UserError(f"{self.server.url}: {error}; {remedy}") from error

    def _entries(self, text: Text, temperature: float) -> list[Any]:
        """What the engine tells at the places of a text that count."""
        ids, places = text
        asked = (self._model, ids, self._asked, temperature, self._trouble)
        try:
            found = self._engine.laws(self.server, *asked)
        except Refused as error:
            raise self._refusal(error) from error
        return [found[place] for place in places]

    def _refusal(self, error: Refused) -> UserError:
        if "logprobs" in str(error):
            return UserError(
                f"{self.server.url} gives fewer log-probabilities than teacher.tokens, {self._asked} ({error}): "
                + self._engine.more.format(self._asked)
            )
        return UserError(f"{self.server.url} refuses: {error}; {self._engine.longer}")

    def _check(self, texts: Sequence[Text]) -> None:
        """See on a row that values are raw log-probabilities, and say how well the tail is known.

        Raises:
            UserError: they are logits, or depend on the temperature that is asked for.
        """
        one, other = self._ask(texts), self._ask(texts, 0.25)
        gaps = (one.logit_NK - other.logit_NK).abs()
        alike = one.token_NK == other.token_NK
        if bool((gaps[alike] > SAME).any()):
            raise UserError(
                f"{self.server.url} gives log-probabilities that depend on the temperature: {self._engine.raw}"
            )
        if one.token_NK.shape[-1] < self._vocabulary and len(one.token_NK):
            rank_zero_info(_tail_note(one, self._vocabulary))

    @property
    def _asked(self) -> int:
        """Log-probabilities of each token."""
        return min(self.options.tokens, self._vocabulary)

    @cached_property
    def _model(self) -> str:
        """The name that the server serves the target under."""
        if self.server.model is not None:
            return self.server.model
        names = [str(entry.get("id")) for entry in listed_models(self.server)]
        return names[0] if len(names) == 1 else self.pair.target

    @cached_property
    def _vocabulary(self) -> int:
        options = self.pair.options
        config = load_config(
            self.pair.target, revision=options.target_revision, trust_remote_code=options.trust_remote_code
        )
        return vocabulary_of_config(self.pair.tokenizer, config)


def kept_of(
    laws: Sequence[Mapping[str, Mapping[str, float]]], kept: int, vocabulary: int, temperatures: Sequence[float]
) -> SparseLogits:
    """A teacher from what an engine tells of each token.

    Args:
        laws: of each token, by the token's id: `logprob` and `rank`; the text's own token may be there beyond the rest.
        kept: K, at most V.
        vocabulary: V.
        temperatures: increasing, above 0.

    Raises:
        ValueError: fewer tokens than K are told, or, as `NotRaw`, values that are no log-probabilities.

    >>> law = {"7": {"logprob": -0.5, "rank": 1}, "3": {"logprob": -1.5, "rank": 2}, "9": {"logprob": -5, "rank": 8}}
    >>> kept_of([law], 2, 10, [1.0]).token_NK
    tensor([[7, 3]])
    """
    pairs = [_largest(law, kept, vocabulary) for law in laws]
    token_NK = torch.tensor([[token for token, _ in row] for row in pairs], dtype=torch.int64).reshape(-1, kept)
    logp_NK = torch.tensor([[value for _, value in row] for row in pairs], dtype=torch.float64).reshape(-1, kept)
    sum_N = logp_NK.exp().sum(-1)
    most_N = sum_N + (vocabulary - kept) * logp_NK.amin(-1).exp()
    for broken_N, sums in ((sum_N > 1 + SUM_SLACK, "more than 1"), (most_N < LEAST_SUM, "less than 1")):
        if bool(broken_N.any()):
            raise NotRaw(f"expected raw log-probabilities, got values whose exponentials add up to {sums}")
    found = told(token_NK, logp_NK, vocabulary, temperatures)
    return replace(found, logit_NK=found.logit_NK.float(), logsum_NH=found.logsum_NH.float())


def _largest(law: Mapping[str, Mapping[str, float]], kept: int, vocabulary: int) -> list[tuple[int, float]]:
    told_ = sorted((float(entry["rank"]), int(token), float(entry["logprob"])) for token, entry in (law or {}).items())
    real = [(token, value) for rank, token, value in told_ if rank <= kept and token < vocabulary]
    if len(real) < kept:
        raise ValueError(f"expected the {kept} most likely of {vocabulary} tokens, got {len(real)}")
    return real


def _tail_note(kept: SparseLogits, vocabulary: int) -> str:
    """How much of the law is not told, at each temperature: taken, and between which bounds it must be.

    >>> print(_tail_note(told(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.25]]).log(), 6, (1.0, 2.0)), 6))
    kept log-probabilities leave a share to other tokens: at T = 1 .25, at T = 2 .44 (between .29 and .45)
    """
    logp_NK = kept.logit_NK.double()
    said = []
    for place, temperature in enumerate(kept.temperatures):
        head_N = (logp_NK / temperature).logsumexp(-1)
        ends = (*bounds(logp_NK, vocabulary, temperature), kept.logsum_NH[:, place].double())
        low, high, taken = (f"{float((end_N - head_N).sigmoid().mean()):.2f}".lstrip("0") for end_N in ends)
        between = "" if low == high else f" (between {low} and {high})"
        said.append(f"at T = {temperature:g} {taken}{between}")
    return f"kept log-probabilities leave a share to other tokens: {', '.join(said)}"


def _texts(row: Mapping[str, Any], apart: bool) -> list[Text]:
    """What a server reads of a training row: the whole, or each document with what is learned as its end.

    Args:
        row: `input_ids`, `loss_mask`, and of a packed row `starts`.
        apart: whether documents do not see each other.

    >>> _texts({"input_ids": [5, 6, 0, 7, 8], "loss_mask": [0, 1, 1, 1, 0], "starts": [0, 2]}, True)
    [([5, 6, 0], [1, 2]), ([0, 7], [1])]
    """
    ids, counted = list(row["input_ids"]), list(row["loss_mask"])
    starts = list(row.get("starts") or [0]) if apart else [0]
    found = []
    for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        places = [place - begin for place in range(begin + 1, min(end + 1, len(ids))) if counted[place]]
        if places:
            found.append((ids[begin : begin + places[-1] + 1], places))
    return found


def _in_order(
    pool: ThreadPool,
    ask: Callable[[list[Text]], SparseLogits],
    due: Iterable[list[Text]],
    concurrency: int,
    show: Callable[[], None],
) -> Iterator[SparseLogits]:
    """Answers in the order of what is due, with few of them in memory."""
    waiting: deque[AsyncResult[SparseLogits]] = deque()
    for texts in due:
        waiting.append(pool.apply_async(ask, (texts,)))
        if len(waiting) >= 2 * concurrency:
            yield _awaited(waiting.popleft(), show)
    while waiting:
        yield _awaited(waiting.popleft(), show)


def _awaited(result: "AsyncResult[SparseLogits]", show: Callable[[], None]) -> SparseLogits:
    while True:
        show()
        with suppress(NothingYet):
            return result.get(1.0)
