"""Mutation testing of `tempspec/core` and `tempspec/plugins`: would the tests notice a small mistake?

    nice python benchmarks/mutation.py

A seeded sample of mutants, each one small change of one file: another operator, another number, the other of two
functions. The tests of the file's name (`tests/core/test_NAME.py`, `tests/plugins/test_NAME.py`, its doctests) run on
each until the first fails; without a change they must pass, or every mutant would count as killed. Torch is imported
once, and a child is forked for every mutant. Results are appended to a file; a run that was stopped goes on behind
them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import json
import os
import random
import re
import resource
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType

import pytest
import torch
from goals import Goal, finish

ROOT = Path(__file__).parents[1]
FOLDERS = ("tempspec/core", "tempspec/plugins")
FURTHER = {  # files that are tested under another name, too
    "core/gumbel": ("decoding/test_noise",),
    "core/k_sequential": ("core/test_tree_verification", "plugins/test_tree_verifiers"),
    "core/noise": ("decoding/test_noise", "core/test_gumbel"),
    "core/tree_verification": ("plugins/test_tree_verifiers", "plugins/test_tree_drafters"),
    "core/trees": ("plugins/test_tree_verifiers", "plugins/test_tree_drafters"),
    "core/verification": ("plugins/test_verifiers",),
    "plugins/verifiers": ("plugins/test_gumbel_coupling",),
}
SWAPS = {
    **{"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "**": "*", "%": "*", "&": "|", "|": "&", "@": "*"},
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is"},
    **{"in": "not in", "not in": "in", "and": "or", "or": "and", ">>": "<<", "<<": ">>"},
    **{"minimum": "maximum", "maximum": "minimum", "amax": "amin", "amin": "amax", "any": "all", "all": "any"},
    **{"argmax": "argmin", "min": "max", "max": "min", "zeros_like": "ones_like", "ones_like": "zeros_like"},
}
OPERATOR = re.compile(r"is\s+not|not\s+in|\*\*|//|<<|>>|<=|>=|==|!=|\b(?:and|or|is|in)\b|[-+*/%&|<>@]")
MEMORY = 8 << 30


# ---------------------------------------------------------------------------------------------------------------------
# Mutants
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: the file, from the root.
        line: from 1.
        begin: the first byte that is replaced.
        end: the byte behind the last.
        new: what stands there instead.
    """

    path: str
    line: int
    begin: int
    end: int
    new: str

    @property
    def source(self) -> bytes:
        """The file's text with the change."""
        text = (ROOT / self.path).read_bytes()
        return text[: self.begin] + self.new.encode() + text[self.end :]

    @property
    def key(self) -> str:
        """What makes two mutants one: the changed text, wherever it stands."""
        return hashlib.sha256(self.path.encode() + self.source).hexdigest()[:16]

    @property
    def diff(self) -> str:
        """The line before and after."""
        before = (ROOT / self.path).read_text(encoding="utf-8").splitlines()[self.line - 1]
        after = self.source.decode().splitlines()[self.line - 1]
        return f"    - {before.strip()}\n    + {after.strip()}"


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its syntax tree."""
    text = path.read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def at(line: int | None, column: int | None) -> int:
        assert line is not None
        assert column is not None
        return starts[line - 1] + column

    for node in _code(ast.parse(text)):
        for line, begin, end, new in _changes(node, text, at):
            yield Mutant(str(path.relative_to(ROOT)), line, begin, end, new)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that decide something: no annotations, no messages of errors, no documentation."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr | ast.Raise | ast.Import):
                yield from _code(child)


def _changes(
    node: ast.AST, text: bytes, at: Callable[[int | None, int | None], int]
) -> Iterator[tuple[int, int, int, str]]:
    """Line, first byte, end and replacement of each change of one node."""

    def between(left: ast.expr, right: ast.expr) -> Iterator[tuple[int, int, int, str]]:
        begin, end = at(left.end_lineno, left.end_col_offset), at(right.lineno, right.col_offset)
        found = OPERATOR.search(text[begin:end].decode())
        if found is not None:
            line = text.count(b"\n", 0, begin + found.start()) + 1
            yield line, begin + found.start(), begin + found.end(), SWAPS[" ".join(found.group().split())]

    if isinstance(node, ast.BinOp):
        yield from between(node.left, node.right)
    elif isinstance(node, ast.Compare):
        yield from between(node.left, node.comparators[0])
    elif isinstance(node, ast.BoolOp):
        yield from between(node.values[0], node.values[1])
    elif isinstance(node, ast.UnaryOp):
        yield node.lineno, at(node.lineno, node.col_offset), at(node.operand.lineno, node.operand.col_offset), ""
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        new = str(not node.value) if isinstance(node.value, bool) else str(node.value + 1)
        yield node.lineno, at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset), new
    elif isinstance(node, ast.Attribute) and node.attr in SWAPS:
        end = at(node.end_lineno, node.end_col_offset)
        yield node.end_lineno or node.lineno, end - len(node.attr), end, SWAPS[node.attr]
    elif isinstance(node, ast.keyword) and node.arg in ("min", "max"):
        begin = at(node.lineno, node.col_offset)
        yield node.lineno, begin, begin + len(node.arg), SWAPS[node.arg]


def sample(count: int, seed: int) -> list[Mutant]:
    """Mutants of all files, drawn without looking at which file they are of; those that are no Python are left out."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
    everything = [mutant for path in paths for mutant in mutants(path)]
    random.Random(seed).shuffle(everything)
    return [mutant for mutant in everything if _is_python(mutant)][:count]


def _is_python(mutant: Mutant) -> bool:
    try:
        compile(mutant.source, mutant.path, "exec")
    except (SyntaxError, ValueError):
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What the tests said.

    Attributes:
        killed_by: the first test that failed, `time limit`, or None where all passed.
        seconds: processor time.
    """

    killed_by: str | None
    seconds: float


def matching_tests(path: str) -> list[str]:
    """The doctests of a file and the tests of its name, quick ones first."""
    folder, name = Path(path).parent.name, Path(path).stem
    names = [f"{folder}/test_{name}", f"core/test_{name}", f"plugins/test_{name}"]
    names += [*FURTHER.get(f"{folder}/{name}", ()), *(["plugins/test_options"] if folder == "plugins" else [])]
    files = [f"tests/{one}.py" for one in dict.fromkeys(names)]
    return [path, *(file for file in files if (ROOT / file).exists())]


class _FirstFailure:
    """A pytest plugin that remembers the first test or import that failed."""

    name: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest."""
        if report.failed and self.name is None:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest."""
        if report.failed and self.name is None:
            self.name = f"import of {report.nodeid}"


def run_tests(path: str, source: bytes, limit: int) -> Outcome:
    """The matching tests in a forked child that finds `source` in the file's place; `limit` is in processor seconds."""
    receiving, sending = os.pipe()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if child == 0:
        os.close(receiving)
        os._exit(_child(path, source, limit, sending))
    os.close(sending)
    with os.fdopen(receiving) as stream:
        named = stream.read()
    _, status = os.waitpid(child, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if status == 0:
        return Outcome(None, seconds)
    return Outcome(named or ("time limit" if os.WIFSIGNALED(status) else f"exit status {status}"), seconds)


def _child(path: str, source: bytes, limit: int, sending: int) -> int:
    """Run pytest; the exit status says whether all passed."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.alarm(10 * limit)  # one that waits for ever uses no processor
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    _replace(str(ROOT / path), source)
    first = _FirstFailure()
    # Plain assertions: pytest would read the files that it is given by itself, and never see the mutant.
    code = pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", *matching_tests(path)], plugins=[first])
    os.write(sending, (first.name or "").encode())
    return int(code != 0)


def _replace(path: str, source: bytes) -> None:
    """Let every import of a file find another text; compiled ones are not asked."""
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, fullname: str) -> CodeType | None:
        if Path(self.path).resolve() == Path(path).resolve():
            return compile(source, self.path, "exec", dont_inherit=True)
        return original(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def recorded(results: Path) -> dict[str, Outcome]:
    """Earlier outcomes by the mutants' keys."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    return {row["key"]: Outcome(row["killed_by"], row["seconds"]) for row in map(json.loads, lines)}


def measure(chosen: list[Mutant], results: Path, limit: int) -> Iterator[tuple[Mutant, Outcome]]:
    """Each mutant with its outcome; new ones are appended to the file at once."""
    known = recorded(results)
    results.parent.mkdir(parents=True, exist_ok=True)
    for mutant in chosen:
        if mutant.key not in known:
            known[mutant.key] = run_tests(mutant.path, mutant.source, limit)
            row = {"key": mutant.key, "path": mutant.path, "line": mutant.line, **asdict(known[mutant.key])}
            with results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        yield mutant, known[mutant.key]


def check_without_change(paths: list[str], results: Path, limit: int) -> None:
    """End here if the tests of a file fail while it is as it is."""
    for mutant, outcome in measure([Mutant(path, 1, 0, 0, "") for path in paths], results, limit):
        if outcome.killed_by is not None:
            sys.exit(f"{mutant.path}: its tests fail without a change, at {outcome.killed_by}: mend that first")


def main() -> None:
    """Print every mutant's fate, a table by file, and the goal."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="ten mutants")
    parser.add_argument("--count", type=int, default=200, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--limit", type=int, default=180, help="processor seconds for the tests of one mutant")
    parser.add_argument("--results", type=Path, default=ROOT / "runs/mutation.jsonl", help="one line a mutant")
    options = parser.parse_args()
    os.chdir(ROOT)
    torch.zeros(1)  # what a child would pay for again
    chosen = sample(10 if options.quick else options.count, options.seed)
    check_without_change(sorted({mutant.path for mutant in chosen}), options.results, options.limit)
    begin, tally = time.time(), dict[str, list[bool]]()
    for mutant, outcome in measure(chosen, options.results, options.limit):
        tally.setdefault(mutant.path, []).append(outcome.killed_by is not None)
        fate = f"killed by {outcome.killed_by}" if outcome.killed_by else f"SURVIVED\n{mutant.diff}"
        print(f"{mutant.path}:{mutant.line}: {fate}", flush=True)
    print(f"\n{time.time() - begin:.0f} s\n\n| file | mutants | killed |\n|---|---|---|")
    for path, fates in sorted(tally.items()):
        print(f"| {path} | {len(fates)} | {sum(fates)} |")
    everything = [fate for fates in tally.values() for fate in fates]
    finish([Goal(f"share of {len(everything)} mutants killed", sum(everything) / len(everything), low=0.85)])


if __name__ == "__main__":
    main()
