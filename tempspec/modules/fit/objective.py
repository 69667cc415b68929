"""From two models' logits to the value of a loss and its gradients, all at once or chunk by chunk (floor 5).

`plain` is the definition: logits in, a differentiable total out. `chunked` walks over hidden states, some tokens at a
time, and keeps nothing of the size of the vocabulary but the head's gradient; value and gradients are the plain ones.
In place of the target's side both take what a cache has kept of it.

Axes: N tokens, V vocabulary, H hidden, G temperatures at once.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tempspec.core import acceptance
from tempspec.core.divergences import label_cross_entropy
from tempspec.core.reduce import masked_sum_and_count
from tempspec.core.sparse import SparseLogits
from tempspec.core.vocabulary import draft_law, target_law
from tempspec.interfaces import Divergence, LossContext
from tempspec.modules.fit.fixed_shapes import FixedShapes, fixed_length, padded, padded_target
from tempspec.modules.outputs import HiddenStates, LogitPairs, SharedLogits, Side, TargetLogits, Tokens, narrow, wide

__all__ = ["Objective", "Result", "chunked", "plain", "value_and_slope"]


class Result(NamedTuple):
    """A loss over tokens.

    Attributes:
        total: the weighted sum, with its gradient.
        loss_N: the loss of each token, without.
        overlap_N: the acceptance of each token at the loss temperature, without; at the first of several.
    """

    total: Tensor
    loss_N: Tensor
    overlap_N: Tensor


@dataclass(frozen=True)
class Objective:
    """What is minimised over a set of tokens.

    Attributes:
        divergence: the distance between the laws.
        target_GN: the target's loss temperatures.
        draft_GN: the draft's.
        share_G: the weight of each temperature; without any the text's own tokens alone are learned.
        weight_N: the weight of each token; 0 leaves it out, whatever its value.
        context: the step and, as `[1, N]`, the text's own tokens.
        label_weight: the share of the cross-entropy with those tokens, at temperature 1.
        ids_R: the target's ids that the draft knows, where it knows some alone.
        renormalised: take the target's law over those ids, renormalised, for the divergence; never for an acceptance.
    """

    divergence: Divergence
    target_GN: Tensor
    draft_GN: Tensor
    share_G: Tensor
    weight_N: Tensor
    context: LossContext
    label_weight: float = 0.0
    ids_R: Tensor | None = None
    renormalised: bool = False

    def of(self, pairs: LogitPairs) -> Result:
        """The loss of these tokens: chunk by chunk where the draft's side is hidden states, else at once."""
        if isinstance(pairs.draft, HiddenStates):
            return chunked(pairs, self)
        everything = slice(0, len(pairs.draft))
        return plain(pairs.of_target(everything, pairs.common), pairs.of_draft(everything, pairs.common), self)

    @classmethod
    def joined(cls, parts: "Sequence[Objective]") -> "Objective":
        """One over the tokens of several that differ in nothing else, in their order."""
        labels = [part.context.label_BT for part in parts if part.context.label_BT is not None]
        return replace(
            parts[0],
            target_GN=torch.cat([part.target_GN for part in parts], 1),
            draft_GN=torch.cat([part.draft_GN for part in parts], 1),
            weight_N=torch.cat([part.weight_N for part in parts]),
            context=replace(parts[0].context, label_BT=torch.cat(labels, 1) if labels else None),
        )

    def part(self, tokens: Tokens) -> "Objective":
        """The same for some of the tokens."""
        label = self.context.label_BT
        return replace(
            self,
            target_GN=self.target_GN[:, tokens],
            draft_GN=self.draft_GN[:, tokens],
            weight_N=self.weight_N[tokens],
            context=replace(self.context, label_BT=None if label is None else label[:, tokens]),
        )

    def terms(self) -> "Iterator[Callable[[TargetLogits, Tensor], Tensor]]":
        """Functions of both wide logits whose results, `[N]`, add up to the loss."""
        for index in range(len(self.share_G)):
            yield partial(self._distance, index)
        if self.label_weight:
            yield self._label_loss

    def check(self, target: Side | TargetLogits, vocabulary: int) -> None:
        """Refuse temperatures that a cache of the target says nothing of, once for all tokens.

        Args:
            target: the target's side.
            vocabulary: the ids that both sides have.

        Raises:
            UserError: naming the temperatures that it knows.
        """
        if isinstance(target, SparseLogits):
            for target_N in self.target_GN.detach():
                target.check(target_N, vocabulary)

    def overlap(self, z_p_NV: TargetLogits, z_q_NV: Tensor) -> Tensor:
        """The acceptance at the first loss temperature, `[N]`, without a gradient; 0 where there is none."""
        if not len(self.share_G):
            return torch.zeros_like(self.weight_N)
        with torch.no_grad():
            return acceptance.overlap(*self._laws(0, z_p_NV, z_q_NV))

    def _distance(self, index: int, z_p_NV: TargetLogits, z_q_NV: Tensor) -> Tensor:
        logp_NV, logq_NV = self._laws(index, z_p_NV, z_q_NV, renormalised=self.renormalised)
        value_N = self.divergence(logp_NV[None], logq_NV[None], self.draft_GN[index][None], self.context)[0]
        return (1 - self.label_weight) * self.share_G[index] * value_N

    def _laws(
        self, index: int, z_p_NV: TargetLogits, z_q_NV: Tensor, *, renormalised: bool = False
    ) -> tuple[Tensor, Tensor]:
        # A product costs a third of a quotient.
        logq_NV = (z_q_NV * (1 / self.draft_GN[index][:, None])).log_softmax(-1)
        if isinstance(z_p_NV, SparseLogits):
            return z_p_NV.cells(self.target_GN[index], logq_NV)
        logp_NC = self._target_law(z_p_NV, self.target_GN[index], renormalised=renormalised)
        return logp_NC, logq_NV if self.ids_R is None else draft_law(logq_NV, renormalised=renormalised)

    def _target_law(self, z_p_NV: Tensor | SharedLogits, target_N: Tensor, *, renormalised: bool) -> Tensor:
        """The target's law on the draft's cells, `[N, C]`; that of a position once, for all tokens that read it."""
        if isinstance(z_p_NV, SharedLogits):
            # A temperature that is learned has a gradient at every token.
            target_U = None if target_N.requires_grad else z_p_NV.of_positions(target_N)
            if target_U is not None:
                return self._target_law(z_p_NV.logits_UV, target_U, renormalised=renormalised)[z_p_NV.index_N]
            z_p_NV = z_p_NV.logits_UV[z_p_NV.index_N]
        logp_NV = (z_p_NV * (1 / target_N[:, None])).log_softmax(-1)
        return logp_NV if self.ids_R is None else target_law(logp_NV, self.ids_R, renormalised=renormalised)

    def _label_loss(self, z_p_NV: TargetLogits, z_q_NV: Tensor) -> Tensor:
        assert self.context.label_BT is not None
        return self.label_weight * label_cross_entropy(z_q_NV.log_softmax(-1), self.context.label_BT[0])


def plain(logits_p_NV: TargetLogits, logits_q_NV: Tensor, objective: Objective) -> Result:
    """The loss of whole logits: what `chunked` must equal.

    Args:
        logits_p_NV: the target's logits over the common vocabulary.
        logits_q_NV: the draft's.
        objective: what to minimise.
    """
    objective.check(logits_p_NV, logits_q_NV.shape[-1])
    z_p_NV, z_q_NV = _wide_target(logits_p_NV), wide(logits_q_NV)
    loss_N = torch.stack([term(z_p_NV, z_q_NV) for term in objective.terms()]).sum(0)
    total, _ = masked_sum_and_count(loss_N, objective.weight_N > 0, objective.weight_N)
    return Result(total, loss_N.detach(), objective.overlap(z_p_NV, z_q_NV))


def chunked(pairs: LogitPairs, objective: Objective, compile: bool | None = None) -> Result:
    """The loss and its gradients from hidden states, a chunk of tokens at a time.

    Gradients reach the draft's hidden states, head weight and bias, and the temperatures where they are learned. They
    are computed with the value, so that backward only scales them. Autocast is respected.

    Args:
        pairs: both sides; the draft's is hidden states, and the target's gets no gradient.
        objective: what to minimise.
        compile: let `torch.compile` make one function of a chunk, where it can; None is on a GPU.
    """
    assert isinstance(pairs.draft, HiddenStates)
    objective.check(pairs.target, pairs.common)
    target = narrow(pairs.target) if isinstance(pairs.target, HiddenStates) else pairs.target
    hidden_NH = pairs.draft.hidden_NH
    fixed = (hidden_NH.is_cuda if compile is None else compile) and _compilable(pairs, objective)
    if fixed and pairs.chunk is None:
        pairs = replace(pairs, chunk=fixed_length(len(hidden_NH), pairs.vocabulary, hidden_NH.device.type))
    walk = _Walk(replace(pairs, target=target), objective, fixed)
    draft = pairs.draft if torch.is_grad_enabled() else HiddenStates._make(map(_without, pairs.draft))
    return Result(*_Chunked.apply(*draft, objective.target_GN, objective.draft_GN, walk))


def _compilable(pairs: LogitPairs, objective: Objective) -> bool:
    """Whether a chunk is a function of logits and constants alone: a step's number would be compiled anew each step.

    Whole logits of the target have as many shapes as there are batches.
    """
    whole = isinstance(pairs.target, Tensor) and pairs.target.shape[-1] > 0
    learned = objective.target_GN.requires_grad or objective.draft_GN.requires_grad
    alone = type(objective.divergence).in_context is Divergence.in_context
    return alone and not whole and not learned and _VALUE_AND_SLOPE.takes(_use(pairs, objective))


def _use(pairs: LogitPairs, objective: Objective) -> Hashable:
    """What one compiled function is of: a divergence, a kind of target, and whether the draft knows all tokens."""
    shared, some = pairs.place_N is not None, pairs.ids_R is not None
    return type(objective.divergence), type(pairs.target), shared, some


def value_and_slope(
    objective: Objective, z_p_NV: TargetLogits, z_q_NV: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A chunk's total, the loss of each token, the overlap of each, and the total's slope by the draft's logits.

    Sums are in float32 or better whatever the logits are in. All temperatures share the loads.

    Args:
        objective: of the chunk's tokens.
        z_p_NV: the target's logits; of those that tokens share each reads its own.
        z_q_NV: the draft's.
    """
    weight_N, wide_q_NV = objective.weight_N, wide(z_q_NV)
    wide_p_NV = _wide_target(z_p_NV)
    if isinstance(wide_p_NV, SharedLogits):  # whether temperatures are shared, too, only the host could tell
        wide_p_NV = wide_p_NV.logits_UV[wide_p_NV.index_N]

    def total(z_NV: Tensor) -> tuple[Tensor, Tensor]:
        loss_N = torch.stack([term(wide_p_NV, z_NV) for term in objective.terms()]).sum(0)
        return masked_sum_and_count(loss_N, weight_N > 0, weight_N)[0], loss_N

    slope_NV, (value, loss_N) = torch.func.grad_and_value(total, has_aux=True)(wide_q_NV)
    return value, loss_N, objective.overlap(wide_p_NV, wide_q_NV), slope_NV.to(z_q_NV.dtype)


def _of_a_chunk(
    divergence: Divergence,
    label_weight: float,
    renormalised: bool,
    tensors: Sequence[Tensor | None],
    z_p_NV: TargetLogits,
    z_q_NV: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`value_and_slope` of what `torch.compile` tells apart: constants, and tensors of fixed shapes."""
    target_GN, draft_GN, share_G, weight_N, label_1N, ids_R = tensors
    assert target_GN is not None
    assert draft_GN is not None
    assert share_G is not None
    assert weight_N is not None
    each = target_GN, draft_GN, share_G, weight_N, LossContext(0, None, label_1N)
    return value_and_slope(Objective(divergence, *each, label_weight, ids_R, renormalised), z_p_NV, z_q_NV)


_VALUE_AND_SLOPE = FixedShapes(_of_a_chunk)


class _Chunked(torch.autograd.Function):
    """Value and gradients in one walk; `backward` scales what `forward` has found."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_GN: Tensor,
        draft_GN: Tensor,
        walk: "_Walk",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The total, and per token the loss and the overlap."""
        inputs = (hidden_NH, weight_VH, bias_V, target_GN, draft_GN)
        wanted = [
            _zeros(value) if wanted and value is not None else None
            for value, wanted in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        ctx.found = _Gradients(*wanted)
        ctx.dtypes = [None if value is None else value.dtype for value in inputs]
        draft = narrow(HiddenStates(hidden_NH, weight_VH, bias_V))
        with torch.autocast(hidden_NH.device.type, enabled=False):
            chunks = list(walk.pairs.chunks())
            results = [walk.step(draft, tokens, ctx.found) for tokens in chunks]
        totals, losses, overlaps = zip(*results, strict=True)
        loss_N, overlap_N = _in_order(chunks, losses), _in_order(chunks, overlaps)
        ctx.mark_non_differentiable(loss_N, overlap_N)
        return torch.stack(totals).sum(), loss_N, overlap_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the first five inputs."""
        found = zip(ctx.found, ctx.dtypes, strict=True)
        return (*(None if value is None else (value * slope).to(dtype) for value, dtype in found), None)


class _Gradients(NamedTuple):
    """Where the gradients of the total add up, in float32 or better; None where none is wanted."""

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None
    target_GN: Tensor | None
    draft_GN: Tensor | None

    @property
    def wanted(self) -> tuple[bool, bool, bool]:
        """Whether anything asks for the gradient of the logits, and of either temperature."""
        head = any(part is not None for part in self[:3])
        return head, self.target_GN is not None, self.draft_GN is not None

    def add(
        self,
        draft: HiddenStates,
        tokens: Tokens,
        slope_NV: Tensor | None,
        target_GN: Tensor | None,
        draft_GN: Tensor | None,
    ) -> None:
        """Take in a chunk's gradients with respect to logits and temperatures; None is no gradient."""
        for whole_GN, slope_GN in ((self.target_GN, target_GN), (self.draft_GN, draft_GN)):
            if whole_GN is not None and slope_GN is not None:
                whole_GN[:, tokens] = slope_GN
        if slope_NV is not None:
            self._through_the_head(draft, tokens, slope_NV)

    def _through_the_head(self, draft: HiddenStates, tokens: Tokens, slope_NV: Tensor) -> None:
        narrow_NV = slope_NV.to(draft.weight_VH.dtype)
        vocabulary = slope_NV.shape[-1]
        if self.hidden_NH is not None:
            self.hidden_NH[tokens] = (narrow_NV @ draft.weight_VH[:vocabulary]).to(self.hidden_NH.dtype)
        if self.weight_VH is not None:
            weight_VH, hidden_NH = self.weight_VH[:vocabulary], draft.hidden_NH[tokens]
            if hidden_NH.dtype == weight_VH.dtype:
                weight_VH.addmm_(narrow_NV.T, hidden_NH)
            else:
                weight_VH.add_(narrow_NV.T @ hidden_NH)
        if self.bias_V is not None:
            self.bias_V[:vocabulary] += narrow_NV.sum(0)


class _Walk(NamedTuple):
    """All that a chunk needs besides the draft's side."""

    pairs: LogitPairs
    objective: Objective
    fixed: bool = False

    def step(self, draft: HiddenStates, tokens: Tokens, found: _Gradients) -> Result:
        """Value of one chunk of tokens; its gradients are added to `found`."""
        if self.fixed and found.wanted[0] and (result := self._compiled(draft, tokens, found)) is not None:
            return result
        pairs = replace(self.pairs, draft=draft)
        z_p_NV = _wide_target(pairs.of_target(tokens, pairs.common))
        z_q_NV = wide(pairs.of_draft(tokens, pairs.common))
        part = self.objective.part(tokens)
        leaves = z_q_NV, part.target_GN.detach(), part.draft_GN.detach()
        wanted = [leaf.requires_grad_() for leaf, want in zip(leaves, found.wanted, strict=True) if want]
        part = replace(part, target_GN=leaves[1], draft_GN=leaves[2])
        values = []
        with torch.set_grad_enabled(bool(wanted)):
            for term in part.terms():  # one graph at a time: several temperatures take no more memory than one
                value_N = term(z_p_NV, z_q_NV)
                total, _ = masked_sum_and_count(value_N, part.weight_N > 0, part.weight_N)
                if wanted:
                    total.backward(inputs=wanted)
                values.append(value_N.detach())
        found.add(draft, tokens, *(leaf.grad for leaf in leaves))
        loss_N = torch.stack(values).sum(0)
        total, _ = masked_sum_and_count(loss_N, part.weight_N > 0, part.weight_N)
        return Result(total, loss_N, part.overlap(z_p_NV, z_q_NV))

    def _compiled(self, draft: HiddenStates, tokens: Tokens, found: _Gradients) -> Result | None:
        """The same by one compiled function; None where there is none."""
        pairs, part = replace(self.pairs, draft=draft), self.objective.part(tokens)
        use = _use(pairs, part)
        assert pairs.chunk is not None
        count, size = len(part.weight_N), pairs.chunk
        if not _VALUE_AND_SLOPE.takes(use):
            return None
        tensors = (
            padded(part.target_GN, size, 1, 1.0),
            padded(part.draft_GN, size, 1, 1.0),
            part.share_G,
            padded(part.weight_N, size, 0),
            padded(part.context.label_BT, size, 1),
            part.ids_R,
        )
        constants = part.divergence, part.label_weight, part.renormalised
        z_p_NV = padded_target(pairs.of_target(tokens, pairs.common), size)
        z_q_NV = padded(pairs.of_draft(tokens, pairs.common), size, 0)
        made = _VALUE_AND_SLOPE(use, *constants, tensors, z_p_NV, z_q_NV)
        if made is None:
            return None
        total, loss_N, overlap_N, slope_NV = made
        found.add(draft, tokens, slope_NV[:count], None, None)
        return Result(total, loss_N[:count], overlap_N[:count])


def _wide_target(logits_NV: TargetLogits) -> TargetLogits:
    """The target's logits in float32 or better; those of a cache are."""
    if isinstance(logits_NV, SharedLogits):
        return logits_NV._replace(logits_UV=wide(logits_NV.logits_UV))
    return logits_NV if isinstance(logits_NV, SparseLogits) else wide(logits_NV)


def _in_order(chunks: Sequence[Tokens], values: Sequence[Tensor]) -> Tensor:
    """The chunks' values as those of all tokens, in the tokens' order."""
    whole_N = torch.cat(list(values))
    for tokens, value_N in zip(chunks, values, strict=True):
        whole_N[tokens] = value_N
    return whole_N


def _without(value: Tensor | None) -> Tensor | None:
    """A tensor for which no gradient is computed: autograd asks a function for those of parameters even then."""
    return None if value is None else value.detach()


def _zeros(value: Tensor) -> Tensor:
    """Room for a gradient, in float32 or better."""
    return torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
