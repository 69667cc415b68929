"""The sweep of predict and generate: its work list, its engines, its rows on disk (floor 5).

The work list holds the openings of conversations; a batch is decoded turn by turn, each turn behind the answers of its
own cell. A conversation stays with its process, and a continued run takes it up at the first turn without a row, among
the same neighbours: its numbers are those of an unbroken run to the last digit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from tempspec.decoding.engine import Engine
from tempspec.decoding.fitting import check_items
from tempspec.decoding.sweep import (
    PromptLike,
    Sweep,
    WorkItem,
    batches,
    generation_list,
    next_turn,
    unanswered,
    work_list,
)
from tempspec.interfaces import BASELINE, Completion, Drafter, DraftLength, Request, StepTimes, Verifier
from tempspec.metrics.rows import Row, row_from_completion
from tempspec.models.identity import file_digest, tokenizer_digest, weights_digest
from tempspec.models.ragged import context_length
from tempspec.modules.earlier import refuse_earlier_rows
from tempspec.modules.fitted import read_fitted
from tempspec.modules.pair import Pair
from tempspec.modules.step_times import read_step_times, write_step_times
from tempspec.modules.store import RowStore

WARM_UP_TOKENS = 8
"""Tokens decoded and thrown away before the first timed request of a verifier."""

_ANSWER = "."
"""Stands for an answer where only the length of a conversation is asked for."""

_WITHOUT_EFFECT = {"shard_target", "trust_remote_code"}
"""Options of loading that no logit depends on."""

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
    """

    pair: Pair
    sweep: Sweep
    verifiers: Mapping[str, Verifier]
    drafter: Drafter
    length: DraftLength
    generating: bool = False
    _order: list[str] = field(default_factory=list)
    _engines: dict[tuple[str, str], Engine] = field(default_factory=dict)
    _store: RowStore | None = None
    _timed: DraftLength | None = None
    _checkpoint: str | None = None
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

    def plan(
        self, prompt_sets: PromptSets, folder: str | Path, *, rank: int = 0, checkpoint: str | None = None
    ) -> list[list[WorkItem]]:
        """Open the store and cut what is left into batches; every rank calls it, and gets the same.

        Args:
            prompt_sets: prompts by name.
            folder: where the rows go.
            rank: this process's number.
            checkpoint: the file that the draft's weights come from, if not from its folder.

        Raises:
            UserError: the folder holds rows of another configuration, or a prompt does not fit the models.
        """
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
        name = "generated" if self.generating else "predictions"
        refuse_earlier_rows(Path(folder), name)
        self._store = RowStore(folder, name, self._origin(prompt_sets, checkpoint), rank)
        column = "response" if self.generating else "text"
        answers = {row["key"]: row[column] for row in self._store.rows()}
        _barrier()  # nobody writes a row before all have seen which are there
        due = (unanswered(batch, answers, self._context) for batch in batches(items, self.sweep.batch_size))
        return [batch for batch in due if batch]  # cut as in an unbroken run: numbers depend on a row's neighbours

    def check_context(self, draft: PreTrainedModel | None) -> None:
        """Say in one line where rows may outgrow what the draft can read; called behind `plan`."""
        if draft is None or not self.needs_draft or self._longest_row <= (context := context_length(draft.config)):
            return
        rank_zero_info(
            f"rows may grow to {self._longest_row} tokens, but the draft was made for at most {context}: beyond them "
            "nothing is drafted, which costs block efficiency; lower sweep.max_new_tokens or shorten the prompts"
        )

    def measure_steps(self, draft: PreTrainedModel | None, rank: int = 0) -> None:
        """Let a draft length that goes by step times have them: rank 0's, or those of the run that is continued.

        Every rank calls it, behind `plan`.

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

    def _step_times(self, draft: PreTrainedModel | None) -> StepTimes:
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

    def decode(
        self, items: Sequence[WorkItem], draft: PreTrainedModel | None, stop: Callable[[], bool] | None = None
    ) -> list[Row]:
        """Decode one batch of items of one pass and verifier, turn by turn, and write its rows.

        Runs in the models' own dtype, whatever autocast is on.

        Args:
            items: the batch.
            draft: the draft model, if one takes part.
            stop: asked before every round; once it says yes, this turn of the batch is left to the next run. Logits
                depend on a row's neighbours in their last digits: it is decoded whole, or not at all.
        """
        rows: list[Row] = []
        while items:
            turn = self._decode_turn(items, draft, stop)
            answers = {row["key"]: row["text"] for row in turn}
            done = (item for item in items if item.key in answers)
            following = (next_turn(item, answers[item.key], self._context) for item in done)
            items = [item for item in following if item is not None]
            rows += turn
        return rows

    def _decode_turn(
        self, items: Sequence[WorkItem], draft: PreTrainedModel | None, stop: Callable[[], bool] | None
    ) -> list[Row]:
        """One turn of every item; see `decode`."""
        by_key = {item.key: item for item in items}
        with torch.autocast(self.pair.target_model.device.type, enabled=False):
            completions = list(self._engine(items[0], draft).run([item.request for item in items], stop))
        if len(completions) < len(items):
            return []
        rows = [self._row(by_key[completion.request.key], completion) for completion in completions]
        self.store.append([self._generated(by_key[row["key"]], row) for row in rows] if self.generating else rows)
        return rows

    def finish(self, rank: int = 0) -> list[Any]:
        """Merge the parts and return all rows of the sweep in its order; every rank calls it after the last batch."""
        _barrier()
        if rank == 0:
            self.store.finish(self._order)
        _barrier()
        rows: dict[str, Any] = {row["key"]: row for row in self.store.rows()}
        return [rows[key] for key in self._order if key in rows]

    def _fitted(self, validated: Path, checkpoint: str | None) -> dict[float, float]:
        """The draft temperatures that validate left, where the sweep asks for them."""
        return read_fitted(validated, fitted_for(self.pair, checkpoint, self.sweep)) if self.sweep.fitted else {}

    def _engine(self, item: WorkItem, draft: PreTrainedModel | None) -> Engine:
        """The engine of an item's pass and verifier; a timed one decodes alone, after a warm-up."""
        timed = item.pass_ == "timing"
        name = (item.pass_, item.verifier)
        if name not in self._engines:
            if not timed:
                self._engines.clear()  # one verifier's batched caches at a time
            engine = self._new_engine(item.verifier, draft, slots=1 if timed else self.sweep.slots, analytic=not timed)
            if timed:
                engine.reserve(self._longest_row)
                list(engine.run([self._warm_up(item.request)]))
            self._engines[name] = engine
        return self._engines[name]

    def _new_engine(self, label: str, draft: PreTrainedModel | None, *, slots: int, analytic: bool = False) -> Engine:
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
            compile=self.sweep.compile,
        )

    def _warm_up(self, request: Request) -> Request:
        """What a timed engine decodes first: a few tokens, or, compiled, every length that is to come."""
        prompt = self._shortest_prompt
        tokens = self._longest_row - len(prompt) if self.sweep.compile else WARM_UP_TOKENS
        return replace(request, prompt=prompt, max_new_tokens=tokens, stop_ids=frozenset())

    def _row(self, item: WorkItem, completion: Completion) -> Row:
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
        )
        row["text"] = self.pair.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        return row

    def _generated(self, item: WorkItem, row: Row) -> dict[str, Any]:
        return generated_row(item, self.pair, self._tokenizer_digest, row["text"], row["tokens"], row["finish"])

    @cached_property
    def _tokenizer_digest(self) -> str:
        return tokenizer_digest(self.pair.tokenizer)

    def _origin(self, prompt_sets: PromptSets, checkpoint: str | None) -> dict[str, str]:
        """What the rows are made from, entry by entry."""
        pair = self.pair
        target = weights_digest(pair.target, pair.options.target_revision)
        origin = {"target": f"{target} {pair.options}"} | self.sweep.origin(prompt_sets)
        if self.generating:
            return origin
        if self.needs_draft:
            origin |= draft_identity(pair, checkpoint)
        origin["drafter"] = f"{describe(self.drafter)} {describe(self.length)}"
        return origin | {f"verifier {label}": describe(verifier) for label, verifier in self.verifiers.items()}


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


def draft_identity(pair: Pair, checkpoint: str | None) -> dict[str, str]:
    """Which draft it is, in words that change with its weights, and not with where they lie."""
    made = f"{pair.draft_layers} {pair.spacing} layers of {pair.width}"
    return {
        "draft": weights_digest(pair.draft, pair.options.draft_revision) if pair.draft else made,
        "checkpoint": file_digest(checkpoint) if checkpoint else "",
    }


def pair_identity(pair: Pair, checkpoint: str | None) -> dict[str, str]:
    """Which target and which draft it is, and how they are loaded: in which dtype, with which attention."""
    loading = {name: value for name, value in vars(pair.options).items() if name not in _WITHOUT_EFFECT}
    target = weights_digest(pair.target, pair.options.target_revision)
    return {"target": target, "loading": str(loading)} | draft_identity(pair, checkpoint)


def fitted_for(pair: Pair, checkpoint: str | None, sweep: Sweep) -> dict[str, str]:
    """What a fitted draft temperature belongs to: the pair, and how its laws are cut."""
    return pair_identity(pair, checkpoint) | {"truncation": str(sweep.truncation)}


class DecodingProgress(pl.Callback):
    """Keeps tokens/s and acceptance so far, for the progress bar of predict."""

    def __init__(self) -> None:
        self._began = 0.0
        self._tokens = self._accepted = self._tested = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._began = perf_counter()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch of rows."""
        self._tokens += sum(len(row["tokens"]) for row in outputs)
        self._accepted += sum(sum(row["accepted"]) for row in outputs)
        self._tested += sum(sum(row["tested"]) for row in outputs)

    def figures(self) -> dict[str, str]:
        """What to show beside the bar."""
        shown = {"tokens/s": f"{self._tokens / max(perf_counter() - self._began, 1e-9):.0f}"}
        if self._tested:
            shown["acceptance"] = f"{self._accepted / self._tested:.3f}"
        return shown


def describe(plugin: object) -> str:
    """A plugin's class and options, as one stable line."""
    options = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(plugin).items()))
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}({options})"


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
