"""A step of training on tensors without contents: what of it is in memory at every moment (floor 5).

The models' and the loss' own code runs on torch's fake tensors, which have shapes, types and a device, and autograd
keeps of them what it keeps of real ones. So attention counts by the kernel that would run, and a divergence by its own
code. Only what a kernel takes for itself while it runs is not seen.

Axes: B batch, T positions, N response tokens, V vocabulary, H hidden.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tempspec.interfaces import Divergence, LossContext
from tempspec.models.conditioning import set_temperature
from tempspec.models.heads import hidden_states
from tempspec.modules.fit.objective import Objective, chunked, plain
from tempspec.modules.outputs import HiddenStates, LogitPairs

__all__ = ["CHUNKS", "InMemory", "Live", "StepPlan", "Unknowable", "fake", "objective", "rehearse"]

Kind = Literal["gradients", "activations", "logits", "target"]
Way = Literal["chunks", "whole"]

CHUNKS = 2
"""Chunks of the loss that are rehearsed: the others are like them."""

_SDPA = "rehearsed_sdpa"
"""transformers' name of its own `sdpa`, with the masks that rows without padding have."""

Unknowable = DataDependentOutputException, DynamicOutputShapeException
"""What code raises that must know the contents of tensors."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """Bytes that are in memory at one time, besides weights and the optimiser's states.

    Attributes:
        gradients: of the draft's parameters.
        activations: of the draft.
        logits: of the loss: logits, laws, their gradients.
        target: of the frozen models.
    """

    gradients: int = 0
    activations: int = 0
    logits: int = 0
    target: int = 0


@dataclass(frozen=True)
class StepPlan:
    """How a step is taken.

    Attributes:
        batch_size: rows.
        length: tokens of a row; all of them count in the loss.
        vocabulary: ids that both models have.
        chunk: tokens whose logits exist at a time; 0 is all.
        divergence: what is minimised.
        label_weight: share of the text's own token in the loss.
        autocast: the type of mixed precision, None for none.
        math: whether attention that has no fused kernel runs as single operations.
    """

    batch_size: int
    length: int
    vocabulary: int
    chunk: int
    divergence: Divergence
    label_weight: float = 0.0
    autocast: torch.dtype | None = None
    math: bool = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """As the Trainer's precision and the device's kernels have it."""
        with ExitStack() as stack:
            stack.enter_context(torch.device("cpu"))
            if self.autocast is not None:  # as Lightning does it, without the cache of narrow weights
                stack.enter_context(torch.autocast("cpu", dtype=self.autocast, cache_enabled=False))
            if self.math:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield


def rehearse(
    draft: PreTrainedModel, target: PreTrainedModel | None, reference: PreTrainedModel | None, step: StepPlan
) -> tuple[list[InMemory], list[InMemory]]:
    """The moments of a step that may be those with the most in memory; and the same of a step with whole logits.

    The models are on the meta device, in the precision of their weights in training, and are used up.

    Args:
        draft: what is trained.
        target: what it learns from; None where a cache takes its place.
        reference: the draft that tokens are selected by, if any.
        step: how the step is taken.

    Raises:
        Unknowable: a model's or the divergence's code must know what is in a tensor.
    """
    frozen = [model for model in (reference, target) if model is not None]
    with FakeTensorMode(), step.running():
        known = [value for model in (draft, *frozen) for value in fake(model)]
        ids_BT = torch.zeros(step.batch_size, step.length, dtype=torch.int64)
        kept_N = torch.arange(step.batch_size * (step.length - 1))
        # Of a cache, whose tokens' laws are no larger than these.
        p_BTH = torch.empty(*ids_BT.shape, 1, dtype=torch.float32)
        weight_p_VH = torch.empty(step.vocabulary, 1, dtype=torch.float32)
        set_temperature(draft.train(), 1.0)
        with Live([*known, ids_BT, kept_N, p_BTH, weight_p_VH]) as live:
            live.kind = "target"
            for model in frozen:
                with torch.no_grad():
                    p_BTH = hidden_states(model, input_ids=ids_BT, use_cache=False)
            if target is not None:
                weight_p_VH = target.get_output_embeddings().weight
            _learn(draft, p_BTH, weight_p_VH, ids_BT, kept_N, step, live)
        return live.largest("chunks"), live.largest("whole")


def _learn(
    draft: PreTrainedModel,
    p_BTH: Tensor,
    weight_p_VH: Tensor,
    ids_BT: Tensor,
    kept_N: Tensor,
    step: StepPlan,
    live: "Live",
) -> None:
    """The draft's pass, the loss in both ways, and the way back."""
    parameters = [parameter for parameter in draft.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(live.gradient)
    live.kind = "activations"
    last_BTH = hidden_states(draft, input_ids=ids_BT, use_cache=False)
    leaf_BTH = last_BTH.detach().requires_grad_()
    weight_VH, bias_V = (head := draft.get_output_embeddings()).weight, head.bias
    live.kind = "logits"
    with live.only("whole") if step.chunk else nullcontext():
        logits_q_NV = _kept(linear(leaf_BTH, weight_VH, bias_V), kept_N)[:, : step.vocabulary]
        logits_p_NV = _kept(linear(p_BTH, weight_p_VH.detach()), kept_N)[:, : step.vocabulary]
        plain(logits_p_NV, logits_q_NV, objective(step, len(kept_N))).total.backward()
        del logits_p_NV, logits_q_NV
    if step.chunk:
        for tensor in (leaf_BTH, *parameters):
            tensor.grad = None
        with live.only("chunks"):
            some = slice(CHUNKS * step.chunk)
            p_NH, q_NH = _kept(p_BTH, kept_N), _kept(leaf_BTH, kept_N)
            room_NH = torch.empty_like(q_NH[some.stop :], dtype=torch.float32)  # the gradient of those left out
            sides = HiddenStates(p_NH[some], weight_p_VH), HiddenStates(q_NH[some], weight_VH, bias_V)
            pairs = LogitPairs(*sides, step.vocabulary, step.chunk)
            chunked(pairs, objective(step, len(kept_N[some]))).total.backward()
            del p_NH, q_NH, room_NH, sides, pairs
    live.kind = "activations"
    slope_BTH, leaf_BTH.grad = leaf_BTH.grad, None
    del leaf_BTH, p_BTH
    last_BTH.backward(slope_BTH)


def _kept(value_BTX: Tensor, index_N: Tensor) -> Tensor:
    return value_BTX[:, :-1].flatten(0, 1).index_select(0, index_N)


def objective(step: StepPlan, tokens: int, ids_R: Tensor | None = None, *, renormalised: bool = False) -> Objective:
    """What is minimised over so many tokens, at one temperature; the last two as in `Objective`."""
    one_GN = torch.ones(1, tokens, dtype=torch.float32)
    label_1N = torch.zeros(1, tokens, dtype=torch.int64)
    whole = step.divergence, one_GN, one_GN, one_GN[:, 0], one_GN[0], LossContext(0, None, label_1N), step.label_weight
    return Objective(*whole, ids_R, renormalised)


def fake(model: nn.Module) -> list[Tensor]:
    """Put fake tensors in the place of a model's own; which those are."""
    if isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_SDPA)
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            if id(value) not in made:  # tied ones stay tied
                made[id(value)] = nn.Parameter(torch.empty(value.shape, dtype=value.dtype), value.requires_grad)
            setattr(module, name, made[id(value)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, made.setdefault(id(buffer), torch.empty(buffer.shape, dtype=buffer.dtype)))
    return list(made.values())


def _no_mask(*args: Any, **options: Any) -> Tensor | None:
    """The mask of rows without padding, where one is needed: transformers makes one for any tensor of this kind."""
    return sdpa_mask(*args, **options | {"attention_mask": None, "allow_is_causal_skip": True})


AttentionInterface.register(_SDPA, sdpa_attention_forward)
AttentionMaskInterface.register(_SDPA, _no_mask)


class Live(TorchDispatchMode):
    """Counts the bytes of all storages from their making to their end, by kind.

    Args:
        known: what is there already and does not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.kind: Kind = "activations"
        self._known = [value.untyped_storage() for value in known]
        self._kinds: dict[int, Kind | None] = dict.fromkeys(map(id, self._known))
        self._bytes: dict[Kind, int] = {"gradients": 0, "activations": 0, "logits": 0, "target": 0}
        self._moments: dict[Way, dict[int, InMemory]] = {"chunks": {}, "whole": {}}
        self._ways: tuple[Way, ...] = ("chunks", "whole")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count what it made; a condition on contents that do not exist is taken as true."""
        if func is torch.ops.aten.equal.default:
            return True
        if func is torch.ops.aten._local_scalar_dense.default:  # `is everything finite` is what code asks
            return True if args[0].dtype == torch.bool else 1
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and id(storage := value.untyped_storage()) not in self._kinds:
                self._kinds[id(storage)] = self.kind
                self._bytes[self.kind] += storage.nbytes()
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self._note()
        return result

    def gradient(self, parameter: Tensor) -> None:
        """What was made for this parameter's gradient is one."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        kind = self._kinds[id(storage)]
        if kind is not None and kind != "gradients":
            self._bytes[kind] -= storage.nbytes()
            self._bytes["gradients"] += storage.nbytes()
            self._kinds[id(storage)] = "gradients"

    @contextmanager
    def only(self, way: Way) -> Iterator[None]:
        """What happens here happens in one way to take the loss."""
        before, self._ways = self._ways, (way,)
        yield
        self._ways = before

    def largest(self, way: Way) -> list[InMemory]:
        """For each size of the gradients the moment with the most besides."""
        return list(self._moments[way].values())

    def _note(self) -> None:
        now = InMemory(**self._bytes)
        for way in self._ways:
            before = self._moments[way].get(now.gradients)
            if before is None or _size(now) > _size(before):
                self._moments[way][now.gradients] = now

    def _gone(self, storage: int, size: int) -> None:
        kind = self._kinds.pop(storage)
        assert kind is not None
        self._bytes[kind] -= size


def _size(moment: InMemory) -> int:
    return moment.activations + moment.logits + moment.target
