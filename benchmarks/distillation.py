"""The chunked objective against whole logits, several temperatures against one, a step against trl's, three of a head.

Every measurement is a process of its own (peak memory), and the sides take turns (drifting machines). trl is a
dependency of this benchmark only; without it that part is left out, and so is Liger's without a GPU.

    OMP_NUM_THREADS=1 python benchmarks/distillation.py
"""

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from goals import Goal, finish, parse

HIDDEN, TEMPERATURES = 512, [1.0, 0.5, 1.5, 2.0]
PAIR = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
DEEP = PAIR | {"num_hidden_layers": 24}
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
SMOLLM2 |= {"num_hidden_layers": 30}


def peak_mib() -> float:
    """This process' largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------------------------------------------------------------
# What a child process measures
# ---------------------------------------------------------------------------------------------------------------------


def objective_seconds(kind: str, tokens: int, vocabulary: int, temperatures: int) -> dict[str, float]:
    """Forward and backward of forward KL from hidden states, by `plain` or `chunked`; memory above the inputs."""
    import torch

    from tempspec.interfaces import LossContext
    from tempspec.modules.fit.objective import Objective, chunked, plain
    from tempspec.modules.outputs import HiddenStates, LogitPairs
    from tempspec.plugins.divergences import ForwardKL

    torch.manual_seed(0)
    target = HiddenStates(torch.randn(tokens, HIDDEN), torch.randn(vocabulary, HIDDEN) / HIDDEN**0.5)
    draft = HiddenStates(
        torch.randn(tokens, HIDDEN, requires_grad=True),
        torch.nn.Parameter(torch.randn(vocabulary, HIDDEN) / HIDDEN**0.5),
    )
    temperature_GN = torch.tensor(TEMPERATURES[:temperatures])[:, None].expand(-1, tokens)
    share_G = torch.full((temperatures,), 1 / temperatures)
    what = Objective(ForwardKL(), temperature_GN, temperature_GN, share_G, torch.ones(tokens), LossContext())
    before = peak_mib()
    began = time.perf_counter()
    if kind == "plain":
        result = plain(target.hidden_NH @ target.weight_VH.T, draft.hidden_NH @ draft.weight_VH.T, what)
    else:
        result = chunked(LogitPairs(target, draft, vocabulary), what)
    (result.total / tokens).backward()
    seconds = time.perf_counter() - began
    slope = float(draft.weight_VH.grad.norm())
    return {"seconds": seconds, "mib": peak_mib() - before, "value": float(result.total.detach()), "slope": slope}


def resident_mib() -> float:
    """This process' resident size now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def make_pair(folder: Path, vocabulary: int, sizes: dict[str, int] = PAIR) -> None:
    """A random pair with one tokenizer: the target has 4 layers, or as many as the sizes say."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), eos_token="w0", pad_token="w0"
    )
    for name, layers in (("target", 4), ("draft", 1)):
        config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **{"num_hidden_layers": layers} | sizes)
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def step_seconds(kind: str, folder: Path, rows: int, length: int, steps: int) -> dict[str, float]:
    """The median training step on one batch: forward of both models, Jensen-Shannon, backward, AdamW."""
    import torch

    from tempspec.modules.distillation import DistillationModule
    from tempspec.plugins.divergences import JensenShannon

    ids = torch.randint(2, 1000, (rows, length), generator=torch.Generator().manual_seed(1))
    if kind == "trl":
        times = trl_steps(folder, ids, steps)
    else:
        draft = {"draft": str(folder / "draft")}
        module = DistillationModule(str(folder / "target"), **draft, divergence=JensenShannon())
        times = tempspec_steps(module, ids, steps).times
    return {"seconds": median(times[1:]), "mib": peak_mib(), "tokens": float(rows * (length - 1))}


def head_seconds(unrolled: int, folder: Path, rows: int, length: int, steps: int) -> dict[str, float]:
    """The median training step of an EAGLE-3 head, and its memory above that of the loaded models."""
    import torch

    from tempspec.models.eagle3 import Eagle3
    from tempspec.modules.distillation import DistillationModule
    from tempspec.modules.fit.training import HeadTraining

    ids = torch.randint(2, 1000, (rows, length), generator=torch.Generator().manual_seed(1))
    module = DistillationModule(str(folder / "target"), head=Eagle3(), head_training=HeadTraining(unrolled))
    clock = tempspec_steps(module, ids, steps)
    return {"seconds": median(clock.times[1:]), "mib": peak_mib() - clock.resident}


def tempspec_steps(module, ids, steps: int) -> "Clock":
    """Seconds of each step of `fit`."""
    import lightning.pytorch as pl
    import torch

    mask = torch.ones_like(ids)
    rows = len(ids)
    loss_mask = mask.bool()
    loss_mask[:, 0] = False
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "loss_mask": loss_mask,
        "generation_temperature": torch.full((rows,), torch.nan),
        "key": torch.arange(rows),
        "set_index": torch.zeros(rows, dtype=torch.int64),
        "weight": torch.ones(rows),
    }
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[clock.lightning()],
    )
    trainer.fit(module, torch.utils.data.DataLoader([batch] * steps, batch_size=None))
    return clock


class Clock:
    """Seconds between the ends of training batches, and the resident size before the first."""

    def __init__(self) -> None:
        self.resident = 0.0
        self.times: list[float] = []
        self.last = time.perf_counter()

    def tick(self) -> None:
        """End of a batch."""
        now = time.perf_counter()
        self.times.append(now - self.last)
        self.last = now

    def lightning(self):
        """A Lightning callback that ticks."""
        import lightning.pytorch as pl

        clock = self

        class Ticking(pl.Callback):
            def on_train_start(self, *_) -> None:
                clock.resident = resident_mib()

            def on_train_batch_end(self, *_) -> None:
                clock.tick()

        return Ticking()


def trl_steps(folder: Path, ids, steps: int) -> list[float]:
    """Seconds of each training step of trl's DistillationTrainer, its generation replaced by the batch."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer

    target, draft = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("target", "draft"))
    batch = {
        "prompt_ids": ids[:, :1],
        "completion_ids": ids[:, 1:],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_mask": torch.ones_like(ids[:, 1:]),
        "num_items_in_batch": torch.tensor(float(ids[:, 1:].numel())),
    }

    class Given(DistillationTrainer):
        def _prepare_inputs(self, generation_batch):
            return batch

    options = DistillationConfig(
        str(folder / "trl"),
        beta=0.5,
        temperature=1.0,
        per_device_train_batch_size=len(ids),
        max_completion_length=8,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "draft", padding_side="left")
    rows = Dataset.from_dict({"prompt": ["w5 w6"] * len(ids)})
    trainer = Given(draft, teacher_model=target, args=options, train_dataset=rows, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = 1  # what Trainer.train would set
    draft.train()
    optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-3)
    clock = Clock()
    for _ in range(steps):
        trainer.training_step(draft, batch, None)
        torch.nn.utils.get_total_norm([parameter.grad for parameter in draft.parameters()])
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.times


# ---------------------------------------------------------------------------------------------------------------------
# The parent
# ---------------------------------------------------------------------------------------------------------------------


def child(*arguments: object) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    line = [sys.executable, __file__, "--child", json.dumps(arguments, default=str)]
    done = subprocess.run(line, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(*arguments, {name: round(value, 4) for name, value in found.items()}, flush=True)
    return found


def objective_goals(options: Namespace) -> list[Goal]:
    """Chunked against plain, and four temperatures against one."""
    size = (1024, 32_000) if options.quick else (2048, 128_000)
    rounds = [
        [child("objective", kind, *size, count) for kind, count in (("chunked", 1), ("plain", 1), ("chunked", 4))]
        for _ in range(1 if options.quick else 3)
    ]

    def ratio(name: str, one: int, other: int) -> float:
        return median(each[one][name] / each[other][name] for each in rounds)

    gap = max(abs(each[0][name] / each[1][name] - 1) for each in rounds for name in ("value", "slope"))
    return [
        Goal(f"chunked / plain peak memory at {size[0]} tokens, V = {size[1]}", ratio("mib", 0, 1), high=0.25),
        Goal("chunked / plain time", ratio("seconds", 0, 1), high=1.0),
        Goal("relative gap of value and gradient norm, chunked against plain", gap, high=1e-5, digits=8),
        Goal("four temperatures / one, time", ratio("seconds", 2, 0), high=2.0),
    ]


def step_goals(options: Namespace) -> list[Goal]:
    """A training step against trl's."""
    if find_spec("trl") is None:
        print("trl is not installed: the comparison of training steps is left out")
        return []
    with TemporaryDirectory() as folder:
        make_pair(Path(folder), 8_000 if options.quick else 32_000)
        size = (folder, 4, 64, 4) if options.quick else (folder, 8, 256, 4)
        rounds = [
            [child("step", kind, *size) for kind in ("tempspec", "trl")] for _ in range(1 if options.quick else 3)
        ]
    speed = median(trl["seconds"] / ours["seconds"] for ours, trl in rounds)
    memory = median(ours["mib"] / trl["mib"] for ours, trl in rounds)
    return [
        Goal("tokens/s of a training step over trl's", speed, low=1.2),
        Goal("peak memory of a training step over trl's", memory, high=1.0),
    ]


def head_goals(options: Namespace) -> list[Goal]:
    """Three unrolled steps of a head against one, whose target has the sizes of SmolLM2-135M."""
    with TemporaryDirectory() as folder:
        make_pair(Path(folder), *((12_000, DEEP) if options.quick else (49_152, SMOLLM2)))
        rounds = [
            [child("head", steps, folder, 4, 176 if options.quick else 128, 4) for steps in (3, 1)]
            for _ in range(1 if options.quick else 3)
        ]
    return [
        Goal(f"three steps of a head / one, {what}", median(many[name] / one[name] for many, one in rounds), high=2.0)
        for what, name in (("time of a training step", "seconds"), ("memory above the models", "mib"))
    ]


MEASURES = {"objective": objective_seconds, "step": step_seconds, "head": head_seconds}


def main() -> None:
    """Measure and judge."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", type=json.loads, help="one measurement, for this script's own use")
    parser.add_argument("--part", choices=["objective", "step", "head"], help="one part alone")
    options = parse(parser)
    if options.child:
        what, *rest = options.child
        folder = [Path(value) if what != "objective" and place == 1 else value for place, value in enumerate(rest)]
        print(json.dumps(MEASURES[what](*folder)))
        return
    parts = {"objective": objective_goals, "step": step_goals, "head": head_goals}
    finish([goal for name, part in parts.items() if options.part in (None, name) for goal in part(options)])


if __name__ == "__main__":
    main()
