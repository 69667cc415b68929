"""What a user sets of predict and generate: temperatures, lengths, passes (floor 4)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lightning.pytorch.utilities import rank_zero_info

from tempspec.core.acceptance import Truncation
from tempspec.errors import UserError
from tempspec.interfaces import Request

if TYPE_CHECKING:
    Temperatures = list[float]
else:  # a configuration may give one number, which becomes a list
    Temperatures = list[float] | float


@dataclass(kw_only=True)
class CutLaws:
    """How the distributions of both models are truncated; `Sweep` says what the options mean."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    cut_draft: bool = True

    @property
    def truncation(self) -> Truncation:
        """The same, as a function of laws."""
        return Truncation(self.top_k, self.top_p, self.min_p)


@dataclass
class Sweep(CutLaws):
    """What predict and generate decode, and how.

    Args:
        target_temperatures: decoding temperatures of predict; 0 is argmax.
        generation_temperatures: temperatures that generate samples the target's own text at.
        draft_temperatures: temperatures that drafts are sampled at: `same` (as the target's), a number, `fitted` (what
            validate found to be accepted most, truncated as below), or a list of these.
        fitted_on: validation sets that `fitted` is found on; all by default.
        samples: completions of every prompt at every temperature; one is enough at temperature 0.
        max_new_tokens: the most tokens of a completion.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens with this mass, in (0, 1].
        min_p: keep tokens at least this fraction as likely as the most likely one, in [0, 1].
        cut_draft: apply top_k, top_p and min_p to the draft as well. vLLM applies them only to the target.
        stop_at_eos: end a completion with the model's end-of-sequence token.
        slots: rows decoded together in the pass that measures acceptance; full until the work runs out.
        write_every: seconds between two writes of finished rows: an interruption loses at most so much.
        timing_prompts: prompts of each set for the pass that measures speed; 0 leaves it out.
        timing_slots: the batch sizes that speed is measured at. At 1 each prompt is decoded by itself; at B so many
            prompts of a set are decoded together, and those that are left over are not timed.
        seed: all sampling noise derives from it.
        compile: compile the forward passes. `auto` records CUDA graphs on a GPU and compiles nothing on a CPU. There
            `true` is worth it for small models and long runs; it needs a C++ compiler. `round`, on a GPU, records whole
            rounds; it has not been run on one yet.
        batch_size: read and ignored; `slots` and `write_every` took its place.
    """

    target_temperatures: Temperatures = field(default_factory=lambda: [0.0, 0.5, 1.0, 1.5])
    generation_temperatures: Temperatures = field(default_factory=lambda: [1.0])
    draft_temperatures: list[float | Literal["same", "fitted"]] | float | Literal["same", "fitted"] = "same"
    fitted_on: list[str] = field(default_factory=list)
    samples: int = 1
    max_new_tokens: int = 128
    stop_at_eos: bool = True
    slots: int = 16
    write_every: float = 10.0
    timing_prompts: int = 8
    timing_slots: list[int] = field(default_factory=lambda: [1])
    seed: int = 0
    compile: bool | Literal["auto", "round"] = "auto"
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
        if self.fitted and not self.cut_draft:
            raise ValueError("draft_temperatures: fitted expects a draft that is cut as the target, got cut_draft no")
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
            self.cut_draft,
        )
