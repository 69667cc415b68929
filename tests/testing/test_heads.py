import pytest
import torch

from tempspec.core.unrolled import UnrolledKeys, visible
from tempspec.interfaces import HeadStep
from tempspec.models.eagle3 import Eagle3, Eagle3Model
from tempspec.testing import ConformanceError, check_head


def test_the_eagle3_heads_conform():
    check_head(Eagle3())
    check_head(Eagle3(draft_vocabulary=10), steps=2, seed=1)
    check_head(Eagle3(states=[0, 8], norm_output=True), steps=2, rows=1)


class Altered(Eagle3):
    """An EAGLE-3 head whose network is of another class."""

    network = Eagle3Model

    def build(self, target, ids_R=None):
        model = super().build(target, ids_R)
        model.__class__ = self.network
        return model

    def load(self, folder, target):
        model = super().load(folder, target)
        model.__class__ = self.network
        return model


class ShiftedFeature(Eagle3Model):
    """Entry i gets the feature of token i - 1."""

    def start(self, states):
        return super().start([state.roll(1, 1) for state in states])


class EarlyFeature(Eagle3Model):
    """Entry i gets the feature of token i + 1, which it is to predict the successor of."""

    def start(self, states):
        return super().start([state.roll(-1, 1) for state in states])


class SwappedParts(Eagle3Model):
    """The layer reads the feature first and the embedding second."""

    def step(self, carry_BNC, token_BN, embedded_BNH, keys, number):
        layer = self.layers[0]
        first, second = layer.input_layernorm, layer.hidden_norm
        joined = torch.cat([second(carry_BNC), first(embedded_BNH)], -1)
        turn = self.rotary(keys.position_BN, carry_BNC.dtype)
        hidden = carry_BNC + layer.self_attn(joined, turn, keys)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return HeadStep(self.norm(hidden), hidden)


class Standing:
    """Keys whose positions never move on."""

    def __init__(self, keys, position_BN):
        self.attend, self.position_BN = keys.attend, position_BN


class PositionsStand(Eagle3Model):
    """Every entry of step 1 and later turns as the entry of the step before did."""

    def step(self, carry_BNC, token_BN, embedded_BNH, keys, number):
        earlier = keys.position_BN - keys.position_BN % 2
        return super().step(carry_BNC, token_BN, embedded_BNH, Standing(keys, earlier), number)


class WideMask(UnrolledKeys):
    """From step 2 on an entry sees the keys of all steps up to its own place."""

    def _visible(self):
        entries = self.position_BN.shape[-1]
        if self._step < 2:
            return super()._visible()
        return visible(entries, 0).repeat(1, self._step + 1)


class WrongMask(Eagle3Model):
    def unrolled(self, states, token_BT, embed, steps, document_BT=None, position_BT=None):
        keys = WideMask(torch.arange(token_BT.shape[1] - 1).expand(len(token_BT), -1))
        carry = self.start([state[:, :-1] for state in states])
        for step in range(steps):
            place = (torch.arange(1, token_BT.shape[1]) + step).clamp(max=token_BT.shape[1] - 1)
            hidden, carry = self.step(carry, token_BT[:, place], embed(token_BT[:, place]), keys, step)
            yield hidden
            keys.advance()


class NormedCarry(Eagle3Model):
    """Hands on the normed output without saying so."""

    def step(self, *arguments):
        hidden, _ = super().step(*arguments)
        return HeadStep(hidden, hidden)


class DetachedSteps(Eagle3Model):
    """Nothing learns through fc."""

    def start(self, states):
        return super().start(states).detach()


class RowMean(Eagle3Model):
    """Features of a batch are centred by what else is in it."""

    def start(self, states):
        g = super().start(states)
        return g - g.mean(0, keepdim=True)


class FlatRows(Eagle3Model):
    """Applies fc to all tokens of a batch at once."""

    def start(self, states):
        joined = torch.cat(list(states), -1)
        return self.fc(joined.flatten(0, 1)).unflatten(0, joined.shape[:2])


class RowOfAll(Eagle3Model):
    """Reads the rows in reverse order and puts them back: right as long as all rows have the same weights."""

    def start(self, states):
        return super().start([state.flip(0) for state in states]).flip(0)


DECODING, MEANING = "a training step equals decoding", "tensors mean what engines read"


@pytest.mark.parametrize(
    ("network", "law"),
    [
        (ShiftedFeature, DECODING),
        (EarlyFeature, DECODING),
        (WrongMask, DECODING),
        (RowMean, DECODING),
        (FlatRows, "linear layers read a batch row by row"),
        (RowOfAll, "a row of its own weights gets alone"),
        (SwappedParts, MEANING),
        (PositionsStand, MEANING),
        (NormedCarry, MEANING),
        (DetachedSteps, "the loss reaches every weight"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_the_kit_refuses(network, law):
    head = Altered()
    head.network = network
    with pytest.raises(ConformanceError, match=law):
        check_head(head)


def test_the_wrong_mask_is_right_before_step_2():
    head = Altered()
    head.network = WrongMask
    check_head(head, steps=2)


class Forgets(Eagle3):
    """Saves other states than the network reads."""

    def load(self, folder, target):
        model = super().load(folder, target)
        model.states = (1, 2, 3)
        return model


class Unsorted(Eagle3):
    def states(self, layers):
        return 5, 3, 2


@pytest.mark.parametrize(("head", "law"), [(Forgets(), "load gives back"), (Unsorted(), "states are ascending")])
def test_the_kit_refuses_a_head_that(head, law):
    with pytest.raises(ConformanceError, match=law):
        check_head(head)
