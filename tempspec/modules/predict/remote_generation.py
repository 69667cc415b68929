"""generate by a serving engine: the target's text from where it is served, with the rows of generate (floor 5).

No weights are loaded here: the tokenizer and the configuration alone. Which tokens a server saw and wrote is known
exactly where it takes and returns ids, as engines do; elsewhere prompts go as text, and ids are those of our tokenizer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import TimeoutError as NothingYet
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_info
from transformers import GenerationConfig

from tempspec.decoding.pace import Pace, PassCounts
from tempspec.decoding.sweep import Sweep
from tempspec.decoding.worklist import PromptLike, WorkItem, generation_list, next_turn, sweep_origin, unanswered
from tempspec.errors import UserError
from tempspec.interfaces import Request
from tempspec.models.digests import tokenizer_digest
from tempspec.models.loading import load_config
from tempspec.models.pair import Pair
from tempspec.models.ragged import made_for
from tempspec.models.tokens import Tokeniser
from tempspec.modules.engine_forms import EngineForm, Vllm, form_of
from tempspec.modules.openai_client import Refused, Server, Trouble, call
from tempspec.modules.predict.generated_row import generated_row
from tempspec.modules.predict.row_store import RowStore
from tempspec.modules.predict.row_writer import RowWriter
from tempspec.modules.predict.served_tokens import check_truncation
from tempspec.modules.server_kind import Kind, listed_models, recognise, refusal

__all__ = ["ServedGeneration"]

Answer = TypeVar("Answer")


@dataclass
class ServedGeneration:
    """Asks a server for every completion of a sweep's generation temperatures, and keeps their rows.

    Args:
        pair: names the target; its tokenizer and configuration are read.
        sweep: temperatures, samples, lengths.
        server: whom to ask.
        watch: called about once a second while answers are waited for.
    """

    pair: Pair
    sweep: Sweep
    server: Server
    watch: Callable[[Pace], None] | None = None
    _done: list[int] = field(default_factory=list, init=False)
    _kind: Kind | None = field(default=None, init=False)
    _failed: Event = field(default_factory=Event, init=False)
    _trouble: Trouble = field(default_factory=lambda: Trouble(rank_zero_info), init=False)

    @cached_property
    def model(self) -> str:
        """The name that the server serves the target under."""
        if self.server.model is not None:
            return self.server.model
        names = [str(entry.get("id")) for entry in listed_models(self.server)]
        return names[0] if len(names) == 1 else self.pair.target

    @property
    def facts(self) -> dict[str, str]:
        """What the provenance says of the server; empty of one that was not asked, because all rows were there."""
        kind = self._kind
        named = {"kind": kind.name, "form": kind.form} if kind else {"kind": "", "form": ""}
        return {"url": self.server.url, "model": self.model} | named

    def run(self, prompt_sets: Mapping[str, Sequence[PromptLike]], folder: str | Path) -> tuple[RowStore, list[str]]:
        """Ask for what is missing; returns the finished rows, and the keys of this sweep's.

        Raises:
            UserError: the server refuses or cannot be reached, or the folder holds rows of another configuration.
        """
        self.sweep.tell_dropped()
        items = generation_list(self.sweep, prompt_sets)
        # the server may move between two runs, the model that it serves may not
        origin = {"target": f"served {self.pair.target}"} | sweep_origin(self.sweep, prompt_sets)
        store = RowStore(folder, "generated", origin)
        order = [key for item in items for key in item.keys()]
        answers = dict.fromkeys(store.keys(), "")
        answers |= store.values("response", {key for key in order if key in answers})
        due = unanswered(items, answers, self._context)
        writer = RowWriter(store, self.sweep.write_every)
        pace = Pace("generate", len(order), sum(key in answers for key in order))
        pace.start()
        with ThreadPool(self.server.concurrency) as pool:  # its threads end with the process, whatever they wait for
            try:
                if due:
                    begun = pool.apply_async(self._begin, ([item.request for item in due],))
                    self._awaited(begun.get, writer, pace)
                self._ask_all(pool, due, writer, pace)
            finally:
                writer.flush()
        store.finish(order)
        return store, order

    def _ask_all(self, pool: ThreadPool, due: Sequence[WorkItem], writer: RowWriter, pace: Pace) -> None:
        """Whole conversations, as they come; after a failure what is being asked is still waited for."""
        failures: list[UserError] = []
        self._failed.clear()
        self._done.clear()
        conversations = pool.imap_unordered(self._converse, due)
        with suppress(StopIteration):
            while True:
                answered, failure = self._awaited(conversations.next, writer, pace)
                writer.add(*answered)
                failures += [failure] if failure is not None else []
        if failures:
            raise failures[0]

    def _awaited(self, result: Callable[[float], Answer], writer: RowWriter, pace: Pace) -> Answer:
        """A result of the pool; while it is waited for, rows are written and progress is shown."""
        while True:
            tokens = sum(self._done)
            pace.counts, pace.trouble = PassCounts(len(self._done), tokens, tokens), str(self._trouble)
            if self.watch is not None:
                self.watch(pace)
            with suppress(NothingYet):
                return result(1.0)
            writer.tick()

    def _converse(self, opening: WorkItem) -> tuple[list[dict[str, Any]], UserError | None]:
        """The rows of a conversation from this turn on, and what ended it too early; none once one has failed."""
        rows: list[dict[str, Any]] = []
        item: WorkItem | None = opening
        while item is not None and not self._failed.is_set():
            try:
                rows.append(self._row(item))
                self._done.append(len(rows[-1]["response_ids"]))
            except UserError as error:
                self._failed.set()
                return rows, error
            item = next_turn(item, rows[-1]["response"], self._context)
        return rows, None

    # -- one request --------------------------------------------------------------------------------------------------

    def _row(self, item: WorkItem) -> dict[str, Any]:
        answer = self._ask(self._body(item.request))
        try:
            text, stopped, ids = self._read(answer)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            got = ", ".join(answer) if isinstance(answer, Mapping) else type(answer).__name__
            raise UserError(
                f"{self.server.url}: expected a completion with its text, got an answer of {got or 'nothing'}; "
                "see server.form"
            ) from error
        if ids:  # a server writes text piece by piece, and other spaces than a tokenizer that sees all of it
            text = self.pair.tokenizer.decode(ids, skip_special_tokens=True)
        else:
            ids = self._tokeniser.following(item.request.prompt, text, ended=stopped)
        finish = "stop" if stopped else "length"
        return generated_row(item, self.pair, self._tokenizer_digest, text, ids, finish)

    @property
    def _engine(self) -> EngineForm | None:
        """How an engine is asked; None of a server that is none."""
        return form_of(self._kind.name) if self._kind and self._kind.form == "engine" else None

    def _read(self, answer: Mapping[str, Any]) -> tuple[str, bool, list[int]]:
        """Text, whether it came to its end by itself, and its tokens where they are told."""
        engine = Vllm() if self._engine is None else self._engine  # OpenAI's answers are read as vLLM's
        return engine.text(answer), engine.ended(answer), engine.ids(answer)

    def _body(self, request: Request) -> dict[str, Any]:
        """What is posted, in the form that the server takes."""
        if self._engine is not None:
            return self._engine.body(request, self.model, stops=self.sweep.stop_at_eos)
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_new_tokens,
            "temperature": request.target_temperature,
            "top_p": request.top_p,
            "seed": request.seed & 0x7FFFFFFF,
            "prompt": self._as_text(request.prompt),
        }
        if self._kind and self._kind.form == "transformers":
            body["generation_config"] = self._generation_config(request)
        return body

    def _generation_config(self, request: Request) -> str:
        """All sampling options: a server's own defaults, such as a top-k of 50, must not join in."""
        return GenerationConfig(
            do_sample=request.target_temperature > 0,
            top_k=request.top_k,
            min_p=request.min_p or None,
            eos_token_id=self._stop_ids if self.sweep.stop_at_eos else None,
            pad_token_id=self.pair.tokenizer.eos_token_id,
        ).to_json_string(use_diff=True)

    def _as_text(self, prompt: Sequence[int]) -> str:
        """The text that the server's tokenizer turns into these tokens: without what it puts at the start by itself."""
        tokenizer = self.pair.tokenizer
        texts = [tokenizer.decode(list(prompt)), tokenizer.decode(list(prompt[1:]))]
        exact = (text for text in texts if list(tokenizer(text)["input_ids"]) == list(prompt))
        return next(exact, texts[1] if prompt[0] == tokenizer.bos_token_id else texts[0])

    def _begin(self, due: Sequence[Request]) -> None:
        """Find out what the server is, ask it once, and see on a sample that it cuts laws as it is asked to.

        Raises:
            UserError: it refuses, cannot say what the sweep asks for, or samples what the truncation excludes.
        """
        self._kind = recognise(self.server, self._trouble)
        neutral = self.sweep.top_k == 0 and self.sweep.min_p == 0 and self.sweep.stop_at_eos
        if self._kind.form == "openai":
            if not neutral:
                raise UserError(
                    f"{self.server.url} does not say what it is, and OpenAI's requests have no top_k, min_p or "
                    "ignore_eos: leave them at their defaults, or name what it is with server.form"
                )
            rank_zero_info(f"{self.server.url} takes no top_k: see that its own defaults truncate nothing")
        warmest = max(due, key=lambda one: one.target_temperature)  # at T = 0 vLLM lets a min_p pass that it refuses
        body = self._body(warmest.shortened(1))
        try:
            self._post(body)
        except Refused as error:
            raise refusal(self.server, body, error, self._post) from error
        if self._engine is not None:
            check_truncation(self.server.url, self._engine, self._post, [(self._body(one), one) for one in due])

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        path = "completions" if self._engine is None else self._engine.path
        return call(self.server, path, body, self._trouble)

    def _ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._post(body)
        except Refused as error:
            raise refusal(self.server, body, error) from error

    # -- the target ---------------------------------------------------------------------------------------------------

    @cached_property
    def _context(self) -> int:
        options = self.pair.options
        return made_for(
            load_config(self.pair.target, revision=options.target_revision, trust_remote_code=options.trust_remote_code)
        )

    @cached_property
    def _stop_ids(self) -> list[int]:
        """The ids that end a sequence, by the target's generation config and its tokenizer."""
        ids: Iterable[int | None] = [self.pair.tokenizer.eos_token_id]
        try:
            named = GenerationConfig.from_pretrained(self.pair.target, revision=self.pair.options.target_revision)
            more = named.eos_token_id
        except OSError:
            more = None
        ids = [*ids, *(more if isinstance(more, list) else [more])]
        return sorted({token for token in ids if token is not None})

    @cached_property
    def _tokeniser(self) -> Tokeniser:
        return Tokeniser(self.pair.tokenizer)

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.pair.tokenizer)
