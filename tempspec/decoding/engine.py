"""The engine: requests in, completions out; slots, draft, verify, commit (floor 4).

It knows interfaces, core and the cache; no tokenizer, no loss, no plugin by name. Rows of one batch have their own
prompt, temperatures, truncation, noise and length; a finished row's slot is refilled from the queue. Invariant: the
target's cache holds every token of a row but the last, so a round feeds the last token and the drafts in one pass.

Axes: S slots, B rows of the batch, K drafted, N = K + 1, V vocabulary, T token buffer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.decoding.as_found import left_as_found
from tempspec.decoding.device_round import DeviceRound, Sent
from tempspec.decoding.draft_sides import draft_side
from tempspec.decoding.noise import NoiseAhead
from tempspec.decoding.recorded_rounds import Largest, RecordedRounds
from tempspec.decoding.refusing import check_parts, check_prompt, check_temperature, compiles
from tempspec.decoding.rounds import RoundStart, append_forms, append_round, no_numbers, texts_of
from tempspec.decoding.slots import ActiveRow, Laws, Slots
from tempspec.decoding.step_times import round_seconds
from tempspec.decoding.tally import Tally
from tempspec.decoding.waiting import Waiting
from tempspec.errors import UserError
from tempspec.interfaces import (
    Completion,
    Drafter,
    DraftLength,
    HeadModel,
    LastRound,
    Request,
    StepTimes,
    Verifier,
)
from tempspec.models import compiling
from tempspec.models.attention import attending_in_groups
from tempspec.models.compiling import Compile
from tempspec.models.conditioning import is_conditioned, set_temperature
from tempspec.models.cutting import first_layers
from tempspec.models.decodable import check_decodable
from tempspec.models.draft_steps import Extent
from tempspec.models.head_draft import DraftModel
from tempspec.models.ragged import RaggedModel, bucketed, context_length, factor_switch

PREFILL_CHUNK = 512
"""Prompt tokens that one prefill pass feeds to a row; longer prompts take several."""

ALIGNMENT = 8
"""Capacities are multiples of this, which keeps the rows of masks and caches aligned."""

_OF_CACHES = ("_models", "_slot_count", "_longest", "_nodes", "_compile")
"""What two engines with the same caches have in common."""


class Engine:
    """Speculative decoding of a ragged batch; without a drafter, plain decoding of the target.

    Args:
        target: the target model, in eval mode.
        vocabulary: V, the real ids: heads are cut to it, or the draft's filled with zero mass.
        verifier: the acceptance rule; None together with `drafter` for plain decoding.
        drafter: proposes tokens.
        length: how many.
        draft: the draft model, or the head, if the drafter needs one.
        slots: rows of the batch.
        analytic: also report the verifier's closed forms: expected acceptance, a lossy rule's distance from the target
            (costs a pass over the laws).
        compile: compile the forward passes: `torch.compile` on the CPU, CUDA graphs on a GPU. Worth it for small models
            and long runs: each shape takes seconds to a minute when first met. `auto` is on a GPU alone, where the
            draft can be compiled. `round` records whole rounds on a GPU, where all rounds draft alike, and else passes.

    Raises:
        UserError: the parts do not fit together, or a model cannot be decoded in a ragged batch.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        vocabulary: int,
        *,
        verifier: Verifier | None = None,
        drafter: Drafter | None = None,
        length: DraftLength | None = None,
        draft: DraftModel | None = None,
        slots: int = 8,
        analytic: bool = False,
        compile: Compile = False,
    ) -> None:
        check_parts(verifier, drafter, length, draft, slots)
        if drafter is None or not drafter.needs_model:
            draft = None
        if drafter is not None and drafter.target_layers is not None:
            named = f"{type(drafter).__name__}: layers"
            draft = first_layers(target, drafter.target_layers, option=named, share=True)
        self._conditioned = draft is not None and is_conditioned(draft)
        self._compile = compiles(compile, target.device, draft, length)
        self._models = (target, draft)
        self._condition(None)
        for model in self._models:
            if isinstance(model, PreTrainedModel):
                check_decodable(model)
        self._vocabulary = vocabulary
        self._verifier = verifier
        self._drafter = drafter
        self._rule = length
        self._longest = length.longest if drafter is not None and length is not None else 0
        self._nodes = drafter.most_nodes(self._longest) if drafter is not None else 0
        self._slot_count = slots
        self._analytic = analytic
        self._adaptive = length is not None and (
            type(length).limit is not DraftLength.limit or type(length).for_round is not DraftLength.for_round
        )
        self._context = context_length(target.config)
        self._switch = factor_switch(target.config)
        self._capacity = 0
        self.tally = Tally()

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be decoded.

        Raises:
            UserError: see `tempspec.decoding.refusing`.
        """
        check_prompt(request, self._context, self._switch, self._vocabulary)
        check_temperature(request, self._verifier)

    @torch.inference_mode()
    @left_as_found
    def run(self, requests: Iterable[Request], stop: Callable[[], bool] | None = None) -> Iterator[Completion]:
        """Decode all requests; yields each as it finishes, in no particular order.

        An iterator is asked for a request whenever a slot is free. It may run dry and get more: it is asked as long
        as a row is in flight, so that whoever takes the completions can add to it. `reserve` room for its longest
        request; one that is longer waits until no row is in flight.

        Args:
            requests: what to decode.
            stop: asked before every round; once it says yes, what is not finished is dropped.

        Raises:
            UserError: see `check`, raised before any token of a sequence is decoded; or logits are no numbers.
        """
        if isinstance(requests, Sequence):
            for request in requests:
                self.check(request)
            if requests:
                self.reserve(max(map(self.end, requests)))
        queue = Waiting(iter(requests))
        slots: Slots | None = None
        laws: Laws | None = None
        noise: NoiseAhead | None = None
        self.tally.begin()
        while (slots is not None and any(slots.rows)) or queue.filled():
            if stop is not None and stop():
                break
            if slots is None or not any(slots.rows):
                slots = self._room_for(queue, slots)
            if slots.free and self._admit(slots, queue):
                laws = None
            began = perf_counter()
            if laws is None or len(laws.seed_B) != len(slots.batch):
                laws, noise = slots.laws(), None
            if noise is None or noise.exhausted:
                noise = NoiseAhead(laws.seed_B, slots.rounds(), max(self._longest, self._nodes) + 1)
            self._round(slots, laws, noise, began)
            yield from self._release(slots)

    def _room_for(self, queue: Waiting, slots: Slots | None) -> Slots:
        """Empty slots that the next request fits into."""
        before = self._capacity
        self.reserve(self.end(queue.head))
        if slots is None or self._capacity != before:
            return Slots(self._token_ST, self._compile == "round", self._catching_up[-1])
        return slots

    def end(self, request: Request) -> int:
        """The length at which a request is finished, prompt included."""
        return min(len(request.prompt) + request.max_new_tokens, self._context)

    def reserve(self, longest_row: int) -> None:
        """Make room for rows of this length, with a round's padding after them; `run` does it for its own requests.

        Done once for all runs to come, it spares them new caches and, compiled, new shapes.
        """
        capacity = self._padded(longest_row)
        if capacity <= self._capacity:
            return
        target, draft = self._models
        self._capacity = capacity
        wide, narrow = ((self._longest + 1,), self._catching_up) if self._compile is True else ((), ())
        sizes = self._slot_count, capacity
        self._draft = draft_side(draft, target, *sizes, narrow)
        self._target = RaggedModel(target, *sizes, wide, draft.states if isinstance(draft, HeadModel) else ())
        self._token_ST = torch.zeros(sizes, dtype=torch.int64, device=target.device)
        self._prepare()

    def share(self, other: "Engine") -> bool:
        """Use another engine's caches and recordings, in turn with it; whether both need the same."""
        same = all(getattr(self, name) == getattr(other, name) for name in _OF_CACHES)
        if same and other._capacity:
            self._capacity, self._token_ST = other._capacity, other._token_ST
            self._target, self._draft = other._target, other._draft
            self._prepare()
        return same

    def _prepare(self) -> None:
        """The rounds on these caches."""
        given = self._target, self._draft, self._verifier, self._drafter, self._vocabulary
        rounds = DeviceRound(*given, analytic=self._analytic)
        self._rounds = self._as_recordings(rounds) if self._compile == "round" else rounds

    def _as_recordings(self, rounds: DeviceRound) -> RecordedRounds:
        sides = [side for side in (self._target, self._draft) if side is not None]
        lacking = 0 if self._draft is None else self._catching_up[-1]
        largest = Largest(lacking, self._longest, self._nodes, self._target.static_view)
        record = compiling.recorder(self._target.device)
        return RecordedRounds(rounds, record, largest, [side.stopwatch for side in sides])

    @property
    def _catching_up(self) -> tuple[int, ...]:
        """How many tokens a draft may have to catch up on: of a tree's path none was fed to it as text."""
        most = 2 if self._drafter is None or self._drafter.siblings is None else self._longest + 1
        return tuple(sorted({1, 2, most}))

    def _padded(self, longest_row: int) -> int:
        """The positions that rows of this length take."""
        return -(-(longest_row + max(self._longest, self._nodes) + 1) // ALIGNMENT) * ALIGNMENT

    @property
    def cache_bytes(self) -> int:
        """Bytes that the key-value caches hold."""
        return self._target.cache.nbytes + (self._draft.cache_bytes if self._draft is not None else 0)

    @torch.inference_mode()
    def step_times(self, text: int) -> StepTimes:
        """Measure the forward passes of a round, all slots full, with about so many tokens before it in every row.

        Of a tree, a level is what costs a step of the draft, and all its nodes are verified. Sampling and verdicts are
        left out. Nothing of it stays: the next run overwrites what was fed.
        """
        text = max(1, min(text, PREFILL_CHUNK, self._context - self._nodes - 1))
        self.reserve(text)
        self._condition(torch.ones(self._slot_count, dtype=torch.float32))
        if self._draft is not None:
            text = max(1, min(text, self._draft.context - 1))
        try:
            draft = None if self._draft is None else self._draft.pass_seconds
            with attending_in_groups(*self._models):
                return round_seconds(self._target, draft, self._drafter, self._slot_count, text, self._longest)
        finally:
            self._condition(None)

    # -- admission ----------------------------------------------------------------------------------------------------

    def _admit(self, slots: Slots, queue: Waiting) -> bool:
        """Fill free slots from the queue and prefill them, prompts of one length class together; whether any was."""
        classes: dict[int, list[int]] = {}
        for index in slots.free:
            if not queue.filled() or self._padded(self.end(queue.head)) > self._capacity:
                break
            request = queue.take()
            self.check(request)
            self.tally.take()
            length = len(request.prompt)
            slots.rows[index] = ActiveRow(request, Completion(request), length, self.end(request), length - 1)
            classes.setdefault(bucketed(length), []).append(index)
        for members in classes.values():
            slots.write_prompts(members)
            self._prefill(slots, members)
        return bool(classes)

    def _prefill(self, slots: Slots, members: list[int]) -> None:
        """Feed all prompt tokens but the last to both models, in chunks; a prompt of several rows is fed once."""
        began = perf_counter()
        first = slots.first_alike(members, conditioned=self._conditioned)
        rows = [row for index in dict.fromkeys(first.values()) if (row := slots.rows[index]) is not None]
        longest = max(row.length for row in rows) - 1
        index_R = slots.integers(list(dict.fromkeys(first.values())))
        temperatures = [row.request.proposal_temperature for row in rows]
        self._condition(torch.tensor(temperatures, dtype=torch.float32))
        for start in range(0, longest, PREFILL_CHUNK):
            span = range(start, min(start + PREFILL_CHUNK, longest))
            token_RN = slots.token_ST[index_R, span.start : span.stop]
            self._target.fill(token_RN, torch.full_like(index_R, start), longest=start, rows=index_R)
            if self._draft is not None:
                self._draft.fill(slots.token_ST, index_R, span, [row.length for row in rows], self._target.states)
        twins = [index for index in members if first[index] != index and longest > 0]
        for side in (self._target, self._draft):
            if side is not None:
                if twins:
                    side.copy(slots.integers([first[index] for index in twins]), slots.integers(twins), longest)
                side.stopwatch.take()  # waits for the device
        share = (perf_counter() - began) / len(members)
        for index in members:
            if (row := slots.rows[index]) is not None:
                row.completion.seconds.prefill += share

    # -- one round ----------------------------------------------------------------------------------------------------

    def _round(self, slots: Slots, laws: Laws, noise: NoiseAhead, began: float) -> None:
        rows = slots.batch
        last = slots.last_round() if self._adaptive else None
        limits = self._limits(rows, last)
        start = self._begin(slots, laws, noise, limits, last)
        self._condition(laws.draft_temperature_B)  # what a head takes in of this round, too
        self._append(rows, limits, self._rounds.run(start))
        self._charge(rows, began)

    def _begin(
        self, slots: Slots, laws: Laws, noise: NoiseAhead, limits: list[int], last: LastRound | None
    ) -> RoundStart:
        rows = slots.batch
        rule = self._rule if self._rule is None or last is None else self._rule.for_round(last)
        length_B, limit_B = slots.integers([slots.lengths(), limits])
        texts = partial(texts_of, rows, limits)
        given = slots.token_ST[: len(rows)], length_B, limit_B
        return RoundStart(laws, noise.next(length_B), *given, self._extent(slots, limits), rule, texts)

    def _extent(self, slots: Slots, limits: list[int]) -> Extent:
        """What the host knows of the round to come."""
        held = [(row.length, row.draft_cached) for row in slots.batch if row is not None]
        lacking = 0 if self._draft is None else self._draft.lacking(held)
        return Extent(min(length for length, _ in held), max(slots.lengths()), lacking, max(limits))

    def _charge(self, rows: list[ActiveRow | None], began: float) -> None:
        """Share a round's time among its rows: the models' forward passes, and all else as overhead."""
        active = [row.completion.seconds for row in rows if row is not None]
        self.tally.round(len(active), self._slot_count)
        verify = self._target.stopwatch.take() / len(active)
        draft = self._draft.stopwatch.take() / len(active) if self._draft is not None else 0.0
        overhead = (perf_counter() - began) / len(active) - verify - draft
        for seconds in active:
            seconds.draft += draft
            seconds.verify += verify
            seconds.overhead += overhead

    def _limits(self, rows: list[ActiveRow | None], last: LastRound | None) -> list[int]:
        """The most tokens that each row may draft: the rule's word, the tokens still wanted, the draft's context."""
        if self._rule is None or self._longest == 0:
            return [0] * len(rows)
        asked = self._rule.limit(last).tolist() if last is not None else [self._longest] * len(rows)
        room = self._room if self._draft is None else self._draft.room
        return [
            max(0, min(int(ask), self._longest, row.end - row.length - 1, room(row.length))) if row else 0
            for ask, row in zip(asked, rows, strict=True)
        ]

    def _room(self, length: int) -> int:
        """The tokens that a row of this length may draft without a model."""
        return self._context - length

    def _condition(self, temperature_R: Tensor | None) -> None:
        """Set a conditioned draft to the temperatures of the rows that come next."""
        if self._conditioned:
            assert self._models[1] is not None
            set_temperature(self._models[1], temperature_R)

    def _append(self, rows: list[ActiveRow | None], limits: list[int], sent: Sent) -> None:
        """Append what was accepted to the rows.

        Raises:
            UserError: a row's logits, of the draft or of the target, are no numbers.
        """
        for row, limit, found in zip(rows, limits, sent.read(), strict=True):
            if row is not None:
                if not (found.draft_finite and found.target_finite):
                    raise UserError(no_numbers("target" if found.draft_finite else "draft", row))
                length = row.length
                append_round(row, found.emitted[: found.accepted + 1], found.drafted, found.tested)
                self.tally.emit(row.length - length, row.completion.tested[-1], row.completion.accepted[-1])
                append_forms(row.completion, found.figures)
                row.last = row.last.then(limit, found.drafted, found.tested, found.accepted)
                if sent.fed >= 0:
                    # What the draft was fed stays valid as far as it was accepted.
                    row.draft_cached = min(
                        row.length - 1, row.length - found.accepted - 1 + min(found.accepted, sent.fed)
                    )

    def _release(self, slots: Slots) -> Iterator[Completion]:
        for index, row in enumerate(slots.rows):
            if row is not None and (row.completion.finish == "stop" or row.length >= row.end):
                slots.rows[index] = None
                yield row.completion
