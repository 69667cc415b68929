"""What the rounds of the engine are made of: their beginning, closed forms, and what they add to a row (floor 4).

Axes: B rows of the batch, T token buffer, K drafted, D places of a path, V vocabulary, C numbers for the host.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tempspec.core import hosts
from tempspec.core.lossy import distance
from tempspec.core.sampling import log_law
from tempspec.core.tree_verification import Siblings, match_steps, optimal_siblings
from tempspec.core.trees import onward, path, with_root
from tempspec.core.verification import at_position
from tempspec.decoding.noise import RoundNoise
from tempspec.decoding.slots import ActiveRow, Laws
from tempspec.interfaces import Completion, Draft, DraftContext, Drafter, DraftLength, StepModel, Verdict, Verifier
from tempspec.models.draft_steps import Extent

Texts = Callable[[], list[tuple[list[int], int]]]
"""Each row's tokens so far and the most that it may draft, on the host; neither of an empty slot."""


@dataclass(frozen=True, slots=True)
class RoundStart:
    """What one round starts from.

    Attributes:
        laws: the rows' sampling parameters.
        noise: this round's randomness.
        token_BT: prompt and emitted tokens.
        length_B: tokens of each row.
        limit_B: the most tokens that each row may draft.
        extent: what the host knows of these.
        rule: the draft length of this round; None for plain decoding.
        texts: see `Texts`.
    """

    laws: Laws
    noise: RoundNoise
    token_BT: Tensor
    length_B: Tensor
    limit_B: Tensor
    extent: Extent
    rule: DraftLength | None
    texts: Texts


def texts_of(rows: Sequence[ActiveRow | None], limits: Sequence[int]) -> list[tuple[list[int], int]]:
    """`Texts` of the rows in flight."""
    return [
        ([], 0) if row is None else ([*row.request.prompt, *row.completion.tokens], limit)
        for row, limit in zip(rows, limits, strict=True)
    ]


def draft_context(
    start: RoundStart, longest: int, vocabulary: int, model: StepModel | None, *, coupled: bool
) -> DraftContext:
    """What a drafter may use in a round.

    Args:
        start: the round.
        longest: the most tokens that a row may draft.
        vocabulary: the real ids.
        model: what drafts, if it needs a model.
        coupled: sample by the noise that the target's samples share.
    """
    laws, noise = start.laws, start.noise
    assert start.rule is not None

    def law(logits_BMV: Tensor) -> Tensor:
        whole_BMV = over_vocabulary(logits_BMV, vocabulary)
        return log_law(whole_BMV, laws.draft_temperature_B, any_greedy=laws.greedy, **laws.draft_truncation)

    def sample(logits_BV: Tensor, offset: int) -> tuple[Tensor, Tensor]:
        logq_BV = law(logits_BV[:, None])[:, 0]
        if coupled:
            return noise.coupled(logq_BV[:, None], offset)[:, 0], logq_BV
        return noise.draft(logq_BV.exp(), offset), logq_BV

    rows = start.token_BT, start.length_B, start.limit_B
    return DraftContext(*rows, longest, vocabulary, start.rule, sample, model, law, noise.nodes, start.texts)


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What a verdict means for the rows.

    Attributes:
        token_BD: the accepted tokens, then arbitrary values.
        depth_B: the longest drafted path.
        tested_B: tokens whose earlier ones were all accepted; siblings count once.
        place_BD: where each tested token was proposed: 0 after the text so far, i after the draft's token i - 1; and
            arbitrary values after them.
        node_BD: the accepted path's nodes in a tree, then arbitrary values; None for a chain.
    """

    token_BD: Tensor
    depth_B: Tensor
    tested_B: Tensor
    place_BD: Tensor
    node_BD: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ClosedForms:
    """A round's closed forms, on the device; None where the verifier, or the way to draft, has no such form.

    Attributes:
        acceptance: of every token that may have been tested, in order, `[B, D]`.
        length: the accepted length, `[B]`.
        optimum: the most that any rule accepts of a tree's siblings, at the places where some row tested, `[B, ...]`.
        variation: TV of a lossy rule's law from the target's at every drafted position, `[B, K]`.
        kl: KL likewise.
    """

    acceptance: Tensor | None = None
    length: Tensor | None = None
    optimum: Tensor | None = None
    variation: Tensor | None = None
    kl: Tensor | None = None

    def columns(self) -> list[Tensor]:
        """All of them as bits, int64 `[B, ...]` each: a round's integers and these are one transfer."""
        return [form.double().reshape(len(form), -1).view(torch.int64) for form in self._given().values()]

    def widths(self) -> dict[str, int]:
        """How many numbers each of them has in a row, by name."""
        return {name: form[0].numel() for name, form in self._given().items()}

    def _given(self) -> dict[str, Tensor]:
        names = ("acceptance", "length", "optimum", "variation", "kl")
        return {name: form for name in names if (form := getattr(self, name)) is not None}


def figures_of_rows(bits_BC: Tensor, widths: Mapping[str, int]) -> list[dict[str, list[float]]]:
    """Closed forms by name, of each row, from the joined `columns` on the host."""
    if not widths:
        return [{}] * len(bits_BC)
    parts = bits_BC.contiguous().view(torch.float64).split(list(widths.values()), 1)
    return [dict(zip(widths, row, strict=True)) for row in zip(*(part.tolist() for part in parts), strict=True)]


def append_forms(completion: Completion, forms: Mapping[str, list[float]]) -> None:
    """Add a row's closed forms to what it has counted, its round already appended."""
    tested = completion.tested[-1]
    counted = {
        "acceptance": completion.expected_acceptance,
        "optimum": completion.optimum,
        "variation": completion.total_variation,
        "kl": completion.kl,
    }
    for name, values in forms.items():
        if name == "length":
            completion.expected_length.append(values[0])
        else:
            counted[name].append(sum(values[:tested]))


def outcome_of(draft: Draft, verdict: Verdict) -> RoundOutcome:
    """What a verdict on drafts means."""
    device = draft.token_BK.device
    if draft.parent_BK is None or verdict.node_B is None:
        tested_B = torch.minimum(verdict.accepted_B + 1, draft.length_B)
        place_K = torch.arange(draft.token_BK.shape[1], device=device)
        return RoundOutcome(draft.token_BK, draft.length_B, tested_B, place_K.expand_as(draft.token_BK))
    parent_BK, nodes = draft.parent_BK, draft.token_BK.shape[1]
    node_K = torch.arange(nodes, device=device)
    real_BK = node_K < draft.length_B[:, None]
    on_BKK = draft.on_BKK
    depth_BK = on_BKK.sum(-1)
    childless_B = ~((parent_BK == verdict.node_B[:, None]) & real_BK).any(-1)
    on_BK = path(verdict.node_B, parent_BK, on_BKK)
    node_BK = node_K.expand_as(parent_BK).masked_fill(~on_BK, nodes).sort(-1).values.clamp(max=nodes - 1)
    deepest_B = (depth_BK * real_BK).amax(-1)
    place_BK = torch.nn.functional.pad((node_BK[:, :-1] + 1).clamp(max=nodes - 1), (1, 0))
    tested_B = verdict.accepted_B + (~childless_B)
    return RoundOutcome(draft.token_BK.gather(1, node_BK), deepest_B, tested_B, place_BK, node_BK)


def append_round(row: ActiveRow, emitted: list[int], drafted: int, tested: int) -> None:
    """Count one round of a row, up to its stop token if it emitted one."""
    completion = row.completion
    accepted = len(emitted) - 1
    stop = next((at for at, token in enumerate(emitted) if token in row.request.stop_ids), None)
    if stop is not None:
        completion.finish = "stop"
        emitted = emitted[: stop + 1]
        if stop < accepted:
            accepted = drafted = tested = stop + 1
    completion.tokens += emitted
    completion.drafted.append(drafted)
    completion.accepted.append(accepted)
    completion.tested.append(tested)
    row.length += len(emitted)


def has_optimum(drafter: Drafter) -> bool:
    """Whether the most that can be accepted of its siblings has a closed form; of distinct ones, of two at most."""
    few = drafter.most_children is not None and drafter.most_children <= 2
    return drafter.siblings is not None and (drafter.siblings != "distinct" or few)


def optimum(logp_BNV: Tensor, draft: Draft, siblings: Siblings, outcome: RoundOutcome) -> Tensor:
    """The most that can be accepted at each place of a tree that some row tested, `[B, ...]`, where `has_optimum`.

    On a GPU at each place of the longest path: to ask which were tested would make the host wait.

    Args:
        logp_BNV: the target's log-laws after the root and every node.
        draft: the trees.
        siblings: how their siblings were drawn.
        outcome: which places were tested.
    """
    places = outcome.place_BD.shape[1]
    if hosts.reads_free(logp_BNV):
        places = int(outcome.tested_B.max())
    place_BD = outcome.place_BD[:, :places]
    if draft.chosen:  # p's mass on the children
        step_BK = match_steps(logp_BNV, draft.token_BK, draft.tree_BK, draft.length_B)
        return onward(step_BK, draft.tree_BK).gather(1, place_BD)
    children = draft.children
    found = [
        optimal_siblings(
            at_position(logp_BNV, place_B), draft.logq_BKV, draft.token_BK, children.at(place_B - 1), siblings
        )
        for place_B in place_BD.unbind(1)
    ]
    return torch.stack(found, 1) if found else outcome.place_BD[:, :0]


def no_numbers(model: str, row: ActiveRow) -> str:
    """The message for a row whose logits are no numbers."""
    return (
        f"the {model}'s logits are NaN or infinite for request {row.request.key or '(no key)'}, after "
        f"{row.length} tokens: check its weights, or load it in another precision (model.loading.dtype: float32)"
    )


def over_vocabulary(logits: Tensor, vocabulary: int) -> Tensor:
    """A draft's logits over the target's real ids: padding cut off, ids that the draft lacks without mass."""
    lacking = vocabulary - logits.shape[-1]
    if lacking <= 0:
        return logits[..., :vocabulary]
    return torch.nn.functional.pad(logits, (0, lacking), value=-torch.inf)


def visible(draft: Draft) -> Tensor | None:
    """What the last token and the nodes of a tree see of each other, `[B, K+1, K+1]`; None for a chain."""
    if draft.parent_BK is None:
        return None
    return with_root(draft.on_BKK)


def law_distance(verifier: Verifier, logp_BKV: Tensor, draft: Draft) -> tuple[Tensor | None, Tensor | None]:
    """TV and KL of a lossy rule's law from the target's, `[B, K]` each; None for a rule without such a law."""
    if verifier.lossless:
        return None, None
    emitted_BKV = verifier.emitted_law(logp_BKV, draft.logq_BKV)
    return (None, None) if emitted_BKV is None else distance(emitted_BKV, logp_BKV)
