"""Everything that a GPU is held to, in at most six minutes on a bare machine: one line a goal, and gpu.json beside it.

It needs torch, transformers, lightning, triton and this package's folder on PYTHONPATH; liger-kernel where it is there.
On a CPU it runs at toy sizes, which checks the script and says nothing about speed.

    python benchmarks/gpu.py [--only decode|loss|fit] [--quick] [--out FOLDER]
"""

import json
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

try:
    import lightning.pytorch as pl
    import torch
    import transformers
    from decoding import CUDA, DRAFTED, Pair, assisted, generated, in_turn, random_llama, requests, seconds, speculative
    from goals import Goal
    from torch import Tensor
    from transformers import PreTrainedModel

    from tempspec.decoding.engine import Engine
    from tempspec.interfaces import Divergence, LossContext
    from tempspec.models.reading import reading
    from tempspec.modules.callbacks import FiniteLoss
    from tempspec.modules.fit.loss import FitLoss, Moment
    from tempspec.modules.fit.objective import Objective, chunked
    from tempspec.modules.fit.optim import default_optimizer
    from tempspec.modules.head_steps import DraftStep
    from tempspec.modules.kept import Kept
    from tempspec.modules.outputs import HiddenStates, LogitPairs, LogitSource, response
    from tempspec.plugins.divergences import ForwardKL, JensenShannon, NegativeLogAcceptance
    from tempspec.plugins.schedules import Constant
except ImportError as error:
    sys.exit(f"gpu.py needs {error.name}: install it, or put the folder of this package on PYTHONPATH")

DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32
ROUND = "round" if CUDA else "auto"
"""How whole rounds are recorded: on a GPU alone."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is: that of the goals, or a toy's."""

    target: tuple[int, int] = (24, 2048)
    draft: tuple[int, int] = (4, 512)
    vocabulary: int = 32_000
    slots: int = 32
    small: tuple[int, int, int] = (30, 576, 49_152)
    many: tuple[int, int] = (256, 512)
    large_loss: tuple[int, int, int] = (8192, 4096, 128_256)
    small_loss: tuple[int, int, int] = (8192, 576, 49_152)
    fit: tuple[int, int, int, int] = (16, 2048, 16, 1024)
    small_fit: tuple[int, int] = (32, 256)
    repetitions: int = 5
    steps: int = 12


TOY = Sizes((2, 64), (1, 64), 128, 4, (2, 64, 128), (6, 8), (64, 32, 256), (64, 16, 128), (2, 64, 2, 16), (4, 16), 1, 6)


# -- decoding ---------------------------------------------------------------------------------------------------------


def decoding(size: Sizes) -> Iterator[Goal]:
    """Pair (d) by default options, and text of a small model in many slots."""
    torch.manual_seed(0)
    prompts = [tuple(row) for row in torch.randint(size.vocabulary, (64, 64)).tolist()]
    models = (random_llama(*shape, size.vocabulary) for shape in (size.target, size.draft))
    pair = Pair("d", *models, prompts)
    ours = OneRequest(pair, "auto")
    found = in_turn(size.repetitions, ours=ours, assisted=lambda _: seconds(lambda: assisted(pair, prompts[0])))
    yield Goal(f"(d) batch 1, ms a round, K = {DRAFTED}", 1e3 * found["ours"] / ours.rounds, high=3.5)
    yield Goal("(d) batch 1 over assisted generation", found["assisted"] / found["ours"], low=25)
    yield Goal("host waits a decoding round", host_waits(lambda: ours(0)) / ours.rounds, high=1.5)
    yield full_slots(pair, size, "auto", f"(d) {size.slots} slots, tokens/s")
    yield from recorded_rounds(pair, size)
    for count in (1, 16):
        plain = Engine(pair.target, pair.vocabulary, slots=count, compile="auto")
        found = in_turn(
            min(size.repetitions, 3),
            ours=lambda _: seconds(lambda: list(plain.run(requests(pair, count)))),  # noqa: B023
            theirs=lambda _: seconds(lambda: generated(pair, count)),  # noqa: B023
        )
        yield Goal(f"(d) plain decoding over generate, batch {count}", found["theirs"] / found["ours"], low=3)
    yield many_slots(size)


class OneRequest:
    """Seconds of one request; `rounds` are those that it took."""

    def __init__(self, pair: Pair, how: str) -> None:
        self.engine, self.work, self.rounds = speculative(pair, slots=1, compile=how), requests(pair, 1), 1

    def __call__(self, _: int) -> float:
        """Decode it."""
        done = []
        spent = seconds(lambda: done.extend(self.engine.run(self.work)))
        self.rounds = done[0].target_calls
        return spent


def full_slots(pair: Pair, size: Sizes, how: str, name: str) -> Goal:
    """A request in each slot."""
    engine, work = speculative(pair, slots=size.slots, compile=how), requests(pair, size.slots)
    spent = in_turn(1, ours=lambda _: seconds(lambda: list(engine.run(work))))["ours"]
    return Goal(name, size.slots * work[0].max_new_tokens / spent, low=12_000)


def recorded_rounds(pair: Pair, size: Sizes) -> Iterator[Goal]:
    """The same where a round is one recording, which is not the default."""
    ours = OneRequest(pair, ROUND)
    spent = in_turn(size.repetitions, ours=ours)["ours"]
    yield Goal("(d) batch 1, ms a recorded round", 1e3 * spent / ours.rounds, high=3.5)
    yield Goal("host waits a recorded round", host_waits(lambda: ours(0)) / ours.rounds, high=1.5)
    yield full_slots(pair, size, ROUND, f"(d) {size.slots} slots, recorded rounds, tokens/s")


def many_slots(size: Sizes) -> Goal:
    """Text of a model of SmolLM2-135M's shape, uneven prompts, from a queue that keeps the slots full."""
    layers, width, vocabulary = size.small
    slots, count = size.many
    model = random_llama(layers, width, vocabulary)
    prompts = [tuple(torch.randint(vocabulary, (8 + index % 57,)).tolist()) for index in range(64)]
    pair = Pair("135M", model, model, prompts)
    engine = Engine(model, vocabulary, slots=slots, compile="auto")
    work = requests(pair, count, new=128 if CUDA else 8)
    list(engine.run(work[:slots]))
    spent = seconds(lambda: list(engine.run(work)))
    return Goal(f"135M, text in {slots} slots, tokens/s", count * work[0].max_new_tokens / spent, low=40_000)


def host_waits(run: Callable[[], object]) -> int:
    """How often the host waits for the GPU; 0 where there is none, as `tests/` count what would be waits."""
    if not CUDA:
        run()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in told)


# -- the loss ---------------------------------------------------------------------------------------------------------


@dataclass
class Cost:
    """Median seconds of a forward and backward pass, and its bytes above what was there."""

    seconds: float
    bytes: int

    def over(self, other: "Cost", what: str, time: float, memory: float | None = None) -> Iterator[Goal]:
        """This one's share of another's."""
        yield Goal(f"{what}, time", self.seconds / other.seconds, high=time)
        if memory is not None and other.bytes:
            yield Goal(f"{what}, memory", self.bytes / other.bytes, high=memory)


def cost(run: Callable[[], object], repetitions: int) -> Cost:
    """What a pass takes, after one that warms up."""
    run()
    before = torch.cuda.memory_allocated() if CUDA else 0
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    spent = sorted(seconds(run) for _ in range(repetitions))[repetitions // 2]
    return Cost(spent, torch.cuda.max_memory_allocated() - before if CUDA else 0)


@dataclass
class Laws:
    """Both models' hidden states and heads, of which the draft's get gradients."""

    target_NH: Tensor
    target_VH: Tensor
    draft_NH: Tensor
    draft_VH: Tensor

    @classmethod
    def of(cls, tokens: int, hidden: int, vocabulary: int) -> "Laws":
        """Random ones."""
        made = [torch.randn(rows, hidden, device=DEVICE, dtype=DTYPE) for rows in (tokens, vocabulary) * 2]
        heads = [made[1] / hidden**0.5, made[3] / hidden**0.5]
        return cls(made[0], heads[0], made[2].requires_grad_(), heads[1].requires_grad_())

    def forget(self) -> None:
        """Drop the gradients."""
        self.draft_NH.grad = self.draft_VH.grad = None

    def ours(self, divergence: Divergence, temperatures: int = 1) -> None:
        """A loss and its gradients."""
        count = len(self.draft_NH)
        tau_GN = torch.linspace(0.5, 1.5, temperatures, device=DEVICE)[:, None].expand(-1, count).contiguous()
        share_G, weight_N = torch.full((temperatures,), 1 / temperatures, device=DEVICE), torch.ones_like(tau_GN[0])
        what = Objective(divergence, tau_GN, tau_GN, share_G, weight_N, LossContext())
        sides = HiddenStates(self.target_NH, self.target_VH), HiddenStates(self.draft_NH, self.draft_VH)
        self.forget()
        (chunked(LogitPairs(*sides, len(self.draft_VH)), what).total / count).backward()

    @torch.no_grad()
    def products(self) -> None:
        """The five matrix products that no loss can do without: logits of three passes, and both gradients."""
        for start in range(0, len(self.draft_NH), 1024):
            hidden_NH = self.draft_NH[start : start + 1024]
            slope_NV = hidden_NH @ self.draft_VH.T
            hidden_NH @ self.draft_VH.T
            self.target_NH[start : start + 1024] @ self.target_VH.T
            slope_NV @ self.draft_VH
            slope_NV.T @ hidden_NH


def liger(laws: Laws) -> Callable[[], None] | None:
    """Liger's compiled Jensen-Shannon loss on the same; None without it."""
    if find_spec("liger_kernel") is None or not CUDA:
        print("liger-kernel is not here: losses are compared with the bare products, and those goals are left out")
        return None
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    theirs = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=True)
    label_N = torch.zeros(len(laws.draft_NH), dtype=torch.int64, device=DEVICE)

    def run() -> None:
        laws.forget()
        theirs(laws.draft_NH, laws.draft_VH, laws.target_NH, laws.target_VH, label_N).backward()

    return run


def losses(size: Sizes) -> Iterator[Goal]:
    """Three losses at a large vocabulary, several temperatures, and a small model."""
    few = max(1, size.repetitions // 2)
    laws = Laws.of(*size.large_loss)
    found = [cost(partial(laws.ours, one), few) for one in (JensenShannon(), ForwardKL(), NegativeLogAcceptance())]
    bare, theirs = cost(laws.products, few), liger(laws)
    whole = Cost(bare.seconds, 0) if theirs is None else cost(theirs, few)
    names = ("Jensen-Shannon", "forward KL", "-log acceptance")
    for own, name, goal in zip(found, names, (1.0, 0.9, 0.9), strict=True):
        what = f"{name} over {'the products' if theirs is None else 'Liger'}"
        yield from own.over(whole, what, 1.5 * goal if theirs is None else goal, 1.0)
    one, four = (cost(partial(laws.ours, ForwardKL(), count), few) for count in (1, 4))
    yield from four.over(one, "four temperatures over one", 1.6)
    del laws
    laws = Laws.of(*size.small_loss)
    own, theirs = cost(lambda: laws.ours(JensenShannon()), few), liger(laws)
    whole = cost(laws.products if theirs is None else theirs, few)
    what = f"H = {size.small_loss[1]}, Jensen-Shannon over {'the products' if theirs is None else 'Liger'}"
    yield from own.over(whole, what, 6.0 if theirs is None else 0.8)


# -- fit --------------------------------------------------------------------------------------------------------------


class Step(pl.LightningModule):
    """A step of `fit` as DistillationModule makes it, without files: both models, the loss, the default optimiser."""

    def __init__(self, target: PreTrainedModel, draft: PreTrainedModel, divergence: Divergence) -> None:
        super().__init__()
        self.frozen, self.draft = [target.requires_grad_(False)], draft.train()
        self.source = LogitSource(draft.config.vocab_size, reading=reading([target, draft]))
        self.loss = FitLoss(divergence, Constant(1.0))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """The loss of a batch."""
        kept = Kept.of(response(batch))
        with torch.no_grad():
            target = self.source.of(self.frozen[0], batch, kept)
        pairs = self.source.pairs(target, self.source.of(self.draft, batch, kept))
        return self.loss([DraftStep(batch, pairs, kept)], Moment(index, None, index)).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The default one."""
        return default_optimizer(list(self.draft.parameters()), pretrained=True)


class Times(pl.Callback):
    """Seconds from step to step, and the host's waits in the last one."""

    def __init__(self, steps: int) -> None:
        self.steps, self.at, self.waits = steps, [], 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: object, index: int) -> None:
        """Count the waits of the last step, which is not timed."""
        if index == self.steps - 1 and CUDA:
            torch.cuda.synchronize()
            self.told = warnings.catch_warnings(record=True)
            self.list = self.told.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: object) -> None:
        """Note the time, of the device as well every few steps alone."""
        if len(self.at) == self.steps - 1 and CUDA:
            torch.cuda.set_sync_debug_mode("default")
            self.told.__exit__(None, None, None)
            self.waits = sum("synchronizing" in str(one.message) for one in self.list)
        if len(self.at) in (1, self.steps - 2) and CUDA:
            torch.cuda.synchronize()
        self.at.append(perf_counter())

    @property
    def seconds(self) -> float:
        """Of a step: over all but the first two and the last."""
        return (self.at[-2] - self.at[1]) / max(len(self.at) - 3, 1)


def rows(count: int, length: int, vocabulary: int) -> dict[str, Tensor]:
    """A batch of random text without padding."""
    loss_mask = torch.ones(count, length, dtype=torch.bool)
    loss_mask[:, 0] = False
    return {
        "input_ids": torch.randint(vocabulary, (count, length)),
        "attention_mask": loss_mask.long().fill_(1),
        "loss_mask": loss_mask,
        "weight": torch.ones(count),
        "key": torch.arange(count),
        "generation_temperature": torch.full((count,), torch.nan).view(torch.int32),
    }


def fitted(target: PreTrainedModel, draft: PreTrainedModel, batch: dict[str, Tensor], steps: int) -> Times:
    """Steps of training on one batch, under bf16-mixed on a GPU."""
    times = Times(steps)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if CUDA else "32-true",
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=[times, FiniteLoss(late=True)],
        **quiet,
    )
    loader = torch.utils.data.DataLoader([batch] * steps, batch_size=None, pin_memory=CUDA)
    trainer.fit(Step(target, draft, NegativeLogAcceptance()), loader)
    return times


def bare(target: PreTrainedModel, draft: PreTrainedModel, batch: dict[str, Tensor], repetitions: int) -> float:
    """Seconds of both models' passes without heads, and of the products of the heads."""
    ids_BT = batch["input_ids"].to(DEVICE)
    vocabulary, hidden = target.lm_head.weight.shape
    laws = Laws.of(ids_BT.numel(), hidden, vocabulary)
    laws.draft_NH, laws.draft_VH = (
        torch.randn(len(one), draft.config.hidden_size, device=DEVICE, dtype=DTYPE)
        for one in (laws.draft_NH, laws.draft_VH)
    )

    def passes() -> None:
        with torch.autocast(DEVICE.type, DTYPE, enabled=CUDA):
            with torch.no_grad():
                target.model(input_ids=ids_BT, use_cache=False)
            draft.model(input_ids=ids_BT, use_cache=False).last_hidden_state.sum().backward()

    return cost(passes, repetitions).seconds + cost(laws.products, repetitions).seconds


def fits(size: Sizes) -> Iterator[Goal]:
    """A training step against what it cannot do without, and a small model's tokens a second."""
    layers, width, count, length = size.fit
    vocabulary = size.small[2]
    target, draft = (random_llama(each, width, vocabulary).to(DEVICE) for each in (layers, 2))
    draft = draft.float()
    batch = rows(count, length, vocabulary)
    floor = bare(target, draft, batch, max(1, size.repetitions // 2))
    times = fitted(target, draft, batch, size.steps)
    yield Goal("fit step over both models' bare passes and five products", times.seconds / floor, high=1.15)
    yield Goal("host waits a training step", times.waits, high=1)
    del target, draft
    layers, width, _ = size.small
    target, draft = (random_llama(each, width, vocabulary).to(DEVICE) for each in (layers, max(1, layers // 8)))
    batch = rows(*size.small_fit, vocabulary)
    times = fitted(target, draft.float(), batch, size.steps)
    yield Goal("fit, 135M target, tokens/s", batch["input_ids"].numel() / times.seconds, low=250_000)


# -- all of it --------------------------------------------------------------------------------------------------------

PARTS = {"decode": decoding, "loss": losses, "fit": fits}


def main() -> None:
    """Measure, print a line a goal, write gpu.json; exit 1 where a goal is missed on a GPU."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(PARTS), help="one part alone")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder of gpu.json")
    options = parser.parse_args()
    size = Sizes(repetitions=2, steps=8) if options.quick else Sizes()
    size = size if CUDA else TOY
    card = torch.cuda.get_device_name() if CUDA else "no GPU: toy sizes, whose times mean nothing"
    print(f"{card}; torch {torch.__version__}, transformers {transformers.__version__}")
    began, goals = perf_counter(), []
    for name, part in PARTS.items():
        if options.only not in (None, name):
            continue
        try:
            for goal in part(size):
                goals.append(goal)
                print(goal if CUDA else f"{goal.name}: {goal.measured:.3f}", flush=True)
        except torch.OutOfMemoryError as error:
            print(f"{name} needs more memory: {str(error).splitlines()[0]}")
        if CUDA:
            torch.cuda.empty_cache()
    found = [asdict(goal) | {"met": goal.met} for goal in goals]
    kept = {"on": card, "seconds": perf_counter() - began, "goals": found}
    (options.out / "gpu.json").write_text(json.dumps(kept, indent=1))
    print(f"{kept['seconds']:.0f} s; {options.out / 'gpu.json'}")
    sys.exit(0 if not CUDA or all(goal.met for goal in goals) else 1)


if __name__ == "__main__":
    main()
