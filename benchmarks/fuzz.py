"""Random files, configurations and requests: whatever comes in, the answer is rows or one `UserError` line.

Files are seeds of every format, cut, repeated, shuffled and overwritten at random; configurations are a good one with
odd values, unknown keys and lost sections, put through the parser of a random subcommand, which is built once; requests
hold odd numbers.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import tempfile
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from goals import Goal, finish

from tempspec.cli import lightning
from tempspec.data.sources import Source, read
from tempspec.errors import UserError
from tempspec.interfaces import Request

TEXTS = ["", " ", "a b", "\x00", "\u202e", "ä" * 300, '"', "1e999", "null", "{}", "../../etc/passwd", "\\ud800", "%s"]
TEXT_LINES = "".join(json.dumps({"text": text, "generation_temperature": 1}) + "\n" for text in TEXTS)
CHAT = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
VALUES: list[object] = [
    None,
    True,
    -1,
    0,
    1e308,
    float("nan"),
    "",
    "x",
    [],
    {},
    [[]],
    "os.system",
    {"class_path": "os"},
]
KEYS = [
    "model",
    "data",
    "trainer",
    "run",
    "task",
    "model.target",
    "train",
    "divergnce",
    "temperature",
    "sweep",
    "x",
    "",
]
CONFIGURATION: dict[str, Any] = {
    "run": "runs/x",
    "trainer": {"max_steps": 5, "precision": "bf16-mixed", "gradient_clip_val": 1.0, "accelerator": "cpu"},
    "model": {
        "target": "x",
        "draft": "y",
        "loading": {"dtype": "float32"},
        "divergence": {"class_path": "JensenShannon", "init_args": {"beta": 0.3}},
        "temperature": {"class_path": "Uniform", "init_args": {"low": 0.5, "high": 1.5}},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.001}},
        "verifiers": {"token": "TokenwiseRejection", "block": {"class_path": "BlockVerification"}},
        "drafter": "CausalLM",
        "length": {"class_path": "FixedLength", "init_args": {"tokens": 4}},
        "sweep": {"target_temperatures": [0.0, 1.0], "draft_temperatures": ["same", 0.0], "max_new_tokens": 8},
    },
    "data": {
        "train": {"path": "a.jsonl"},
        "validation": {"held": {"path": "b.jsonl", "limit": 4}},
        "prompts": {"p": {"path": "c.jsonl"}},
        "max_length": 16,
    },
}
COMMANDS = ("fit", "validate", "test", "predict", "generate")
EVERY = 25
"""One input of so many is a configuration: they take a thousand times as long."""


def seeds(folder: Path) -> dict[str, list[bytes]]:
    """Whole files by suffix."""
    pq.write_table(pa.table({"text": ["a b", "c d"]}), folder / "seed")
    chat = [CHAT.encode() + b"\n", b'{"prompt": "a", "response": "b"}\n']
    return {
        ".jsonl": [TEXT_LINES.encode(), *chat],
        ".json": [b'[{"text": "a"}, {"text": "b"}]', b'{"text": "a"}'],
        ".csv": [b'text,prompt\n"a, b",c\n', b"prompt,response\na,b\n"],
        ".txt": [b"one\ntwo\n\nthree\n"],
        ".parquet": [(folder / "seed").read_bytes()],
    }


def mutated(seed: bytes, draw: random.Random) -> bytes:
    """A seed with a few random changes."""
    content = bytearray(seed)
    for _ in range(draw.randint(0, 6)):
        at, to = sorted(draw.randint(0, len(content)) for _ in range(2))
        match draw.randrange(5):
            case 0:
                del content[at:to]
            case 1:
                content[at:at] = draw.randbytes(draw.randint(1, 8))
            case 2:
                content[at:at] = content[at:to][:200]
            case 3 if content:
                content[min(at, len(content) - 1)] = draw.randrange(256)
            case _:
                content[at:at] = draw.choice([b"[" * 2000, b"9" * 5000, b'"', b"\xff\xfe", b",", b"\r", b"{", b"\x00"])
    return bytes(content)


def one_file(draw: random.Random, path: Path, content: bytes) -> None:
    """Read a file as a corpus."""
    path.write_bytes(content)
    read(Source(str(path)), need_response=draw.random() < 0.5)


def one_request(draw: random.Random) -> None:
    """Make a request of odd numbers."""
    numbers = [-1, 0, 1, 0.5, 1e308, float("nan"), float("inf"), -0.0]
    prompt = tuple(draw.choice([-1, 0, 2**40]) for _ in range(draw.randint(0, 3)))
    Request(prompt, *(draw.choice(numbers) for _ in range(5)))  # type: ignore[arg-type]


class OneParser(lightning.CommandLine):
    """The command line, whose parser of a task and a subcommand is built once."""

    _built: ClassVar[dict[str, dict[str, Any]]] = {}

    def setup_parser(self, *arguments: Any) -> None:
        """Build it, or take the earlier one."""
        before, parser = set(vars(self)), f"{self.task} {self.command}"
        if parser not in self._built:
            super().setup_parser(*arguments)
            self._built[parser] = {name: value for name, value in vars(self).items() if name not in before}
        vars(self).update(self._built[parser])


def one_configuration(draw: random.Random, path: Path) -> None:
    """Put a configuration with up to three changes through the parser of a subcommand."""
    configuration = copy.deepcopy(CONFIGURATION)
    for _ in range(draw.randint(0, 3)):
        _change(draw, configuration)
    path.write_text(yaml.safe_dump(configuration))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lightning.run([draw.choice(COMMANDS), "--config", str(path), "--print_config"], command_line=OneParser)


def _change(draw: random.Random, section: dict[Any, Any]) -> None:
    """Replace, remove, add or misspell an entry of a random section."""
    while (inner := [value for value in section.values() if isinstance(value, dict) and value]) and draw.random() < 0.7:
        section = draw.choice(inner)
    key = draw.choice(list(section)) if section else "x"
    match draw.randrange(4):
        case 0:
            section[key] = draw.choice(VALUES)
        case 1:
            section.pop(key, None)
        case 2:
            section[draw.choice(KEYS)] = draw.choice(VALUES)
        case _:
            section[str(key)[:-1] + draw.choice(["", "s", ".x", " "])] = section.pop(key, None)


def main() -> None:
    """Count what comes back."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a hundredth of them")
    options = parser.parse_args()
    count = options.inputs // (100 if options.quick else 1)
    draw = random.Random(options.seed)
    answers: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        whole = seeds(folder)
        for number in range(count):
            suffix = draw.choice(list(whole))
            content = mutated(draw.choice(whole[suffix]), draw)
            if number % EVERY == 0:
                kind = "configuration"
            else:
                kind = "request" if number % 3 == 0 else suffix
            try:
                if kind == "configuration":
                    one_configuration(draw, folder / "c.yaml")
                elif kind == "request":
                    one_request(draw)
                else:
                    one_file(draw, folder / f"f{suffix}", content)
                answer = "taken"
            except SystemExit:
                answer = "taken"
            except (UserError, ValueError) as error:
                fine = isinstance(error, UserError) or kind == "request"
                answer = "refused in one line" if fine and "\n" not in str(error) else f"BROKEN {type(error).__name__}"
            except Exception as error:
                answer = f"BROKEN {type(error).__name__}"
            if answer.startswith("BROKEN") and not answers[kind, answer]:
                shown = (folder / "c.yaml").read_bytes() if kind == "configuration" else content[:200]
                print(kind, answer, shown, flush=True)
            answers[kind, answer] += 1
    print(f"{count} inputs, seed {options.seed}")
    for (kind, answer), number in sorted(answers.items()):
        print(f"{kind:14} {answer:24} {number}")
    broken = sum(number for (_, answer), number in answers.items() if answer.startswith("BROKEN"))
    finish([Goal("inputs answered otherwise", broken, high=0, digits=0)])


if __name__ == "__main__":
    main()
