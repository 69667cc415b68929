"""Numbers of ours are float32, float64 or int64 wherever they are made, also where the default dtype is bfloat16.

It is so inside Lightning's step hooks under `bf16-true`.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import tempspec
from tempspec.core.acceptance import Truncation
from tempspec.core.sampling import log_law
from tempspec.decoding.engine import Engine
from tempspec.decoding.slots import ActiveRow, Slots
from tempspec.interfaces import Completion, LastRound, Request, ScheduleContext
from tempspec.plugins import divergences, schedules, verifiers
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import AdaEDL, Goodput
from tempspec.testing import check_divergence, check_length, check_schedule
from tests.decoding.conftest import tiny_llama
from tests.plugins.test_schedules import OPTIONS

PACKAGE = Path(tempspec.__file__).parent
HALF = torch.bfloat16
FACTORIES = frozenset(
    "tensor full zeros ones rand randn empty eye linspace logspace scalar_tensor as_tensor normal Tensor".split()
)


@pytest.fixture(autouse=True, params=[torch.float32, HALF], ids=["float32", "bfloat16"])
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Both default dtypes that code of ours runs under."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for part in value:
            yield from tensors(part)


class NoHalf(TorchFunctionMode):
    """Refuses a half-precision result of anything else, whoever asks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [one.dtype for one in tensors([list(args), kwargs])] + [kwargs.get("dtype"), *args]
        made = any(one.dtype == HALF for one in tensors(out if isinstance(out, torch.Tensor | tuple | list) else ()))
        assert not made or HALF in [one for one in given if isinstance(one, torch.dtype)], f"{func} made half precision"
        return out


def unnamed(source: str) -> list[str]:
    """Calls that make a tensor of the default dtype, or may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        named = any(keyword.arg == "dtype" for keyword in node.keywords)
        scalars = [isinstance(part, ast.Constant) for part in node.args[1:]] == [True, True]
        if of_torch and ((node.func.attr in FACTORIES and not named) or (node.func.attr == "where" and scalars)):
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_tensor_of_the_package_names_its_dtype():
    assert unnamed("import torch\ntorch.ones(3)\ntorch.where(x, 0.5, 1)\ntorch.ones(3, dtype=torch.int64)") == [
        "2: torch.ones(3)",
        "3: torch.where(x, 0.5, 1)",
    ]
    found = {
        f"{path.relative_to(PACKAGE)}:{call}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in unnamed(path.read_text(encoding="utf-8"))
    }
    assert not found


def context(**others):
    options = {"generator": torch.Generator().manual_seed(3)} | others
    return ScheduleContext(2, 10, 3, **options)


def test_a_schedule_keeps_the_temperatures_that_it_was_given():
    exactly = torch.tensor([0.7, 1.05], dtype=torch.float32)
    grid = schedules.Grid([0.7, 1.05], [0.3, 0.7])(context())
    assert torch.equal(grid.target.flatten(), exactly)
    assert torch.equal(grid.weight_G, torch.tensor([0.3, 0.7], dtype=torch.float32))
    drawn = schedules.Uniform(0.3, 2.0, per="sequence")(context()).target.flatten()
    shares = torch.rand((3, 1), generator=torch.Generator().manual_seed(3), dtype=torch.float32)
    assert torch.equal(drawn, 0.3 + 1.7 * shares.flatten())
    unknown = schedules.Matched(unknown=0.7)(context()).target
    assert torch.equal(unknown, exactly[:1, None].expand(3, 1))


@pytest.mark.parametrize("name", OPTIONS)
def test_conformance_of_schedules(name):
    with NoHalf():
        check_schedule(getattr(schedules, name)(**OPTIONS[name][0]))


def test_conformance_of_divergences_and_lengths():
    with NoHalf():
        for divergence in (divergences.NegativeLogAcceptance(), divergences.TAID(), divergences.JensenShannon()):
            divergence.per_position(*(torch.zeros(1, 2, 5, dtype=torch.float32).log_softmax(-1),) * 2)
        check_length(AdaEDL())
        check_length(Goodput(0.1, [1.0, 1.1, 1.2]))
    check_divergence(divergences.TotalVariation())


def test_adaedls_threshold_is_the_one_that_it_was_given():
    first = LastRound(*torch.tensor([[-1], [-1], [-1], [0], [0]]))
    assert AdaEDL(threshold=0.3).thresholds(first).tolist() == pytest.approx([0.3])


def test_slots_hold_the_options_of_their_requests():
    slots = Slots(torch.zeros(1, 8, dtype=torch.int64))
    request = Request((1,), 0.7, 1.05, top_k=257, top_p=0.9, min_p=0.05)
    slots.rows[0] = ActiveRow(request, Completion(request), 1, 4, 0)
    laws = slots.laws()
    assert laws.top_k_B.tolist() == [257]
    assert laws.top_k_B.dtype == torch.int64
    for value, expected in ((laws.top_p_B, 0.9), (laws.min_p_B, 0.05), (laws.draft_temperature_B, 1.05)):
        assert torch.equal(value, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize("logits_dtype", [HALF, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("option", [{"top_k": 257}, {"top_p": 0.9}, {"min_p": 0.003}], ids=str)
def test_a_cut_law_is_that_of_decoding_whatever_the_logits(logits_dtype, option):
    logits = torch.randn(2, 600, generator=torch.Generator().manual_seed(1), dtype=torch.float32).to(logits_dtype)
    temperatures = [0.7, 1.05, 1.95]
    got = Truncation(**option).laws(logits, temperatures)
    named = {
        f"{name}_B": torch.tensor([value], dtype=torch.int64 if name == "top_k" else torch.float32)
        for name, value in option.items()
    }
    for law, temperature in zip(got, temperatures, strict=True):
        temperature_1 = torch.tensor([temperature], dtype=torch.float32)
        assert torch.equal(law, log_law(logits.float()[None], temperature_1, **named)[0].exp())
    if option == {"top_k": 257}:
        floor = logits.float().topk(257).values[:, -1:]
        assert torch.equal((got[1] > 0).sum(-1), (logits.float() >= floor).sum(-1))


def test_the_engine_decodes_the_same_text(default):
    torch.set_default_dtype(torch.float32)
    target, draft = tiny_llama(0, 12, gain=1.0), tiny_llama(1, 12, gain=1.0)

    def texts():
        engine = Engine(
            target, 12, verifier=verifiers.BlockVerification(), drafter=CausalLM(), length=AdaEDL(), draft=draft
        )
        requests = [Request((1, 2), 0.7, 1.05, top_p=0.9, max_new_tokens=20, seed=seed) for seed in range(4)]
        return sorted((done.request.seed, done.tokens, done.tested) for done in engine.run(requests))

    expected = texts()
    torch.set_default_dtype(default)
    with NoHalf():
        assert texts() == expected
