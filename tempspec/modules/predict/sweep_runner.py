"""The sweep of predict and generate: its work list, its engines, its rows on disk (floor 5).

The work list holds the openings of conversations; each pass of a verifier is one running queue, into which a turn goes
back when the one before it is answered. A conversation stays with its process, and a continued run takes it up at the
first turn without a row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from tempspec.decoding.engine import Engine
from tempspec.decoding.fitting import check_items
from tempspec.decoding.pace import Pace
from tempspec.decoding.refusing import check_parts, compiles
from tempspec.decoding.sweep import Sweep
from tempspec.decoding.work import Queue, Work, works
from tempspec.decoding.worklist import (
    PromptLike,
    WorkItem,
    generation_list,
    next_turn,
    sweep_origin,
    work_list,
)
from tempspec.errors import UserError
from tempspec.interfaces import BASELINE, Completion, Drafter, DraftLength, Pass, Request, StepTimes, Verifier
from tempspec.metrics.rows import DecodedRow, row_from_completion
from tempspec.models.digests import tokenizer_digest
from tempspec.models.head_draft import DraftModel
from tempspec.models.machine import machine
from tempspec.models.pair import Pair
from tempspec.models.ragged import context_length
from tempspec.modules.draft_temperatures import read_fitted
from tempspec.modules.predict.dealing import FAILED, Dealer
from tempspec.modules.predict.earlier_rows import refuse_earlier_rows
from tempspec.modules.predict.generated_row import generated_row
from tempspec.modules.predict.identity import describe, draft_identity, fitted_for, pair_identity, target_identity
from tempspec.modules.predict.pulse import PassProgress, Pulse
from tempspec.modules.predict.row_store import Origin, RowStore
from tempspec.modules.predict.row_writer import RowWriter
from tempspec.modules.predict.step_times_file import read_step_times, write_step_times
from tempspec.modules.predict.taken_rows import take_over
from tempspec.modules.processes import of_all, refused_by_all

WARM_UP_TOKENS = 8
"""Tokens decoded and thrown away before the first timed request of a verifier."""

_ANSWER = "."
"""In place of an answer where only the length of a conversation is asked for."""

PromptSets = Mapping[str, Sequence[PromptLike]]


@dataclass
class SweepRunner:
    """Decodes the items of a sweep and keeps their rows.

    Args:
        pair: the models.
        sweep: temperatures, lengths and passes.
        verifiers: acceptance rules by label.
        drafter: proposes tokens.
        length: how many.
        generating: write the target's own text, at the generation temperatures, instead of measuring verifiers.
        watch: called a few times a second while a pass is decoded.
        beside: the folder of another stage whose rows are taken where they would be the same.
    """

    pair: Pair
    sweep: Sweep
    verifiers: Mapping[str, Verifier]
    drafter: Drafter
    length: DraftLength
    generating: bool = False
    watch: Callable[[Pace], None] | None = None
    beside: Path | None = None
    _order: list[str] = field(default_factory=list)
    _engines: dict[str, Engine] = field(default_factory=dict)
    _store: RowStore | None = None
    _dealer: Dealer | None = None
    _passes: dict[Pass, PassProgress] = field(default_factory=dict)
    _timed: DraftLength | None = None
    _checkpoint: str | None = None
    _session: str = ""
    _timed_on: str = ""
    _earlier: tuple[Engine, ...] = ()
    _longest_row: int = 0
    _shortest_prompt: tuple[int, ...] = ()

    @property
    def needs_draft(self) -> bool:
        """Whether a draft model takes part."""
        return self.drafter.needs_model and not self.generating

    @property
    def store(self) -> RowStore:
        """Where the rows are; opened by `plan`."""
        assert self._store is not None
        return self._store

    @property
    def order(self) -> list[str]:
        """The keys of this sweep's rows; the file may hold those of other sweeps, too."""
        return self._order

    def plan(
        self, prompt_sets: PromptSets, folder: str | Path, *, rank: int = 0, checkpoint: str | None = None
    ) -> list[Work]:
        """Open the store and say what is left to do, pass by pass; every rank calls it, and gets the same.

        Args:
            prompt_sets: prompts by name.
            folder: where the rows go.
            rank: this process's number.
            checkpoint: the file that the draft's weights come from, if not from its folder.

        Raises:
            UserError: the folder holds rows of another configuration, or a prompt does not fit the models.
        """
        self.sweep.tell_dropped()
        stop_ids = self.pair.stop_ids
        if self.generating:
            items = generation_list(self.sweep, prompt_sets, stop_ids)
        else:
            fitted = self._fitted(Path(folder).parent / "validate", checkpoint)
            items = work_list(self.sweep, self.verifiers, prompt_sets, stop_ids, fitted)
        check_items(Engine(self.pair.target_model, self.pair.vocabulary), items, self._context)
        self._longest_row = max(self._longest_turn(prompt) for prompts in prompt_sets.values() for prompt in prompts)
        self._shortest_prompt = min((item.request.prompt for item in items), key=len, default=())
        self._order = [key for item in items for key in item.keys()]
        self._checkpoint = checkpoint
        self._store = self._opened(Path(folder), self._origin(prompt_sets, checkpoint), rank)
        answers = self._answers(items)
        _barrier()  # nobody writes a row before all have seen which are there
        self._dealer = Dealer()
        self._session = of_all(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))[0]
        left = [work.left(answers, self._context) for work in works(items)]
        for pass_ in dict.fromkeys(item.pass_ for item in items):
            rows = sum(len(item.keys()) for item in items if item.pass_ == pass_)
            due = sum(work.rows for work in left if work.pass_ == pass_)
            name = "generate" if self.generating else f"{pass_} pass"
            self._passes[pass_] = PassProgress(Pace(name, rows, rows - due))
        left = [work for work in left if work.units] or left[:1]
        left[-1].last = True
        return left

    def _opened(self, folder: Path, origin: Origin, rank: int) -> RowStore:
        """The store.

        Raises:
            UserError: see `RowStore`.
        """
        name = "generated" if self.generating else "predictions"
        with refused_by_all():
            refuse_earlier_rows(folder, name)
            store = RowStore(folder, name, origin, rank)
        if self.beside is not None and rank == 0:
            take_over(store, self.order, origin, self.beside)
        return store

    def _answers(self, items: Sequence[WorkItem]) -> dict[str, str]:
        """What was answered before, by key; the texts of conversations alone, which continue."""
        there = set(self.store.keys())
        followed = {key for item in items if item.prompt.turns > 1 for key in item.keys() if key in there}
        column = "response" if self.generating else "text"
        return dict.fromkeys(there, "") | self.store.values(column, followed)

    def check_engines(self, draft: DraftModel | None) -> None:
        """Refuse what no engine can be made of; called before `plan`, which opens the store.

        Args:
            draft: the draft model, if one takes part.

        Raises:
            UserError: the parts do not fit together, or cannot be compiled as asked.
        """
        self._compiles(draft)
        for verifier in () if self.generating else self.verifiers.values():
            check_parts(verifier, self.drafter, self.length, draft, self.sweep.slots)

    def check_context(self, draft: DraftModel | None) -> None:
        """Say in one line where rows outgrow what the draft can read, as a head never does; called after `plan`."""
        if not isinstance(draft, PreTrainedModel) or self._longest_row <= (context := context_length(draft.config)):
            return
        rank_zero_info(
            f"rows may grow to {self._longest_row} tokens, but the draft was made for at most {context}: beyond them "
            "nothing is drafted, which costs block efficiency; lower sweep.max_new_tokens or shorten the prompts"
        )

    def measure_steps(self, draft: DraftModel | None, rank: int = 0) -> None:
        """Let a draft length that goes by step times have them: rank 0's, or those of the run that is continued.

        Every rank calls it, after `plan`.

        Args:
            draft: the draft model, if one takes part.
            rank: this process's number.
        """
        if self.generating or not self.length.needs_step_times:
            return
        shared: list[Any] = [self._step_times(draft) if rank == 0 else None]
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(shared)
        self._timed = self.length.timed(shared[0])

    def _step_times(self, draft: DraftModel | None) -> StepTimes:
        folder = self.store.path.parent
        drafting = f"{describe(self.drafter)} {describe(self.length)}"
        models = pair_identity(self.pair, self._checkpoint) | {"drafter": drafting}
        times = read_step_times(folder, models)
        if times is None:
            engine = self._new_engine(next(iter(self.verifiers)), draft, slots=self.sweep.slots)
            with torch.autocast(self.pair.target_model.device.type, enabled=False):
                times = engine.step_times(self._longest_row // 2)
            write_step_times(folder, times, models)
        return times

    def _longest_turn(self, prompt: PromptLike) -> int:
        """The most tokens that a conversation may have in the end, as far as can be told before it is held."""
        tokens = len(prompt.after([_ANSWER] * (prompt.turns - 1))) + prompt.turns * self.sweep.max_new_tokens
        return min(tokens, self._context)

    @property
    def _context(self) -> int:
        return context_length(self.pair.target_model.config)

    def decode(self, work: Work, draft: DraftModel | None, stop: Callable[[], int] | None = None) -> int:
        """Decode what this process takes of a pass, and write its rows; after the last pass, wait for the others.

        Runs in the models' own dtype, whatever autocast is on.

        Args:
            work: one of `plan`'s.
            draft: the draft model, if one takes part.
            stop: asked before every round; once it gives an exit code, what is unfinished is left to the next run.

        Returns:
            The exit code that this process, or another one, was asked to stop with; 0 where it was not.
        """
        assert self._dealer is not None
        # Their caches serve another verifier of the same pass; others are given up before new ones are made.
        self._earlier = tuple(self._engines.values())
        self._engines.clear()
        self._timed_on = machine(self.pair.target_model.device, compiled=self._compiles(draft))
        writer = RowWriter(self.store, self.sweep.write_every)
        pulse = Pulse(self._dealer, writer, self._passes[work.pass_], stop, self.watch)
        try:
            try:
                with torch.autocast(self.pair.target_model.device.type, enabled=False):
                    self._decode(work, draft, pulse, writer)
            finally:
                writer.flush()
        except BaseException:
            with suppress(UserError):  # of a first process that is gone: this error is the one to see
                self._dealer.tell(FAILED)
            raise
        pulse.show()
        return self._together(work, pulse)

    def _together(self, work: Work, pulse: Pulse) -> int:
        """The exit code to stop with after a pass, 0 to continue; the same for all after the last.

        Raises:
            UserError: another process has failed.
        """
        assert self._dealer is not None
        code = pulse.code
        if work.last:
            self._engines.clear()
            self._dealer.meet(pulse.hear)
            code = self._dealer.settle(pulse.code)
        if FAILED in (code, pulse.code):
            raise UserError("another process of this run has failed: see its message")
        if code:
            self._dealer.leave()
        return code

    def _decode(self, work: Work, draft: DraftModel | None, pulse: Pulse, writer: RowWriter) -> None:
        if work.timing_slots:
            for unit in self._dealt(work, pulse):
                for label, group in groupby(unit, key=lambda item: item.verifier):
                    members = list(group)
                    engine = self._engine(work, label, draft, members[0].request)
                    rows = self._rows(engine, Queue(members), pulse)
                    if work.timing_slots == 1:
                        for row in rows:
                            writer.add(row)
                    elif together := pulse.whole(rows):  # what was not decoded together was not timed together
                        writer.add(*together)
        elif work.units:
            openings = (item for unit in self._dealt(work, pulse) for item in unit)
            for row in self._rows(self._engine(work, work.label, draft), Queue(openings), pulse):
                writer.add(row)

    def _dealt(self, work: Work, pulse: Pulse) -> Iterator[Sequence[WorkItem]]:
        """The units that this process takes: the next one whenever it asks."""
        assert self._dealer is not None
        while not pulse.code and (number := self._dealer.take(work.name)) < len(work.units):
            yield work.units[number]

    def _rows(self, engine: Engine, queue: Queue, pulse: Pulse) -> Iterator[Mapping[str, Any]]:
        """The rows of a queue as they are finished; the next turn of a conversation goes back into it."""
        for completion in engine.run(queue, pulse):
            item = queue.done(completion.request.key)
            row = self._row(item, completion)
            pulse.count(len(row["tokens"]))
            following = next_turn(item, row["text"], self._context)
            if following is not None:
                queue.put_back(following)
            yield self._generated(item, row) if self.generating else row

    def finish(self, rank: int = 0) -> None:
        """Merge the parts; every rank calls it after the last pass."""
        assert self._dealer is not None
        for pass_, progress in self._passes.items():
            for name, amount in progress.slots().items():
                self._dealer.add(f"{pass_} {name}", amount)
        _barrier()
        if rank == 0:
            self.store.finish(self._order)
        _barrier()

    def busy_share(self) -> dict[str, float | None]:
        """Of the pass that measures acceptance, as far as this run decoded it, over all processes; after `finish`.

        `busy_share` is counted until the queue was empty, `busy_share_to_the_end` until the last row was finished; see
        `tempspec.decoding.tally.Tally`.
        """
        assert self._dealer is not None
        counts = {name: self._dealer.add(f"acceptance {name}", 0) for name in PassProgress.SLOTS}
        queued, whole = counts["queued_offered"], counts["offered"]
        return {
            "busy_share": counts["queued_busy"] / queued if queued else None,
            "busy_share_to_the_end": counts["busy"] / whole if whole else None,
        }

    def _fitted(self, validated: Path, checkpoint: str | None) -> dict[float, float]:
        """The draft temperatures that validate left, where the sweep asks for them."""
        return read_fitted(validated, fitted_for(self.pair, checkpoint, self.sweep)) if self.sweep.fitted else {}

    def _engine(self, work: Work, label: str, draft: DraftModel | None, first: Request | None = None) -> Engine:
        """The engine of a verifier in a pass, with room for every row; a timed one after a warm-up."""
        if label not in self._engines:
            slots = work.timing_slots or self.sweep.slots
            engine = self._new_engine(label, draft, slots=slots, analytic=not work.timing_slots)
            known = any(engine.share(other) for other in (*self._engines.values(), *self._earlier))
            self._earlier = ()
            engine.reserve(self._longest_row)
            if first is not None:
                compiled = self._compiles(draft)  # rounds are recorded for each verifier, on whatever caches
                whole = compiled == "round" or (compiled and not known)
                list(engine.run([self._warm_up(first, whole=whole)] * slots))
            engine.tally = self._passes[work.pass_].tally
            self._engines[label] = engine
        return self._engines[label]

    def _new_engine(self, label: str, draft: DraftModel | None, *, slots: int, analytic: bool = False) -> Engine:
        """An engine for the verifier of this label."""
        plain = label == BASELINE
        return Engine(
            self.pair.target_model,
            self.pair.vocabulary,
            verifier=None if plain else self.verifiers[label],
            drafter=None if plain else self.drafter,
            length=None if plain else self._timed or self.length,
            draft=None if plain else draft,
            slots=slots,
            analytic=analytic,
            compile=self._compiles(draft),
        )

    def _compiles(self, draft: DraftModel | None) -> bool | Literal["round"]:
        """Whether all engines compile: plain decoding only where the draft does, as the two are compared."""
        return compiles(self.sweep.compile, self.pair.target_model.device, draft, self._timed or self.length)

    def _warm_up(self, request: Request, *, whole: bool) -> Request:
        """What a timed engine decodes first: a few tokens, or every length that is to come, so that all is compiled."""
        prompt = self._shortest_prompt
        tokens = self._longest_row - len(prompt) if whole else WARM_UP_TOKENS
        return replace(request, prompt=prompt, max_new_tokens=tokens, stop_ids=frozenset())

    def _row(self, item: WorkItem, completion: Completion) -> DecodedRow:
        row = row_from_completion(
            completion,
            pass_=item.pass_,
            label=item.verifier,
            prompt_set=item.prompt_set,
            prompt_index=item.prompt.index,
            prompt_key=item.prompt.key,
            sample=item.sample,
            key=item.key,
            category=item.prompt.category,
            turn=item.turn,
            timing_slots=item.timing_slots,
            timed=(self._timed_on, self._session) if item.timing_slots else ("", ""),
        )
        row["text"] = self.pair.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        return row

    def _generated(self, item: WorkItem, row: DecodedRow) -> dict[str, Any]:
        return generated_row(item, self.pair, self._tokenizer_digest, row["text"], row["tokens"], row["finish"])

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.pair.tokenizer)

    def _origin(self, prompt_sets: PromptSets, checkpoint: str | None) -> Origin:
        """What the rows are made from, entry by entry."""
        pair = self.pair
        origin: dict[str, str | Sequence[str]] = {**target_identity(pair), **sweep_origin(self.sweep, prompt_sets)}
        if self.sweep.stop_at_eos:  # a generation_config.json names them, which is no part of the weights
            origin["stop tokens"] = str(sorted(pair.stop_ids))
        if self.generating:
            return origin
        if self.needs_draft:
            origin |= draft_identity(pair, checkpoint)
        origin["drafter"] = f"{describe(self.drafter)} {describe(self.length)}"
        return origin | {f"verifier {label}": describe(verifier) for label, verifier in self.verifiers.items()}


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
