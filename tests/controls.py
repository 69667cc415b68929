"""Verifiers that are wrong on purpose: the known ways to lose the target's law, each of which a check must refuse."""

import torch

from tempspec.core import verification as core
from tempspec.core.noise import Stream
from tempspec.interfaces import Draft, Verdict, Verifier
from tempspec.plugins.verifiers import TokenwiseRejection


def ratio_coins(logp_BKV, draft, noise):
    """Token-wise acceptance, as it should be."""
    logp_BK, logq_BK = core.of_token(logp_BKV, draft.token_BK), core.of_token(draft.logq_BKV, draft.token_BK)
    return core.first_rejection(noise.coins(core.acceptance_probability(logp_BK, logq_BK)), draft.length_B)


def block_coins(logp_BKV, logq_BKV, survival_BK, length_B):
    """The coin probabilities of block verification by their formula, at every position."""
    h_BK = survival_BK[:, 1:].clone()
    for i in range(1, h_BK.shape[1]):
        P_B = survival_BK[:, i]
        m_B = (P_B[:, None] * logp_BKV[:, i].exp() - logq_BKV[:, i].exp()).clamp(min=0).sum(-1).double()
        h_B = torch.where(m_B + 1 - P_B == 0, 1.0, m_B / (m_B + 1 - P_B))
        h_BK[:, i - 1] = torch.where(length_B > i, h_B, P_B)
    return h_BK


def block_terms(logp_BKV, draft):
    """Survival and coin probabilities of block verification, as they should be."""
    logp_BK, logq_BK = core.of_token(logp_BKV, draft.token_BK), core.of_token(draft.logq_BKV, draft.token_BK)
    survival_BK = core.block_survival(core.log_ratio(logp_BK, logq_BK))
    return survival_BK, block_coins(logp_BKV, draft.logq_BKV, survival_BK, draft.length_B)


class Wrong(Verifier):
    """Says that it is lossless."""

    lossless = True


class ResidualFromTarget(Wrong):
    def verify(self, logp_BKV, draft, noise):
        accepted_B = ratio_coins(logp_BKV, draft, noise)
        return Verdict(accepted_B, noise.draw(core.at_position(logp_BKV, accepted_B).exp()))


class SharedNoiseResidual(Wrong):
    """A draft sampled with the shared noise, a ratio test, and the shared noise again for the residual."""

    shared_noise = True

    def verify(self, logp_BKV, draft, noise):
        accepted_B = ratio_coins(logp_BKV, draft, noise)
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        gumbel_BV = core.at_position(noise.shared_gumbel(*logp_BKV.shape[1:]), accepted_B)
        return Verdict(accepted_B, (weight_BV.log() + gumbel_BV).argmax(-1))


class WrongTemperature(Wrong):
    """Takes the draft's law for the one at twice its temperature."""

    def verify(self, logp_BKV, draft, noise):
        wrong = Draft(draft.token_BK, draft.length_B, (draft.logq_BKV / 2).log_softmax(-1))
        return TokenwiseRejection().verify(logp_BKV, wrong, noise)


class MatchPlusResidual(Wrong):
    def verify(self, logp_BKV, draft, noise):
        match_BK = noise.draw(logp_BKV.exp(), Stream.TARGET)[:, :-1] == draft.token_BK
        accepted_B = core.first_rejection(match_BK, draft.length_B)
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        return Verdict(accepted_B, noise.draw(weight_BV))


class BlockFirstFailure(Wrong):
    def verify(self, logp_BKV, draft, noise):
        survival_BK, h_BK = block_terms(logp_BKV, draft)
        accepted_B = core.first_rejection(noise.coins(h_BK), draft.length_B)
        survival_B = survival_BK.gather(1, accepted_B[:, None]).squeeze(1)
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B, survival_B)
        return Verdict(accepted_B, noise.draw(weight_BV))


class BlockPlainResidual(Wrong):
    def verify(self, logp_BKV, draft, noise):
        accepted_B = core.last_success(noise.coins(block_terms(logp_BKV, draft)[1]), draft.length_B)
        weight_BV = core.next_weight(logp_BKV, draft.logq_BKV, accepted_B, draft.length_B)
        return Verdict(accepted_B, noise.draw(weight_BV))
