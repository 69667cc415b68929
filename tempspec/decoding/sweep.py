"""What predict decodes: verifiers x prompt sets x prompts x temperatures x samples as one work list (floor 4).

Every item has a key of its own, which names its row for ever, and a seed that depends on the prompt and the sample
alone: verifiers, temperatures and drafts are compared on the same noise.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, Protocol

from tempspec.core.noise import fold
from tempspec.errors import UserError
from tempspec.interfaces import BASELINE, Pass, Request, Verifier


@dataclass
class Sweep:
    """What predict and generate decode, and how.

    Args:
        target_temperatures: decoding temperatures of predict; 0 is argmax.
        generation_temperatures: temperatures that generate samples the target's own text at.
        draft_temperatures: temperatures that drafts are sampled at: `same` (as the target's), a number, `fitted` (what
            validate found to be accepted most, without truncation), or a list of these.
        samples: completions of every prompt at every temperature; one is enough at temperature 0.
        max_new_tokens: tokens to decode at most.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens with this mass, in (0, 1].
        min_p: keep tokens at least this fraction as likely as the most likely one, in [0, 1].
        stop_at_eos: end a completion with the model's end-of-sequence token.
        slots: rows decoded together in the pass that measures acceptance.
        batch_size: requests between two writes; an interrupted run continues behind the last write.
        timing_prompts: prompts of each set for the pass that measures speed, one at a time; 0 leaves it out.
        seed: all sampling noise derives from it.
        compile: compile the forward passes; worth it for small models and long runs. Needs a C++ compiler on a CPU.
    """

    target_temperatures: list[float] = field(default_factory=lambda: [0.0, 0.5, 1.0, 1.5])
    generation_temperatures: list[float] = field(default_factory=lambda: [1.0])
    draft_temperatures: list[float | Literal["same", "fitted"]] | float | Literal["same", "fitted"] = "same"
    samples: int = 1
    max_new_tokens: int = 128
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop_at_eos: bool = True
    slots: int = 16
    batch_size: int = 64
    timing_prompts: int = 8
    seed: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no run could use, before anything is loaded.

        Raises:
            ValueError: an option is out of its range.
        """
        for name in ("target_temperatures", "generation_temperatures"):
            if not getattr(self, name):
                raise ValueError(f"{name} must hold at least one temperature, got an empty list")
        for name in ("samples", "slots", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.timing_prompts < 0:
            raise ValueError(f"timing_prompts must be 0 (no timing) or more, got {self.timing_prompts}")
        generation = [(temperature, temperature) for temperature in self.generation_temperatures]
        unfitted = {temperature: temperature for temperature in self.target_temperatures}
        for target, draft in [*self.temperatures(unfitted), *generation]:  # a request checks the ranges
            self.request((0,), target, draft, seed=0, key="")

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
    """What the work list needs of a prompt; `key` clusters the samples of one prompt."""

    @property
    def index(self) -> int:
        """Its place in the set."""

    @property
    def key(self) -> int:
        """A stable hash of its tokens."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One request of the sweep and the names that its row carries.

    Attributes:
        pass_: `acceptance` (batched) or `timing` (alone).
        verifier: the label, `BASELINE` for the baseline.
        prompt_set: the set's name.
        prompt_index: the prompt's place in its set.
        prompt_key: the prompt's hash, the bootstrap cluster.
        sample: 0 to samples - 1.
        request: what to decode; its key names this item.
    """

    pass_: Pass
    verifier: str
    prompt_set: str
    prompt_index: int
    prompt_key: int
    sample: int
    request: Request

    @property
    def key(self) -> str:
        """The item's name, unique in the sweep."""
        return self.request.key


def work_list(
    sweep: Sweep,
    verifiers: Mapping[str, Verifier],
    prompt_sets: Mapping[str, Sequence[PromptLike]],
    stop_ids: Collection[int] = (),
    fitted: Mapping[float, float] | None = None,
) -> list[WorkItem]:
    """All items: the batched pass verifier by verifier, then the timing pass with baseline and verifiers interleaved.

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
        for temperature in sweep.generation_temperatures
        for sample in range(sweep.samples if temperature > 0 else 1)
    ]


def batches(items: Sequence[WorkItem], batch_size: int, done: Collection[str] = ()) -> list[list[WorkItem]]:
    """Cut what is not done into batches of one pass and one verifier; timing items stay alone."""
    left = [item for item in items if item.key not in done]
    groups = groupby(left, key=lambda item: (item.pass_, item.verifier))
    cut: list[list[WorkItem]] = []
    for (pass_, _), group in groups:
        members = list(group)
        size = batch_size if pass_ == "acceptance" else 1
        cut += [members[at : at + size] for at in range(0, len(members), size)]
    return cut


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
    for name, prompts in prompt_sets.items():
        for prompt in prompts[: sweep.timing_prompts]:
            for target, draft in pairs:
                labels = [label for label, rule in verifiers.items() if (target, draft) in _allowed(pairs, rule)]
                for label in [BASELINE, *labels] if labels else []:
                    yield _item(sweep, "timing", label, name, prompt, target, draft, 0, stop_ids)


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
) -> WorkItem:
    key = f"{pass_}/{label}/{name}/{prompt.index}/t{target:g}/d{draft:g}/s{sample}"
    seed = int(fold(sweep.seed, prompt.key, sample))
    request = sweep.request(prompt.ids, target, draft, seed=seed, key=key, stop_ids=stop_ids)
    return WorkItem(pass_, label, name, prompt.index, prompt.key, sample, request)
