"""Random files, configurations and requests: whatever comes in, the answer is rows or one `UserError` line.

Files are seeds of every format, cut, repeated, shuffled and overwritten at random; configurations are mappings of known
and unknown keys with odd values, put through the whole parser; requests hold odd numbers.
"""

from __future__ import annotations

import json
import random
import tempfile
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from goals import Goal, finish

from tempspec.data.sources import Source, read
from tempspec.errors import UserError

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
KEYS = ["model", "data", "trainer", "run", "task", "model.target", "train", "divergence", "temperature", "sweep", "x"]


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
    from tempspec.interfaces import Request

    numbers = [-1, 0, 1, 0.5, 1e308, float("nan"), float("inf"), -0.0]
    prompt = tuple(draw.choice([-1, 0, 2**40]) for _ in range(draw.randint(0, 3)))
    Request(prompt, *(draw.choice(numbers) for _ in range(5)))  # type: ignore[arg-type]


def one_configuration(draw: random.Random, path: Path) -> None:
    """Put a random configuration through the parser."""
    from tempspec.__main__ import _dispatch

    def tree(depth: int) -> object:
        if depth == 0 or draw.random() < 0.4:
            return draw.choice(VALUES)
        return {draw.choice(KEYS): tree(depth - 1) for _ in range(draw.randint(1, 3))}

    path.write_text(
        yaml.safe_dump({"model": {"target": "x"} | {draw.choice(KEYS): tree(2)}, draw.choice(KEYS): tree(3)})
    )
    _dispatch(["fit", "--config", str(path), "--print_config"])


def main() -> None:
    """Count what comes back."""
    import contextlib
    import io

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
            if number % 500 == 0:
                kind = "configuration"
            else:
                kind = "request" if number % 3 == 0 else suffix
            try:
                if kind == "configuration":
                    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
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
                print(kind, answer, content[:200], flush=True)
            answers[kind, answer] += 1
    print(f"{count} inputs, seed {options.seed}")
    for (kind, answer), number in sorted(answers.items()):
        print(f"{kind:14} {answer:24} {number}")
    broken = sum(number for (_, answer), number in answers.items() if answer.startswith("BROKEN"))
    finish([Goal("inputs answered otherwise", broken, high=0, digits=0)])


if __name__ == "__main__":
    main()
