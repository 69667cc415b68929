"""What goes into the engine and what comes out of it: requests and completions (floor 2)."""

from dataclasses import dataclass, field, replace
from typing import Literal

BASELINE = "autoregressive"
"""The label of plain decoding, the denominator of every speed-up."""

Pass = Literal["acceptance", "timing"]
"""Which pass a request belongs to: the batched one that measures acceptance, or the one alone that measures speed."""


COLDEST = 1e-6
"""The least temperature above 0: logits over less than this leave the range of float32."""
_TEMPERATURE = f"0 (argmax) or at least {COLDEST:g}"


def _is_temperature(value: float) -> bool:
    return value == 0 or COLDEST <= value < float("inf")


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to decode. Rows of one batch mix requests freely.

    Attributes:
        prompt: token ids, at least one.
        target_temperature: 0 means argmax; otherwise at least `COLDEST`.
        draft_temperature: likewise; None means the target's temperature.
        top_k: 0 keeps all.
        top_p: in (0, 1]; 1 keeps all.
        min_p: in [0, 1]; 0 keeps all.
        max_new_tokens: at least 1.
        stop_ids: decoding ends with the first of these, which is kept as the last token.
        seed: all noise of this request derives from it; a signed integer of 64 bits.
        key: the caller's name for the request; the engine only hands it back.
        cut_draft: whether the draft's law is cut as the target's is.
    """

    prompt: tuple[int, ...]
    target_temperature: float = 1.0
    draft_temperature: float | None = None
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_new_tokens: int = 128
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    key: str = ""
    cut_draft: bool = True

    def __post_init__(self) -> None:
        """Refuse what no engine could decode.

        Raises:
            ValueError: a field is out of its range.
        """
        checks = (
            (len(self.prompt) > 0, "prompt", "at least one token id", "an empty prompt"),
            (_is_temperature(self.target_temperature), "target_temperature", _TEMPERATURE, self.target_temperature),
            (_is_temperature(self.draft_temperature or 0), "draft_temperature", _TEMPERATURE, self.draft_temperature),
            (self.top_k >= 0, "top_k", "0 (all) or more", self.top_k),
            (0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p),
            (0 <= self.min_p <= 1, "min_p", "in [0, 1]", self.min_p),
            (self.max_new_tokens >= 1, "max_new_tokens", "1 or more", self.max_new_tokens),
            (-(2**63) <= self.seed < 2**63, "seed", "an integer of 64 bits", self.seed),
        )
        for fine, name, expected, got in checks:
            if not fine:
                raise ValueError(f"{name} must be {expected}, got {got}")

    @property
    def proposal_temperature(self) -> float:
        """The temperature that drafts are sampled at."""
        return self.target_temperature if self.draft_temperature is None else self.draft_temperature

    def shortened(self, max_new_tokens: int) -> "Request":
        """The same request for at most this many new tokens."""
        return replace(self, max_new_tokens=min(max_new_tokens, self.max_new_tokens))


@dataclass(slots=True)
class Seconds:
    """Wall-clock seconds of one request; a batch's time is shared evenly by the rows that were active.

    Attributes:
        prefill: feeding the prompt to both models.
        draft: forward passes of the draft model.
        verify: forward passes of the target.
        overhead: all else of the rounds: sampling, verdicts, bookkeeping.
    """

    prefill: float = 0.0
    draft: float = 0.0
    verify: float = 0.0
    overhead: float = 0.0

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.prefill + self.draft + self.verify + self.overhead


@dataclass(slots=True)
class Completion:
    """What the engine returns for one request. Lists have one entry per round (one target call after the prefill).

    A round's counts end with the stop token where one was emitted: what was drafted after it was never asked for.

    Attributes:
        request: the request.
        tokens: the new token ids, the stop id included.
        finish: `stop` (a stop id) or `length` (max_new_tokens or the models' context).
        drafted: tokens drafted; of a tree those of its longest path.
        tested: drafted tokens whose earlier ones in the round were all accepted; at most accepted + 1. Siblings count
            once.
        accepted: drafted tokens accepted.
        expected_acceptance: the verifier's `expected_acceptance` summed over the tested tokens; empty when the engine
            was not asked for it or the verifier has none.
        expected_length: the verifier's `expected_length` of each round, cut by no stop token; empty likewise.
        optimum: the most that any rule which decides node by node accepts of a tree's siblings, summed over the tested
            tokens; empty likewise, for chains, and for siblings whose optimum has no closed form (three distinct ones).
        total_variation: TV between a lossy verifier's `emitted_law` and the target's, summed over the tested tokens;
            empty likewise, and for a lossless verifier.
        kl: KL(emitted || target) in nats, summed likewise; infinite where the law leaves the target's support.
        seconds: where the time went.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] = "length"
    drafted: list[int] = field(default_factory=list)
    tested: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    expected_acceptance: list[float] = field(default_factory=list)
    expected_length: list[float] = field(default_factory=list)
    optimum: list[float] = field(default_factory=list)
    total_variation: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def target_calls(self) -> int:
        """Target forward passes after the prefill: one per round."""
        return len(self.drafted)
