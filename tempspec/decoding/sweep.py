"""What predict decodes: verifiers x prompt sets x prompts x temperatures x samples as one work list (floor 4).

Every item has a key of its own, which names its row for ever, and a seed that depends on the prompt and the sample
alone (and the turn of a conversation): verifiers, temperatures and drafts are compared on the same noise.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from lightning.pytorch.utilities import rank_zero_info

from tempspec.core.acceptance import Truncation
from tempspec.core.noise import fold
from tempspec.errors import UserError
from tempspec.interfaces import BASELINE, Pass, Request, Verifier

if TYPE_CHECKING:
    Temperatures = list[float]
else:  # a configuration may give one number, which becomes a list
    Temperatures = list[float] | float


@dataclass
class Sweep:
    """What predict and generate decode, and how.

    Args:
        target_temperatures: decoding temperatures of predict; 0 is argmax.
        generation_temperatures: temperatures that generate samples the target's own text at.
        draft_temperatures: temperatures that drafts are sampled at: `same` (as the target's), a number, `fitted` (what
            validate found to be accepted most, laws cut as below), or a list of these.
        fitted_on: validation sets that `fitted` is found on; all by default.
        samples: completions of every prompt at every temperature; one is enough at temperature 0.
        max_new_tokens: tokens to decode at most.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens with this mass, in (0, 1].
        min_p: keep tokens at least this fraction as likely as the most likely one, in [0, 1].
        stop_at_eos: end a completion with the model's end-of-sequence token.
        slots: rows decoded together in the pass that measures acceptance; full until the work runs out.
        write_every: seconds between two writes of finished rows: what an interruption loses at most of them.
        timing_prompts: prompts of each set for the pass that measures speed; 0 leaves it out.
        timing_slots: the batch sizes that speed is measured at. At 1 each prompt is decoded alone; at B so many prompts
            of a set are decoded together, and what is left of them is not timed.
        seed: all sampling noise derives from it.
        compile: compile the forward passes; worth it for small models and long runs. Needs a C++ compiler on a CPU.
        batch_size: read and ignored; `slots` and `write_every` took its place.
    """

    target_temperatures: Temperatures = field(default_factory=lambda: [0.0, 0.5, 1.0, 1.5])
    generation_temperatures: Temperatures = field(default_factory=lambda: [1.0])
    draft_temperatures: list[float | Literal["same", "fitted"]] | float | Literal["same", "fitted"] = "same"
    fitted_on: list[str] = field(default_factory=list)
    samples: int = 1
    max_new_tokens: int = 128
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_at_eos: bool = True
    slots: int = 16
    write_every: float = 10.0
    timing_prompts: int = 8
    timing_slots: list[int] = field(default_factory=lambda: [1])
    seed: int = 0
    compile: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that no run could use, before anything is loaded.

        Raises:
            ValueError: an option is out of its range.
        """
        for name in ("target_temperatures", "generation_temperatures"):
            if not isinstance(given := getattr(self, name), list):
                setattr(self, name, [given])
            if not getattr(self, name):
                raise ValueError(f"{name} must hold at least one temperature, got an empty list")
        for name in ("samples", "slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.write_every >= 0:
            raise ValueError(f"write_every must be 0 (write every row at once) or more seconds, got {self.write_every}")
        self._check_timing()
        for name in ("target_temperatures", "generation_temperatures"):
            values = set(getattr(self, name))
            if len({f"{value:g}" for value in values}) < len(values):
                raise ValueError(f"{name} must differ in their first six digits, got {sorted(values)}")
        generation = [(temperature, temperature) for temperature in self.generation_temperatures]
        unfitted = {temperature: temperature for temperature in self.target_temperatures}
        for target, draft in [*self.temperatures(unfitted), *generation]:  # a request checks the ranges
            self.request((0,), target, draft, seed=0, key="")

    def _check_timing(self) -> None:
        if self.timing_prompts < 0:
            raise ValueError(f"timing_prompts must be 0 (no timing) or more, got {self.timing_prompts}")
        if not self.timing_slots or min(self.timing_slots) < 1:
            raise ValueError(f"timing_slots must hold batch sizes of 1 or more, got {self.timing_slots}")
        if 0 < self.timing_prompts < max(self.timing_slots):
            raise ValueError(
                f"timing_prompts must be at least {max(self.timing_slots)}, the largest of timing_slots, got "
                f"{self.timing_prompts}"
            )

    def tell_dropped(self) -> None:
        """Say in one line which options of a configuration are of no use any more."""
        if self.batch_size is not None:
            rank_zero_info(
                f"sweep.batch_size ({self.batch_size}) is not used any more: sweep.slots rows are decoded together, "
                "from one running queue, and finished rows are written every sweep.write_every seconds"
            )

    @property
    def truncation(self) -> Truncation:
        """How the laws of both models are cut."""
        return Truncation(self.top_k, self.top_p, self.min_p)

    @property
    def fitted(self) -> bool:
        """Whether a draft temperature is to be fitted."""
        return "fitted" in self._drafts

    @property
    def _drafts(self) -> list[float | Literal["same", "fitted"]]:
        return self.draft_temperatures if isinstance(self.draft_temperatures, list) else [self.draft_temperatures]

    def temperatures(self, fitted: Mapping[float, float] | None = None) -> list[tuple[float, float]]:
        """All pairs (target temperature, draft temperature), without repetition.

        Args:
            fitted: tau_d by tau_t, where a draft temperature is fitted.

        Raises:
            UserError: a target temperature has no fit.
        """
        missing = [t for t in self.target_temperatures if t not in (fitted or {})]
        if self.fitted and missing:
            raise UserError(
                f"no draft temperature was fitted for target temperatures {missing}: run `tempspec validate` with this "
                "configuration first"
            )
        special = {"same": {t: t for t in self.target_temperatures}, "fitted": fitted or {}}
        pairs = [
            (t, special[d][t] if isinstance(d, str) else float(d))
            for t in self.target_temperatures
            for d in self._drafts
        ]
        return list(dict.fromkeys(pairs))

    def origin(self, prompt_sets: "Mapping[str, Sequence[PromptLike]]") -> dict[str, str | list[str]]:
        """What every completion depends on besides the models, entry by entry; prompts may be added to a set's end."""
        sampling = f"{self.max_new_tokens} {self.top_k} {self.top_p} {self.min_p} {self.stop_at_eos}"
        prompts = {f"prompts {name}": [str(one.key) for one in members] for name, members in prompt_sets.items()}
        return {"sampling": sampling, "seed": str(self.seed)} | prompts

    def request(
        self,
        prompt: tuple[int, ...],
        target_temperature: float,
        draft_temperature: float,
        *,
        seed: int,
        key: str,
        stop_ids: Collection[int] = (),
    ) -> Request:
        """One request with this sweep's truncation and length."""
        return Request(
            prompt,
            target_temperature,
            draft_temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.max_new_tokens,
            frozenset(stop_ids) if self.stop_at_eos else frozenset(),
            seed,
            key,
        )


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
        """The tokens of the turn behind these answers, the whole conversation before it included."""


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
        """The next turn of the conversation, with noise of its own; None behind the last."""
        answers = (*self.answers, answer)
        if len(answers) == self.prompt.turns:
            return None
        opening, turn = self.key.removesuffix(_turn_key("", self.turn)), self.turn + 1
        seed = int(fold(self.request.seed, turn))
        request = replace(self.request, prompt=self.prompt.after(answers), seed=seed, key=_turn_key(opening, turn))
        return replace(self, request=request, answers=answers)


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
    pairs = sweep.temperatures(fitted)
    items = [
        *_acceptance(sweep, pairs, verifiers, prompt_sets, stop_ids),
        *_timing(sweep, pairs, verifiers, prompt_sets, stop_ids),
    ]
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
    return [
        _item(sweep, "acceptance", BASELINE, name, prompt, temperature, temperature, sample, stop_ids)
        for name, prompts in prompt_sets.items()
        for prompt in prompts
        for temperature in dict.fromkeys(sweep.generation_temperatures)
        for sample in range(sweep.samples if temperature > 0 else 1)
    ]


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


def _acceptance(
    sweep: Sweep,
    pairs: Sequence[tuple[float, float]],
    verifiers: Mapping[str, Verifier],
    prompt_sets: Mapping[str, Sequence[PromptLike]],
    stop_ids: Collection[int],
) -> Iterator[WorkItem]:
    for label, verifier in verifiers.items():
        for name, prompts in prompt_sets.items():
            for prompt in prompts:
                for target, draft in _allowed(pairs, verifier):
                    for sample in range(sweep.samples if target > 0 else 1):
                        yield _item(sweep, "acceptance", label, name, prompt, target, draft, sample, stop_ids)


def _timing(
    sweep: Sweep,
    pairs: Sequence[tuple[float, float]],
    verifiers: Mapping[str, Verifier],
    prompt_sets: Mapping[str, Sequence[PromptLike]],
    stop_ids: Collection[int],
) -> Iterator[WorkItem]:
    for size in dict.fromkeys(sweep.timing_slots):
        for name, prompts in prompt_sets.items():
            timed = prompts[: sweep.timing_prompts]
            if timed and len(timed) < size:
                rank_zero_info(f"speed at {size} slots is not measured on {name}: it has {len(timed)} prompts")
            for at in range(0, len(timed) - size + 1, size):
                for target, draft in pairs:
                    labels = [label for label, rule in verifiers.items() if (target, draft) in _allowed(pairs, rule)]
                    for label in [BASELINE, *labels] if labels else []:
                        for prompt in timed[at : at + size]:
                            yield _item(sweep, "timing", label, name, prompt, target, draft, 0, stop_ids, size)


def _allowed(pairs: Sequence[tuple[float, float]], verifier: Verifier) -> list[tuple[float, float]]:
    return [(target, draft) for target, draft in pairs if target == 0 or not verifier.greedy_only]


def _item(
    sweep: Sweep,
    pass_: Pass,
    label: str,
    name: str,
    prompt: PromptLike,
    target: float,
    draft: float,
    sample: int,
    stop_ids: Collection[int],
    timing_slots: int = 0,
) -> WorkItem:
    kind = f"{pass_}{timing_slots}" if timing_slots > 1 else pass_
    key = f"{kind}/{label}/{name}/{prompt.index}/t{target:g}/d{draft:g}/s{sample}"
    seed = int(fold(sweep.seed, prompt.key, sample))
    request = sweep.request(prompt.ids, target, draft, seed=seed, key=key, stop_ids=stop_ids)
    return WorkItem(pass_, label, name, prompt, sample, request, timing_slots=timing_slots)


def _turn_key(opening: str, turn: int) -> str:
    """The key of a turn of a conversation; the first has that of its opening."""
    return f"{opening}/turn{turn}" if turn > 1 else opening
