"""The engine against transformers' generation and against the bare forwards of its own models.

Pairs: (a) random Llama 12 x 768 (V 8192) with 2 x 256; (b) random Llama 6 x 256 (V 2048) with 1 x 128; (c) the
babyllama pair of `--assets FOLDER`, left out without it; (d) random Llama 24 x 2048 (V 32000) with 4 x 512, where there
is a GPU, in bf16. 64 prompt tokens, 128 new, K = 4, T = 1. Everything compared is timed in turn, repetition by
repetition, and medians are reported.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py --assets FOLDER
"""

import json
import platform
import statistics
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

import torch
import transformers
from goals import Goal, finish, parse
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, PreTrainedModel

from tempspec.core.survey import survey
from tempspec.decoding.engine import Engine
from tempspec.interfaces import Request
from tempspec.models.cache import cache_argument
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import TokenwiseRejection

PROMPT, NEW, DRAFTED = 64, 128, 4
TEMPERATURES = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
CUDA = torch.cuda.is_available()
clock = perf_counter


# -- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two models and prompts for them."""

    name: str
    target: PreTrainedModel
    draft: PreTrainedModel
    prompts: list[tuple[int, ...]]

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.target.config.vocab_size


def random_llama(layers: int, width: int, vocabulary: int) -> PreTrainedModel:
    """A Llama with random weights, heads of 64."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return placed(AutoModelForCausalLM.from_config(config))


def placed(model: PreTrainedModel) -> PreTrainedModel:
    """In eval mode; on the GPU in bf16 where there is one."""
    model = model.eval()
    return model.to("cuda", torch.bfloat16) if CUDA else model


def random_pair(name: str, target: tuple[int, int], draft: tuple[int, int], vocabulary: int) -> Pair:
    """A pair with random weights and random prompts."""
    torch.manual_seed(0)
    prompts = [tuple(row) for row in torch.randint(vocabulary, (64, PROMPT)).tolist()]
    return Pair(name, random_llama(*target, vocabulary), random_llama(*draft, vocabulary), prompts)


def babyllama(assets: Path) -> Pair:
    """The real pair, on stories."""
    target, draft = (
        placed(AutoModelForCausalLM.from_pretrained(assets / f"weights/babyllama-{side}", dtype=torch.float32))
        for side in ("target", "draft")
    )
    for model in (target, draft):  # nothing stops early
        model.generation_config.eos_token_id = model.config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(assets / "weights/babyllama-target")
    with (assets / "data/tinystories.jsonl").open() as lines:
        texts = [" ".join(json.loads(next(lines))["text"].split()) for _ in range(64)]
    prompts = [tuple(tokenizer(text)["input_ids"][:PROMPT]) for text in texts]
    return Pair("c", target, draft, [prompt for prompt in prompts if len(prompt) == PROMPT])


PAIRS = {
    "a": lambda: random_pair("a", (12, 768), (2, 256), 8192),
    "b": lambda: random_pair("b", (6, 256), (1, 128), 2048),
    "d": lambda: random_pair("d", (24, 2048), (4, 512), 32000),
}


# -- what is timed ----------------------------------------------------------------------------------------------------


def speculative(pair: Pair, **options) -> Engine:
    """The engine with token-wise rejection, K = 4."""
    rule = {"verifier": TokenwiseRejection(), "drafter": CausalLM(), "length": FixedLength(DRAFTED)}
    return Engine(pair.target, pair.vocabulary, **rule, draft=pair.draft, **options)


def requests(pair: Pair, count: int, temperature: float = 1.0, new: int = NEW) -> list[Request]:
    """One request a prompt."""
    prompts = [pair.prompts[index % len(pair.prompts)] for index in range(count)]
    return [Request(prompt, temperature, max_new_tokens=new, seed=index) for index, prompt in enumerate(prompts)]


def ids_of(pair: Pair, prompts: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Prompts as `generate` takes them."""
    token_BT = torch.tensor(prompts, device=pair.target.device)
    return {"input_ids": token_BT, "attention_mask": torch.ones_like(token_BT)}


def sampling(temperature: float = 1.0, new: int = NEW) -> dict[str, object]:
    """Options of `generate` that make it decode as the engine does."""
    whole = {"top_k": 0, "top_p": 1.0, "pad_token_id": 0, "use_cache": True}
    return {"do_sample": True, "temperature": temperature, "max_new_tokens": new, "min_new_tokens": new, **whole}


def assisted(pair: Pair, prompt: tuple[int, ...], temperature: float = 1.0) -> None:
    """The library's assisted generation with a constant K."""
    config = pair.draft.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = DRAFTED, "constant"
    config.assistant_confidence_threshold = 0.0
    pair.target.generate(**ids_of(pair, [prompt]), **sampling(temperature), assistant_model=pair.draft)


def generated(pair: Pair, count: int, new: int = NEW) -> None:
    """The library's plain generation of a batch."""
    pair.target.generate(**ids_of(pair, pair.prompts[:count]), **sampling(1.0, new))


@contextmanager
def recorded_calls(*models: PreTrainedModel) -> Iterator[list[tuple[int, int, int]]]:
    """The forward passes made inside, as (model's place, start, width), for a batch of one."""
    calls: list[tuple[int, int, int]] = []

    def hook(place: int) -> Callable[..., None]:
        def note(module: PreTrainedModel, args: tuple, kwargs: dict) -> None:
            position_RN = kwargs.get("position_ids")
            start = int(position_RN[0, 0]) if position_RN is not None else -1
            calls.append((place, start, kwargs["input_ids"].shape[1]))

        return note

    handles = [model.register_forward_pre_hook(hook(place), with_kwargs=True) for place, model in enumerate(models)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def replay(pair: Pair, calls: list[tuple[int, int, int]]) -> float:
    """Seconds of the same forward passes alone, by transformers' own cache; cropping it is not counted."""
    models, caches, total = (pair.target, pair.draft), (DynamicCache(), DynamicCache()), 0.0
    for place, start, width in calls:
        model, cache = models[place], caches[place]
        if cache.get_seq_length() > start:
            cache.crop(start - cache.get_seq_length())
        token_RN = torch.ones(1, width, dtype=torch.int64, device=model.device)
        synchronise()
        began = clock()
        model(input_ids=token_RN, logits_to_keep=0 if start else 1, **{cache_argument(model): cache})
        synchronise()
        total += clock() - began
    return total


# -- timing -----------------------------------------------------------------------------------------------------------


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if CUDA:
        torch.cuda.synchronize()


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    synchronise()
    began = clock()
    run()
    synchronise()
    return clock() - began


def in_turn(repetitions: int, **timed: Callable[[int], float]) -> dict[str, float]:
    """Medians of timings that take turns; each is told the repetition, and the first is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in timed}
    for repetition in range(repetitions + 1):
        for name, run in timed.items():
            found[name].append(run(repetition))
    return {name: statistics.median(values[1:]) for name, values in found.items()}


# -- the six goals ----------------------------------------------------------------------------------------------------


def batch_one(pair: Pair, repetitions: int, compiled: bool) -> Iterator[Goal]:
    """Goal 1: one request at a time, against assisted generation. Seconds a round, so that acceptance is the same."""
    engines = {"eager": speculative(pair, slots=1)}
    if compiled:
        engines["compiled"] = speculative(pair, slots=1, compile=True)
    rounds: dict[str, list[int]] = {name: [] for name in ("assisted", *engines)}

    def theirs(repetition: int) -> float:
        prompt = pair.prompts[repetition % len(pair.prompts)]
        with recorded_calls(pair.target) as calls:
            spent = seconds(lambda: assisted(pair, prompt))
        rounds["assisted"].append(len(calls))
        return spent / len(calls)

    def ours(name: str) -> Callable[[int], float]:
        def timed(repetition: int) -> float:
            request = requests(pair, repetition + 1)[-1:]
            done = []
            spent = seconds(lambda: done.extend(engines[name].run(request)))
            rounds[name].append(done[0].target_calls)
            return spent / done[0].target_calls

        return timed

    found = in_turn(repetitions, assisted=theirs, **{name: ours(name) for name in engines})
    for name, each in found.items():
        print(f"({pair.name}) batch 1, {name}: {1e3 * each:.2f} ms a round, "
              f"{NEW / statistics.mean(rounds[name]):.2f} tokens a round")  # fmt: skip
    goals = {"eager": {"a": 1.05, "b": 1.2, "c": 1.2, "d": 3.0}, "compiled": {"b": 1.6}}
    for name in engines:
        if pair.name in goals[name]:
            label = f"1 ({pair.name}) batch 1 over assisted generation, {name}"
            yield Goal(label, found["assisted"] / found[name], low=goals[name][pair.name])


def sweep(pair: Pair, prompts: int, slots: tuple[int, ...], samples: int) -> Iterator[Goal]:
    """Goal 2: 8 temperatures x prompts in one batch, against assisted generation of a sample of them."""
    work = [
        Request(prompt, temperature, max_new_tokens=NEW, seed=index)
        for index, prompt in enumerate(pair.prompts[:prompts])
        for temperature in TEMPERATURES
    ]
    rates = {}
    alone: list[float] = []
    for count in slots:
        engine = speculative(pair, slots=count)
        list(engine.run([request.shortened(8) for request in work[:count]]))
        rates[count] = len(work) / seconds(lambda: list(engine.run(work)))  # noqa: B023
        for index in range(samples):
            at = TEMPERATURES[index % len(TEMPERATURES)]
            alone.append(seconds(lambda: assisted(pair, pair.prompts[index % prompts], at)))  # noqa: B023
        print(f"({pair.name}) sweep of {len(work)}: {rates[count]:.2f} requests/s in {count} slots")
    theirs = 1 / statistics.mean(alone)
    print(f"({pair.name}) sweep: {theirs:.2f} requests/s by assisted generation (from {len(alone)} requests)")
    label = f"2 ({pair.name}) sweep, requests/s over assisted generation"
    yield Goal(label, max(rates.values()) / theirs, low={"a": 4.0, "b": 6.0, "d": 30.0}[pair.name])


def over_bare(pair: Pair, repetitions: int) -> Iterator[Goal]:
    """Goal 3: wall time over the forward passes alone."""
    engine = speculative(pair, slots=1)
    request = requests(pair, 1)
    with recorded_calls(pair.target, pair.draft) as calls:
        list(engine.run(request))
    found = in_turn(
        repetitions,
        engine=lambda _: seconds(lambda: list(engine.run(request))),
        bare=lambda _: replay(pair, calls),
    )
    print(f"({pair.name}) {len(calls)} forward passes: {found['engine']:.3f} s, bare {found['bare']:.3f} s")
    label = f"3 ({pair.name}) wall time over bare forward passes"
    yield Goal(label, found["engine"] / found["bare"], high={"a": 1.10, "b": 1.35, "d": 1.15}[pair.name])


def plain(pair: Pair, count: int, repetitions: int) -> Iterator[Goal]:
    """Goal 4: plain decoding against `generate`."""
    engine = Engine(pair.target, pair.vocabulary, slots=count)
    work = requests(pair, count)
    found = in_turn(
        repetitions,
        engine=lambda _: seconds(lambda: list(engine.run(work))),
        generate=lambda _: seconds(lambda: generated(pair, count)),
    )
    print(f"({pair.name}) plain decoding, batch {count}: {found['engine']:.3f} s, generate {found['generate']:.3f} s")
    yield Goal(f"4 ({pair.name}) plain decoding over generate, batch {count}", found["generate"] / found["engine"], 1.0)


def against_length(pair: Pair, repetitions: int) -> Iterator[Goal]:
    """Goal 5: time a token at 1,024 new tokens over that at 128, and what the caches hold."""
    held = {}

    def a_token(new: int) -> float:
        engine = speculative(pair, slots=1)
        spent = seconds(lambda: list(engine.run(requests(pair, 1, new=new)))) / new
        held[new] = engine.cache_bytes / sum(
            (PROMPT + new) * 2 * model.config.num_hidden_layers * model.config.hidden_size * model.dtype.itemsize
            for model in (pair.target, pair.draft)
        )
        return spent

    found = in_turn(repetitions, short=lambda _: a_token(128), long=lambda _: a_token(1024))
    print(f"({pair.name}) ms a token at 128: {1e3 * found['short']:.2f}, at 1,024: {1e3 * found['long']:.2f}")
    yield Goal(f"5 ({pair.name}) time a token at 1,024 over 128", found["long"] / found["short"], high=1.3)
    yield Goal(f"5 ({pair.name}) cache bytes over what the tokens need", max(held.values()), high=1.1)


def grid(pair: Pair, repetitions: int) -> Iterator[Goal]:
    """Goal 6: analytic validation at 8 x 8 pairs of temperatures over one pair, forward passes included."""
    token_BT = torch.tensor(pair.prompts[:16], device=pair.target.device)

    @torch.inference_mode()
    def validate(temperatures: list[float]) -> None:
        logits_p_NV, logits_q_NV = (
            model(input_ids=token_BT, use_cache=False).logits.flatten(0, 1) for model in (pair.target, pair.draft)
        )
        survey(logits_p_NV, logits_q_NV, temperatures)

    found = in_turn(
        repetitions,
        one=lambda _: seconds(lambda: validate([1.0])),
        grid=lambda _: seconds(lambda: validate(TEMPERATURES)),
    )
    print(f"({pair.name}) validation of {token_BT.numel()} tokens: one pair {1e3 * found['one']:.0f} ms, "
          f"8 x 8 {1e3 * found['grid']:.0f} ms")  # fmt: skip
    yield Goal(f"6 ({pair.name}) validation at 8 x 8 temperatures over one", found["grid"] / found["one"], high=2.5)


# -- the table --------------------------------------------------------------------------------------------------------


def goals_of(pair: Pair, quick: bool, compiled: bool, parts: str, slots: tuple[int, ...]) -> Iterator[Goal]:
    """The goals of one pair, measured."""
    few = 3 if quick else (5 if pair.name in "ad" else 15)
    if "1" in parts:
        yield from batch_one(pair, few, compiled and pair.name in "bd")
    if "2" in parts and pair.name in "abd":
        yield from sweep(pair, 4 if quick else 32, (32,) if quick else slots, 4 if quick else 8)
    if "3" in parts and pair.name in "abd":
        yield from over_bare(pair, few)
    if "4" in parts:
        yield from plain(pair, 1, few)
        yield from plain(pair, 16, 3)
    if "5" in parts and pair.name in "ad":
        yield from against_length(pair, 1 if quick else 3)
    if "6" in parts and pair.name == "b":
        yield from grid(pair, 5 if quick else 11)


def main() -> None:
    """Measure and judge."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="", help="letters of the pairs to measure, all by default")
    parser.add_argument("--parts", default="123456", help="numbers of the goals to measure")
    parser.add_argument("--slots", default="32,64", help="slot counts of the sweep, of which the best counts")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled forwards out")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for a machine that others use too")
    args = parse(parser)
    if args.cpu_time:
        global clock
        clock = process_time
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.processor()}, "
          f"{torch.cuda.get_device_name() if CUDA else 'no GPU'}, {torch.get_num_threads()} threads")  # fmt: skip
    makers = dict(PAIRS) if CUDA else {name: PAIRS[name] for name in "ab"}
    if args.assets:
        makers["c"] = lambda: babyllama(Path(args.assets))
    chosen = args.pairs or ("b" if args.quick else "".join(sorted(makers)))
    slots = tuple(map(int, args.slots.split(",")))
    goals = [
        goal
        for name in sorted(chosen)
        if name in makers
        for goal in goals_of(makers[name](), args.quick, not args.no_compile and not args.quick, args.parts, slots)
    ]
    finish(goals)


if __name__ == "__main__":
    main()
