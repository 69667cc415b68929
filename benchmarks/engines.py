"""Whether a real vLLM accepts what predict measures, and whether serve-check names an engine that does not.

Needs `--vllm FOLDER`, a folder with `venv/bin/vllm` that serves on this machine's CPU, a target, a draft and a file of
texts. Each cell starts a server on the loopback, runs `tempspec serve-check` against it and ends it.

    OMP_NUM_THREADS=1 python benchmarks/engines.py --vllm FOLDER --target FOLDER --draft FOLDER --text FILE
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from goals import Goal, finish, parse

DRAFTED = 4
LOOKUP = {"prompt_lookup_max": 3, "prompt_lookup_min": 1}


def cells(draft: str, other: str | None) -> dict[str, tuple[dict, dict, str]]:
    """By name: what vLLM is told, what the configuration says, and how the finding at each T > 0 begins."""
    model = {"method": "draft_model", "model": draft}
    sampled = {"draft_sample_method": "probabilistic"}
    earliest = {"longest_ngram": 3, "shortest_ngram": 1, "match": "earliest"}
    lookup = {"drafter": {"class_path": "PromptLookup", "init_args": earliest}, "draft": None}
    found = {
        "probabilistic": (model | sampled, {}, "agrees"),
        "default": (model, {}, "the engine drafts by argmax"),
        "ngram": ({"method": "ngram"} | LOOKUP, lookup, "agrees"),
    }
    return found | ({"other": (model | sampled | {"model": other}, {}, "another draft")} if other else {})


@contextmanager
def served(vllm: Path, target: str, speculation: dict, log: Path) -> Iterator[str]:
    """The address of a vLLM that speculates; it is ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    preload = next(iter(sorted((vllm / "venv").rglob("libiomp5.so"))), None)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    environment |= {"LD_PRELOAD": str(preload)} if preload else {}
    environment.pop("PYTHONPATH", None)
    line = [str(vllm / "venv/bin/vllm"), "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    line += ["--enforce-eager", "--max-num-seqs", "16", "--seed", "0", "--dtype", "float32"]
    line += ["--per-request-spec-decode-metrics", "summary"]
    line += ["--speculative-config", json.dumps(speculation | {"num_speculative_tokens": DRAFTED})]
    with log.open("w") as written:
        server = subprocess.Popen(line, env=environment, stdout=written, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            if server.poll() is not None:
                raise SystemExit(f"vLLM ended: see {log}")
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait()


def checked(config: Path, address: str, folder: Path) -> tuple[int, list[dict]]:
    """The exit code of serve-check, and its findings."""
    line = [sys.executable, "-m", "tempspec", "serve-check", "--config", str(config), "--server", address]
    print("$", " ".join(line[1:]), flush=True)
    code = subprocess.run(line, check=False).returncode
    return code, json.loads((folder / "serve-check/serve_check.json").read_text())["findings"]


def goals_of(name: str, code: int, findings: list[dict], begins: str) -> Iterator[Goal]:
    """One for each temperature, and one for the text."""
    for finding in findings:
        if finding["about"].startswith("T = "):
            expected = "agrees" if finding["about"] == "T = 0" and name != "other" else begins
            said = float(finding["says"].startswith(expected))
            yield Goal(f"{name}, {finding['about']}: {finding['says']}", said, low=1)
        elif finding["about"] == "text at T = 0":
            yield Goal(f"{name}, {finding['says']}", float(finding["agrees"]), low=1)
    yield Goal(f"{name}: exit code", code, low=int(begins != "agrees"), high=int(begins != "agrees"))


def main() -> None:
    """Run every cell."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--other", help="a draft that is not the configuration's")
    parser.add_argument("--text", required=True, help="a file of texts, whose beginnings are the prompts")
    parser.add_argument("--cells", nargs="*", help="some of the cells")
    parser.add_argument("--output", type=Path, default=Path("runs/engines"))
    options = parse(parser)
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    sweep = {"target_temperatures": [0.0, 1.0] if options.quick else [0.0, 0.5, 1.0, 1.5], "samples": 2}
    sweep |= {"max_new_tokens": 32 if options.quick else 64, "stop_at_eos": False}
    text = {"path": options.text, "prompt_tokens": 24, "limit": 12 if options.quick else 32}
    goals: list[Goal] = []
    for name, (speculation, own, begins) in cells(options.draft, options.other).items():
        if options.cells and name not in options.cells:
            continue
        model = {"target": options.target, "draft": options.draft, "loading": {"dtype": "float32"}} | own
        length = {"class_path": "FixedLength", "init_args": {"tokens": DRAFTED}}
        data = {"prompts": {"text": text}, "cache_dir": str(folder / "cache")}
        config = {"run": str(folder / name), "model": model | {"length": length, "sweep": sweep}, "data": data}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        with served(options.vllm, options.target, speculation, folder / f"{name}.log") as address:
            code, findings = checked(folder / f"{name}.yaml", address, folder / name)
        goals += goals_of(name, code, findings, begins)
    finish(goals)


if __name__ == "__main__":
    main()
