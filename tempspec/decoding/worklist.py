"""What there is to decode: verifiers x prompt sets x prompts x temperatures x samples as one list (floor 4).

Every item has a key of its own, which names its row for ever, and a seed that depends on the prompt and the sample
alone (and the turn of a conversation): verifiers, temperatures and drafts are compared on the same noise.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lightning.pytorch.utilities import rank_zero_info

from tempspec.core.noise import fold
from tempspec.decoding.sweep import Sweep
from tempspec.errors import UserError
from tempspec.interfaces import BASELINE, Pass, Request, Verifier

__all__ = ["PromptLike", "WorkItem", "generation_list", "next_turn", "sweep_origin", "unanswered", "work_list"]


class PromptLike(Protocol):
    """What the work list needs of a prompt; `key` clusters the samples, and the turns, of one prompt."""

    @property
    def index(self) -> int:
        """Its place in the set."""

    @property
    def key(self) -> int:
        """A stable hash of its tokens."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""

    @property
    def category(self) -> str:
        """What it is among the prompts of its set; empty for none."""

    @property
    def place(self) -> str:
        """Where it was read, as `question.jsonl line 12`."""

    @property
    def turns(self) -> int:
        """How often the model is asked: more than once in a conversation."""

    def after(self, answers: Sequence[str]) -> tuple[int, ...]:
        """The tokens of the turn after these answers, the whole conversation before it included."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One request of the sweep and the names that its row carries.

    A conversation belongs to its item: what one verifier answers at one temperature is never another's history. Only
    its opening is in the work list; `then` makes each later turn when the one before is answered.

    Attributes:
        pass_: `acceptance` or `timing`.
        verifier: the label, `BASELINE` for the baseline.
        prompt_set: the set's name.
        prompt: the prompt; its key is the bootstrap cluster.
        sample: 0 to samples - 1.
        request: what to decode; its key names this item.
        answers: what was answered to the earlier turns of the conversation.
        timing_slots: of the timing pass, the batch size that it measures; 0 in the other.
    """

    pass_: Pass
    verifier: str
    prompt_set: str
    prompt: PromptLike
    sample: int
    request: Request
    answers: tuple[str, ...] = ()
    timing_slots: int = 0

    @property
    def key(self) -> str:
        """The item's name, unique in the sweep."""
        return self.request.key

    @property
    def turn(self) -> int:
        """Which turn of the conversation it is, from 1."""
        return len(self.answers) + 1

    def keys(self) -> list[str]:
        """The names of all turns of this opening's conversation."""
        return [_turn_key(self.key, turn) for turn in range(1, self.prompt.turns + 1)]

    def then(self, answer: str) -> "WorkItem | None":
        """The next turn of the conversation, with noise of its own; None after the last."""
        answers = (*self.answers, answer)
        if len(answers) == self.prompt.turns:
            return None
        opening, turn = self.key.removesuffix(_turn_key("", self.turn)), self.turn + 1
        seed = int(fold(self.request.seed, turn))
        request = replace(self.request, prompt=self.prompt.after(answers), seed=seed, key=_turn_key(opening, turn))
        return replace(self, request=request, answers=answers)


def sweep_origin(sweep: Sweep, prompt_sets: Mapping[str, Sequence[PromptLike]]) -> dict[str, str | list[str]]:
    """What every completion depends on besides the models, entry by entry; prompts may be added to a set's end."""
    sampling = f"{sweep.max_new_tokens} {sweep.top_k} {sweep.top_p} {sweep.min_p} {sweep.stop_at_eos}"
    sampling += "" if sweep.cut_draft else " uncut draft"  # rows of earlier versions have no such word
    prompts = {f"prompts {name}": [str(one.key) for one in members] for name, members in prompt_sets.items()}
    return {"sampling": sampling, "seed": str(sweep.seed)} | prompts


def work_list(
    sweep: Sweep,
    verifiers: Mapping[str, Verifier],
    prompt_sets: Mapping[str, Sequence[PromptLike]],
    stop_ids: Collection[int] = (),
    fitted: Mapping[float, float] | None = None,
) -> list[WorkItem]:
    """All items: the batched pass verifier by verifier, then the timing pass with baseline and verifiers interleaved.

    The timing pass comes once for each of its batch sizes.

    A verifier for temperature 0 alone gets no other temperature. `fitted` is that of `Sweep.temperatures`.

    Raises:
        UserError: a label is reserved, or nothing is left to decode.
    """
    if BASELINE in verifiers:
        raise UserError(f"a verifier is called {BASELINE!r}, the name of the baseline: give it another name")
    grid = _Grid(sweep, sweep.temperatures(fitted), verifiers, prompt_sets, stop_ids)
    items = [*grid.acceptance(), *grid.timing()]
    if not any(item.pass_ == "acceptance" for item in items):
        raise UserError(
            f"nothing to decode: verifiers {sorted(verifiers)} allow none of the target temperatures "
            f"{sweep.target_temperatures}; add temperature 0 or a verifier for T > 0"
        )
    return items


def generation_list(
    sweep: Sweep, prompt_sets: Mapping[str, Sequence[PromptLike]], stop_ids: Collection[int] = ()
) -> list[WorkItem]:
    """The items of generate: plain decoding of every prompt at every generation temperature."""
    return list(_Grid(sweep, (), {}, prompt_sets, stop_ids).generation())


def next_turn(item: WorkItem, answer: str, context: int) -> WorkItem | None:
    """The turn after an answer, within the context; None after the last one, and where it cannot be asked."""
    try:
        following = item.then(answer)
    except ValueError as error:  # of the chat template, which saw no such answer when the prompts were read
        rank_zero_info(f"{item.key}: the turns after it are left out: {error}")
        return None
    if following is None:
        return None
    if (room := context - len(following.request.prompt)) > 0:
        most = min(following.request.max_new_tokens, room)
        return replace(following, request=replace(following.request, max_new_tokens=most))
    rank_zero_info(f"{following.key} is left out: its prompt fills the target's context of {context} tokens")
    return None


def unanswered(openings: Iterable[WorkItem], answers: Mapping[str, str], context: int) -> list[WorkItem]:
    """The first turn without an answer of every conversation that has one left.

    Args:
        openings: the work list.
        answers: what was answered before, by key.
        context: the tokens that the target can read.
    """
    left: list[WorkItem] = []
    for opening in openings:
        item: WorkItem | None = opening
        while item is not None and item.key in answers:
            item = next_turn(item, answers[item.key], context)
        left += [] if item is None else [item]
    return left


@dataclass(frozen=True)
class _Grid:
    """What is crossed with what, in generate and in the two passes of predict."""

    sweep: Sweep
    pairs: Sequence[tuple[float, float]]
    verifiers: Mapping[str, Verifier]
    prompt_sets: Mapping[str, Sequence[PromptLike]]
    stop_ids: Collection[int]

    def generation(self) -> Iterator[WorkItem]:
        """Of generate."""
        for name, prompts in self.prompt_sets.items():
            for prompt in prompts:
                for temperature in dict.fromkeys(self.sweep.generation_temperatures):
                    for sample in range(self.sweep.samples if temperature > 0 else 1):
                        yield self._item("acceptance", BASELINE, name, prompt, temperature, temperature, sample)

    def acceptance(self) -> Iterator[WorkItem]:
        """Of the batched pass."""
        for label, verifier in self.verifiers.items():
            for name, prompts in self.prompt_sets.items():
                for prompt in prompts:
                    for target, draft in _allowed(self.pairs, verifier):
                        for sample in range(self.sweep.samples if target > 0 else 1):
                            yield self._item("acceptance", label, name, prompt, target, draft, sample)

    def timing(self) -> Iterator[WorkItem]:
        """Of the timing pass, of as many prompts together as it has slots."""
        for size in dict.fromkeys(self.sweep.timing_slots):
            for name, prompts in self.prompt_sets.items():
                timed = prompts[: self.sweep.timing_prompts]
                if timed and len(timed) < size:
                    rank_zero_info(f"speed at {size} slots is not measured on {name}: it has {len(timed)} prompts")
                for at in range(0, len(timed) - size + 1, size):
                    for target, draft in self.pairs:
                        for label in self._timed_together(target, draft):
                            for prompt in timed[at : at + size]:
                                yield self._item("timing", label, name, prompt, target, draft, 0, size)

    def _timed_together(self, target: float, draft: float) -> list[str]:
        """The baseline and the verifiers of these temperatures; nothing where there is none of them."""
        pair = target, draft
        labels = [label for label, rule in self.verifiers.items() if pair in _allowed(self.pairs, rule)]
        return [BASELINE, *labels] if labels else []

    def _item(
        self,
        pass_: Pass,
        label: str,
        name: str,
        prompt: PromptLike,
        target: float,
        draft: float,
        sample: int,
        timing_slots: int = 0,
    ) -> WorkItem:
        kind = f"{pass_}{timing_slots}" if timing_slots > 1 else pass_
        key = f"{kind}/{label}/{name}/{prompt.index}/t{target:g}/d{draft:g}/s{sample}"
        seed = int(fold(self.sweep.seed, prompt.key, sample))
        request = self.sweep.request(prompt.ids, target, draft, seed=seed, key=key, stop_ids=self.stop_ids)
        return WorkItem(pass_, label, name, prompt, sample, request, timing_slots=timing_slots)


def _allowed(pairs: Sequence[tuple[float, float]], verifier: Verifier) -> list[tuple[float, float]]:
    return [(target, draft) for target, draft in pairs if target == 0 or not verifier.greedy_only]


def _turn_key(opening: str, turn: int) -> str:
    """The key of a turn of a conversation; the first has that of its opening."""
    return f"{opening}/turn{turn}" if turn > 1 else opening
