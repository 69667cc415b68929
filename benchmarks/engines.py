"""Whether a real vLLM accepts what predict measures, and whether serve-check names an engine that does not.

Needs `--vllm FOLDER`, a folder with `venv/bin/vllm` that serves on this machine's CPU, a target, a draft and a file of
texts. Each cell starts a server on the loopback, runs `tempspec serve-check` against it and ends it.

    OMP_NUM_THREADS=1 python benchmarks/engines.py --vllm FOLDER --target FOLDER --draft FOLDER --text FILE
"""

import json
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from engine_servers import VllmServer, served
from goals import Goal, finish, parse

DRAFTED = 4
LOOKUP = {"prompt_lookup_max": 3, "prompt_lookup_min": 1}
SAMPLED = {"draft_sample_method": "probabilistic"}


@dataclass(frozen=True)
class Cell:
    """A server, and what is expected of it.

    Attributes:
        speculation: what vLLM is told.
        own: what the configuration says of the model; cells that say the same share what is decoded here.
        begins: how the finding at each T > 0 begins.
        options: of the server.
        differs: what else is expected to differ.
    """

    speculation: dict
    own: dict
    begins: str = "agrees"
    options: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()

    @property
    def run(self) -> str:
        """The name of what is decoded here."""
        if "drafter" in self.own:
            return str(self.own["drafter"]["class_path"])
        return "head" if "head" in self.own else "draft"


def cells(options: Namespace) -> dict[str, Cell]:
    """All that the options have the folders for, by name."""
    model = {"method": "draft_model", "model": options.draft}
    ours = {"draft": options.draft}
    earliest = {"longest_ngram": 3, "shortest_ngram": 1, "match": "earliest"}
    found = {
        "probabilistic": Cell(model | SAMPLED, ours),
        "default": Cell(model, ours, "the engine drafts by argmax"),
        "ngram": Cell({"method": "ngram"} | LOOKUP, {"drafter": {"class_path": "PromptLookup", "init_args": earliest}}),
    }
    if options.suffix:
        suffix = {"method": "suffix", "suffix_decoding_max_cached_requests": 0}
        found["suffix"] = Cell(suffix, {"drafter": {"class_path": "SuffixLookup"}})
    if options.other:
        found["other"] = Cell(model | SAMPLED | {"model": options.other}, ours, "another draft")
    if options.template:
        given = ("--chat-template", options.template)
        found["template"] = Cell(model | SAMPLED, ours, options=given, differs=("chat template",))
    if options.head:
        head = {"method": "eagle3", "model": options.head}
        found["head"] = Cell(head | SAMPLED, {"head": "Eagle3", "draft": options.head})
        found["head, default"] = Cell(head, {"head": "Eagle3", "draft": options.head}, "the engine drafts by argmax")
    return found


def checked(config: Path, address: str, folder: Path) -> tuple[int, list[dict]]:
    """The exit code of serve-check, and its findings."""
    line = [sys.executable, "-m", "tempspec", "serve-check", "--config", str(config), "--server", address]
    print("$", " ".join(line[1:]), flush=True)
    code = subprocess.run(line, check=False).returncode
    return code, json.loads((folder / "serve-check/serve_check.json").read_text())["findings"]


def goals_of(name: str, cell: Cell, code: int, findings: list[dict]) -> Iterator[Goal]:
    """One for each finding, and one for the exit code."""
    right = cell.begins == "agrees" and not cell.differs
    for finding in findings:
        about, says = finding["about"], finding["says"]
        if about.startswith("T = "):
            begins = "agrees" if about == "T = 0" and cell.begins != "another draft" else cell.begins
            yield Goal(f"{name}, {about}: {says}", float(says.startswith(begins)), low=1)
        elif about in ("text at T = 0", "tokenizer", "chat template"):
            expected = about not in cell.differs
            yield Goal(f"{name}, {about}: {says}", float(finding["agrees"] is expected), low=1)
    yield Goal(f"{name}: exit code", code, low=int(not right), high=int(not right))


def configuration(cell: Cell, options: Namespace) -> dict:
    """What serve-check is asked about."""
    sweep = {"target_temperatures": options.temperatures or ([0.0, 1.0] if options.quick else [0.0, 0.5, 1.0, 1.5])}
    sweep |= {"samples": options.samples, "max_new_tokens": options.tokens or (32 if options.quick else 64)}
    sweep |= {"stop_at_eos": False, "slots": 64}
    length = {"class_path": "FixedLength", "init_args": {"tokens": DRAFTED}}
    model = {"target": options.target, "loading": {"dtype": "float32"}, "length": length, "sweep": sweep}
    text = {"path": options.text, "limit": options.prompts or (12 if options.quick else 32)}
    text |= {"prompt": "prompt", "chat": True} if options.chat else {"prompt_tokens": 24}
    data = {"prompts": {"text": text}, "cache_dir": str(options.output / "cache")}
    return {"run": str(options.output / cell.run), "model": model | cell.own, "data": data}


def main() -> None:
    """Run every cell."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--other", help="a draft that is not the configuration's")
    parser.add_argument("--head", help="an EAGLE-3 head of the target")
    parser.add_argument("--template", help="a chat template that is not the target's; needs --chat")
    parser.add_argument(
        "--suffix", action="store_true", help="also suffix drafts, for which vLLM needs arctic-inference"
    )
    parser.add_argument("--text", required=True, help="a file of texts, whose beginnings are the prompts")
    parser.add_argument("--chat", action="store_true", help="its rows are questions, in the column prompt")
    parser.add_argument("--samples", type=int, default=2, help="of each prompt at T > 0")
    parser.add_argument("--temperatures", nargs="*", type=float, help="0, 0.5, 1 and 1.5 by default")
    parser.add_argument("--prompts", type=int, help="32 by default")
    parser.add_argument("--tokens", type=int, help="new ones of each prompt, 64 by default")
    parser.add_argument("--cells", nargs="*", help="some of the cells")
    parser.add_argument("--output", type=Path, default=Path("runs/engines"))
    options = parse(parser)
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    goals: list[Goal] = []
    found = cells(options)
    if unknown := set(options.cells or ()) - set(found):
        parser.error(f"--cells: expected some of {', '.join(found)}, got {', '.join(sorted(unknown))}")
    for name, cell in found.items():
        if options.cells and name not in options.cells:
            continue
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(configuration(cell, options)))
        told = {"log": folder / f"{name}.log", "speculation": cell.speculation | {"num_speculative_tokens": DRAFTED}}
        with served(VllmServer, options.vllm, options.target, *cell.options, **told) as server:
            code, findings = checked(config, server.url, folder / cell.run)
        shutil.copy(folder / cell.run / "serve-check/serve_check.json", folder / f"{name}.json")
        goals += goals_of(name, cell, code, findings)
    finish(goals)


if __name__ == "__main__":
    main()
