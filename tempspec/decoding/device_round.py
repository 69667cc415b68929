"""A round on the device: all that lies between two looks of the host (floor 4).

Nothing here reads a value, and no shape depends on one: sizes follow from the `Extent`, which the host knows. So a
round can be recorded as a whole; `tests/decoding/test_device_round.py` holds it to that.

Axes: B rows of the batch, K drafted, N = K + 1, V vocabulary, D places of a path, C numbers for the host.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tempspec.core.noise import Stream
from tempspec.core.sampling import log_law
from tempspec.decoding.draft_sides import DraftSide, HeadSteps
from tempspec.decoding.noise import RoundNoise
from tempspec.decoding.rounds import (
    ClosedForms,
    RoundOutcome,
    RoundStart,
    draft_context,
    figures_of_rows,
    has_optimum,
    law_distance,
    optimum,
    outcome_of,
    visible,
)
from tempspec.interfaces import Draft, Drafter, Verdict, Verifier
from tempspec.models.draft_steps import DraftSteps
from tempspec.models.ragged import RaggedModel

__all__ = ["DeviceRound", "RowNumbers", "Sent"]


class RowNumbers(NamedTuple):
    """What the host learns of a row's round.

    Attributes:
        draft_finite: whether the draft's logits are numbers.
        target_finite: whether the target's are.
        accepted: tokens accepted.
        drafted: the longest drafted path.
        tested: tokens whose earlier ones were all accepted.
        emitted: the accepted tokens, the one after them, then arbitrary ones.
        figures: closed forms by name.
    """

    draft_finite: bool
    target_finite: bool
    accepted: int
    drafted: int
    tested: int
    emitted: list[int]
    figures: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Sent:
    """A round's numbers, still on the device.

    Attributes:
        number_BC: counts, then the bits of the closed forms.
        counts: how many of them are counts: finite or not, accepted, drafted, tested and emitted tokens.
        forms: how many numbers each closed form has, by name.
        fed: drafted tokens that the draft's cache holds; -1 for none, or a head.
    """

    number_BC: Tensor
    counts: int
    forms: dict[str, int]
    fed: int

    def read(self) -> list[RowNumbers]:
        """All of them, by one transfer: the round's only wait."""
        host_BC = self.number_BC.cpu()
        counts, figures = host_BC[:, : self.counts].tolist(), figures_of_rows(host_BC[:, self.counts :], self.forms)
        return [
            RowNumbers(bool(draft), bool(target), accepted, drafted, tested, emitted, row)
            for (draft, target, accepted, drafted, tested, *emitted), row in zip(counts, figures, strict=True)
        ]


class DeviceRound:
    """Drafts, verifies and writes down what was accepted.

    Args:
        target: the target with its cache.
        draft: what drafts, if the drafter needs a model.
        verifier: the acceptance rule; None for plain decoding.
        drafter: proposes tokens; None likewise.
        vocabulary: V.
        analytic: also compute the verifier's closed forms.
    """

    def __init__(
        self,
        target: RaggedModel,
        draft: DraftSide | None,
        verifier: Verifier | None,
        drafter: Drafter | None,
        vocabulary: int,
        *,
        analytic: bool,
    ) -> None:
        self._target, self._draft = target, draft
        self._verifier, self._drafter = verifier, drafter
        self._vocabulary, self._analytic = vocabulary, analytic

    def run(self, start: RoundStart) -> Sent:
        """One round; its tokens are in the buffer afterwards."""
        draft, steps = self._propose(start)
        last_B1 = start.token_BT.gather(1, start.length_B[:, None] - 1)
        token_BN = torch.cat([last_B1, draft.token_BK], 1)
        logits_BNV = self._target.forward(
            token_BN, start.length_B - 1, longest=start.extent.longest - 1, visible_RNN=visible(draft)
        )
        logp_BNV = logits_BNV[..., : self._vocabulary]
        # A sum of largest logits is finite unless some position has NaN, +inf, or -inf alone: what gives no law.
        largest_B = logp_BNV.amax(-1).sum(-1).float()
        finite_B2 = torch.stack([largest_B if steps is None else steps.largest_B, largest_B], 1).isfinite()
        if self._verifier is None or not self._verifier.reads_logits:
            laws = start.laws
            logp_BNV = log_law(logp_BNV, laws.target_temperature_B, any_greedy=laws.greedy, **laws.truncation)
        verdict = self._verify(logp_BNV, draft, start.noise)
        outcome = outcome_of(draft, verdict)
        if outcome.node_BD is not None:  # the cache of a tree becomes that of the accepted path
            self._target.keep_path(start.length_B, outcome.node_BD)
        forms = self._closed_forms(logp_BNV, draft, outcome)
        count_BC = torch.cat([finite_B2, _written(start, verdict, outcome)], 1)
        if self._draft is not None:
            self._draft.observe(start, verdict.accepted_B, outcome.node_BD, self._target.states)
        number_BC = torch.cat([count_BC, *forms.columns()], 1)
        return Sent(number_BC, count_BC.shape[1], forms.widths(), -1 if steps is None else steps.fed)

    def _propose(self, start: RoundStart) -> tuple[Draft, DraftSteps | HeadSteps | None]:
        """The drafts of this round, and what the draft model was fed for them, if it was."""
        longest = start.extent.drafted
        if self._drafter is None or start.rule is None or longest == 0:
            none_B0 = start.token_BT[:, :0]
            law_B0V = torch.empty(*none_B0.shape, self._vocabulary, dtype=torch.float32, device=none_B0.device)
            return Draft(none_B0, start.limit_B, law_B0V), None
        steps = None
        if self._draft is not None:
            steps = self._draft.steps(start, self._vocabulary)
        coupled = self._verifier is not None and self._verifier.shared_noise
        given = draft_context(start, longest, self._vocabulary, steps, coupled=coupled)
        return self._drafter.propose(given), steps

    def _verify(self, logp_BNV: Tensor, draft: Draft, noise: RoundNoise) -> Verdict:
        if self._verifier is None:
            return Verdict(torch.zeros_like(draft.length_B), noise.draw(logp_BNV[:, 0].exp(), Stream.TARGET))
        return self._verifier.verify(logp_BNV, draft, noise)

    def _closed_forms(self, logp_BNV: Tensor, draft: Draft, outcome: RoundOutcome) -> ClosedForms:
        """What the verifier expects, if it was asked for and has closed forms."""
        if not self._analytic or self._verifier is None:
            return ClosedForms()
        acceptance_BK = self._verifier.expected_acceptance(logp_BNV[:, :-1], draft)
        length_B = self._verifier.expected_length(logp_BNV, draft)
        siblings = self._drafter.siblings if self._drafter is not None and has_optimum(self._drafter) else None
        return ClosedForms(
            None if acceptance_BK is None else acceptance_BK.gather(1, outcome.place_BD),
            length_B,
            None if siblings is None else optimum(logp_BNV, draft, siblings, outcome),
            *law_distance(self._verifier, logp_BNV[:, :-1], draft),
        )


def _written(start: RoundStart, verdict: Verdict, outcome: RoundOutcome) -> Tensor:
    """Accepted, drafted, tested and the emitted tokens, which are in the buffer afterwards, `[B, C]`."""
    accepted_B1, next_B1 = verdict.accepted_B[:, None], verdict.next_token_B[:, None]
    emitted_BN = torch.cat([outcome.token_BD, next_B1], 1).scatter_(1, accepted_B1, next_B1)
    column_BN = start.length_B[:, None] + torch.arange(emitted_BN.shape[1], device=emitted_BN.device)
    start.token_BT.scatter_(1, column_BN, emitted_BN)
    return torch.cat([accepted_B1, torch.stack([outcome.depth_B, outcome.tested_B], 1), emitted_BN], 1)
