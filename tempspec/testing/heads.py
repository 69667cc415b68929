"""The conformance check of heads (floor 3).

Axes: B rows, T positions, N entries, H hidden, V vocabulary, R the head's own vocabulary.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tempspec.interfaces import DraftHead, HeadModel, HeadTarget
from tempspec.testing.eagle3 import Eagle3Reading
from tempspec.testing.errors import ConformanceError

__all__ = ["check_head"]

_LAYERS, _TOKENS = 8, 9
"""Layers of the target that heads are built for, and tokens of its longest text."""

_EDGE, _ENGINES_EDGE = 1e-10, 1e-6
"""What float64 may differ by, and what it may where rotary frequencies are float32, as in engines."""


def check_head(head: DraftHead, *, vocabulary: int = 24, rows: int = 3, steps: int = 3, seed: int = 0) -> None:
    """Hold a kind of head to the laws of its family, in float64, with random weights on a random target's states.

    - it reads ascending states that the target has; its ids are ascending ids of the target, as many as it says;
    - its training steps equal decoding: what step j gives an entry is what a cache gives that was fed the text up to
      that entry, an entry at a time, and then j further tokens;
    - a row of a batch gets what it gets alone, whatever comes after its end;
    - so it does where every row has weights of its own, which `conditioning_rank` needs;
    - the loss of the steps reaches every weight that is trained, and none of the target's;
    - `load` gives back what `save` wrote, bit for bit, in every format;
    - a head whose format `plain` names `LlamaForCausalLMEagle3` means by its tensors what engines read in them.

    Args:
        head: the instance to check.
        vocabulary: V.
        rows: B, of different lengths.
        steps: J.
        seed: of weights, states and texts.

    Raises:
        ConformanceError: it breaks a law; the message says which, where and by how much.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target = _target(vocabulary)
        ids_R = None if head.draft_vocabulary is None else torch.randperm(vocabulary)[: head.draft_vocabulary].sort()[0]
        model = head.build(target, ids_R).double()
        _check_sizes(head, model, vocabulary)
        for parameter in model.parameters():  # norms of ones would hide which of them is applied
            parameter.data.normal_(1.0 if parameter.ndim < 2 else 0.0, 0.3)
        text = _Texts.random(model, target, rows)
        _check_steps(model, text, steps)
        _check_rows(model, text, steps)
        _check_own_weights(model, text, steps)
        _check_gradients(model, text, steps)
        with tempfile.TemporaryDirectory() as folder:
            _check_files(head, model, target, text, steps, Path(folder))


@dataclass(frozen=True)
class _Texts:
    """Rows of tokens with the states that a target might have of them.

    Attributes:
        token_BT: texts.
        length: their lengths.
        states: `[B, T, H]` each; beyond a row's length arbitrary.
        embedding_VH: the target's.
    """

    token_BT: Tensor
    length: list[int]
    states: list[Tensor]
    embedding_VH: Tensor

    @classmethod
    def random(cls, model: HeadModel, target: HeadTarget, rows: int) -> "_Texts":
        token_BT = torch.randint(len(target.embedding_VH), (rows, _TOKENS))
        states = [torch.randn(rows, _TOKENS, target.embedding_VH.shape[1], dtype=torch.float64) for _ in model.states]
        return cls(token_BT, [_TOKENS - row % 3 for row in range(rows)], states, target.embedding_VH)

    def embed(self, token: Tensor) -> Tensor:
        """Embeddings `[..., H]`."""
        return self.embedding_VH[token]

    def unrolled(self, model: HeadModel, steps: int) -> list[Tensor]:
        """The hidden states of every training step."""
        return list(model.unrolled(self.states, self.token_BT, self.embed, steps))

    def row(self, row: int) -> "_Texts":
        """One row, without what comes after its end."""
        length = self.length[row]
        states = [state[row : row + 1, :length] for state in self.states]
        return _Texts(self.token_BT[row : row + 1, :length], [length], states, self.embedding_VH)

    def places(self, steps: int) -> Iterator[tuple[int, int, int]]:
        """Row, step and entry of everything that predicts a token of its row, or the first after it."""
        for row, length in enumerate(self.length):
            for step in range(steps):
                yield from ((row, step, entry) for entry in range(length - 1 - step))


class _Growing:
    """A cache of one row that grows by one entry per step: the plainest `Keys` that there is."""

    def __init__(self) -> None:
        self.position_BN = torch.zeros(1, 1, dtype=torch.int64)
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def attend(self, query_BAND: Tensor, key_BGND: Tensor, value_BGND: Tensor, layer: int = 0) -> Tensor:
        kept = self._kept.setdefault(layer, [])
        kept.append((key_BGND, value_BGND))
        group = query_BAND.shape[1] // key_BGND.shape[1]
        key, value = (torch.cat(side, 2).repeat_interleave(group, 1) for side in zip(*kept, strict=True))
        weight = (query_BAND @ key.transpose(2, 3) / query_BAND.shape[-1] ** 0.5).softmax(-1)
        return weight @ value

    def advance(self) -> None:
        self.position_BN = self.position_BN + 1


def _decoded(model: HeadModel, text: _Texts, entry: int, steps: int) -> list[Tensor]:
    """The hidden states `[H]` of a round that begins at an entry of the only row, fed the text's own tokens."""
    keys, found = _Growing(), []
    for place in range(entry + steps):
        if place <= entry:
            carry = model.start([state[:, place : place + 1] for state in text.states])
        token_11 = text.token_BT[:, place + 1 : place + 2]
        hidden, carry = model.step(carry, token_11, text.embed(token_11), keys, max(place - entry, 0))
        if place >= entry:
            found.append(hidden[0, 0])
        keys.advance()
    return found


def _target(vocabulary: int) -> HeadTarget:
    """A target that is nothing but sizes and two random matrices."""
    config = SimpleNamespace(
        num_hidden_layers=_LAYERS,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        vocab_size=vocabulary,
        rms_norm_eps=1e-5,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )
    return HeadTarget(
        config, torch.randn(vocabulary, 16, dtype=torch.float64), torch.randn(vocabulary, 16, dtype=torch.float64)
    )


def _check_sizes(head: DraftHead, model: HeadModel, vocabulary: int) -> None:
    states = model.states
    if list(states) != sorted(set(states)) or not all(0 <= state <= _LAYERS for state in states):
        raise ConformanceError("states are ascending, 0 to the number of layers", f"{_LAYERS} layers", f"{states}")
    if states != head.states(_LAYERS):
        raise ConformanceError("a new head reads the states that it says", f"{_LAYERS} layers", f"{states}")
    rows = vocabulary if head.draft_vocabulary is None else head.draft_vocabulary
    if len(model.output_RH) != rows:
        raise ConformanceError(f"the output matrix has a row for each of {rows} tokens", "build", str(model.output_RH))


def _check_steps(model: HeadModel, text: _Texts, steps: int) -> None:
    found = text.unrolled(model, steps)
    rows = [text.row(row) for row in range(len(text.length))]
    for row, step, entry in text.places(steps):
        expected_H = _decoded(model, rows[row], entry, step + 1)[step]
        law = "a training step equals decoding with a cache"
        _check_near(found[step][row, entry], expected_H, law, f"step {step}, entry {entry} of row {row}")


def _check_rows(model: HeadModel, text: _Texts, steps: int) -> None:
    found = text.unrolled(model, steps)
    alone = [text.row(row).unrolled(model, steps) for row in range(len(text.length))]
    _check_alike(found, alone, text, steps, "a row gets alone what it gets in a batch")


def _check_own_weights(model: HeadModel, text: _Texts, steps: int) -> None:
    scale_B = 1 + torch.arange(len(text.length), dtype=torch.float64) / 4
    with _scaled(model, scale_B):
        found = text.unrolled(model, steps)
    alone = []
    for row, scale in enumerate(scale_B):
        with _scaled(model, scale[None]):
            alone.append(text.row(row).unrolled(model, steps))
    _check_alike(found, alone, text, steps, "a row of its own weights gets alone what it gets in a batch")


@contextmanager
def _scaled(model: HeadModel, scale_B: Tensor) -> Iterator[None]:
    """The weights of every linear layer but the output matrix times a number of each row's own."""

    def scale(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if len(output) != len(scale_B):
            raise ConformanceError("linear layers read a batch row by row", str(layer), f"{len(output)} rows")
        return output * scale_B.view(-1, *[1] * (output.ndim - 1))

    layers = [one for one in model.modules() if type(one) is nn.Linear and one.weight is not model.output_RH]
    handles = [layer.register_forward_hook(scale) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_alike(found: list[Tensor], alone: list[list[Tensor]], text: _Texts, steps: int, law: str) -> None:
    """Whether every step of a batch is that of its rows alone."""
    for row, step, entry in text.places(steps):
        _check_near(found[step][row, entry], alone[row][step][0, entry], law, f"step {step}, entry {entry}, row {row}")


def _check_gradients(model: HeadModel, text: _Texts, steps: int) -> None:
    model.zero_grad()
    loss = torch.stack([model.logits(hidden).logsumexp(-1).sum() for hidden in text.unrolled(model, steps)]).sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any())):
            raise ConformanceError("the loss reaches every weight", name, "no gradient")


def _check_files(head: DraftHead, model: HeadModel, target: HeadTarget, text: _Texts, steps: int, folder: Path) -> None:
    for format in head.formats:
        head.save(model, target, folder / format, format, torch.float64)
        loaded = head.load(folder / format, target)
        law = "load gives back what save wrote"
        if loaded.states != model.states or not _same_ids(loaded.ids_R, model.ids_R):
            raise ConformanceError(law, format, f"states {loaded.states}, ids {loaded.ids_R}")
        for name, value in model.state_dict().items():
            if not torch.equal(value, loaded.state_dict()[name]):
                raise ConformanceError(law, f"{format}, {name}", "it differs")
        for one, other in zip(text.unrolled(model, steps), text.unrolled(loaded, steps), strict=True):
            _check_near(one, other, law, f"{format}, steps")
    config = folder / "plain" / "config.json"
    if config.is_file() and "LlamaForCausalLMEagle3" in config.read_text(encoding="utf-8"):
        _check_meaning(model, text, steps, Eagle3Reading(config.parent))


def _check_meaning(model: HeadModel, text: _Texts, steps: int, reading: Eagle3Reading) -> None:
    found = text.unrolled(model, steps)
    for row, step, entry in text.places(steps):
        states = [state[row] for state in text.states]
        hidden_H = reading.steps(states, text.embed(text.token_BT[row]), entry, step + 1)[step]
        law, where = "tensors mean what engines read in them", f"step {step}, entry {entry} of row {row}"
        _check_near(found[step][row, entry], hidden_H, law, where, _ENGINES_EDGE)
        _check_near(model.logits(found[step][row, entry]), reading.logits(hidden_H), law, where, _ENGINES_EDGE)


def _same_ids(one_R: Tensor | None, other_R: Tensor | None) -> bool:
    return one_R is other_R if one_R is None or other_R is None else torch.equal(one_R, other_R)


def _check_near(got: Tensor, expected: Tensor, law: str, where: str, edge: float = _EDGE) -> None:
    error = float((got - expected).detach().abs().max())
    if not error <= edge * max(1.0, float(expected.detach().abs().max())):
        raise ConformanceError(law, where, f"off by {error:.2g}")
