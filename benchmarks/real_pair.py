"""The main job on a real pair of small models: acceptance of a given draft, and of one made and distilled here.

Needs `--assets FOLDER` with `weights/babyllama-target`, `weights/babyllama-draft` and `data/tinystories.jsonl`. Every
step is a plain `tempspec` command line; the configurations are written to the output folder.

    OMP_NUM_THREADS=1 python benchmarks/real_pair.py --assets FOLDER
"""

import json
import resource
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import yaml
from goals import Goal, finish, parse

TEMPERATURES = [0.0, 0.5, 1.0, 1.5, 2.0]
SEEDS = (1, 2, 3)


def tempspec(command: str, config: dict, folder: Path, *more: str) -> float:
    """Run one subcommand; returns the CPU seconds it took."""
    file = folder / f"{Path(config['run']).name}-{command}.yaml"
    file.write_text(yaml.safe_dump(config))
    line = ["tempspec", command, "--config", str(file), *more]
    print("$", " ".join(line), flush=True)
    began = cpu_seconds()
    subprocess.run([sys.executable, "-m", *line], check=True)
    return cpu_seconds() - began


def cpu_seconds() -> float:
    """CPU time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cells(folder: Path) -> dict[float, dict]:
    """A stage's metrics by temperature, where target's and draft's are equal and a draft took part."""
    found = json.loads((folder / "metrics.json").read_text())["cells"]
    same = [cell for cell in found if cell["target_temperature"] == cell["draft_temperature"]]
    return {cell["target_temperature"]: cell["metrics"] for cell in same if cell["verifier"] != "autoregressive"}


def given_draft(assets: Path, folder: Path, quick: bool) -> list[Goal]:
    """Analytic acceptance on the target's own text, and the measured rate beside its analytic twin."""
    model = {"target": str(assets / "weights/babyllama-target"), "draft": str(assets / "weights/babyllama-draft")}
    stories = {"path": str(assets / "data/tinystories.jsonl"), "limit": 24 if quick else 200, "prompt_tokens": 48}
    data = {"prompts": {"stories": stories}, "collapse_whitespace": True, "max_length": 256, "batch_size": 8}
    sweep = {
        "target_temperatures": TEMPERATURES,
        "generation_temperatures": [1.0],
        "max_new_tokens": 32 if quick else 96,
        "slots": 32,
        "timing_prompts": 0,
    }
    config = {"run": str(folder / "given"), "model": model | {"sweep": sweep}, "data": data}
    tempspec("generate", config, folder)
    sampled = {"path": str(folder / "given/generate/generated.parquet")}
    on_samples = config | {"data": data | {"validation": {"sampled": sampled}}}
    tempspec("validate", on_samples, folder)
    tempspec("predict", config, folder)
    analytic = cells(folder / "given/validate")[1.0]["analytic_acceptance"]["value"]
    goals = [Goal("analytic acceptance at T = 1 on text sampled from the target", analytic, low=0.85, high=0.91)]
    for temperature, metrics in cells(folder / "given/predict").items():
        gap = metrics["acceptance_gap"]
        half = max(abs(gap["high"] - gap["value"]), abs(gap["value"] - gap["low"]), 1e-9)
        name = f"|measured - analytic| at T = {temperature:g}, in half widths of its 95% interval"
        goals.append(Goal(name, abs(gap["value"]) / half, high=1.0))
    return goals


def own_draft(assets: Path, folder: Path, quick: bool) -> list[Goal]:
    """The target's first layer, before and after distillation on stories."""
    config = {
        "run": str(folder / "own"),
        "trainer": {
            "max_steps": 20 if quick else 900,
            "precision": "bf16-mixed",
            "gradient_clip_val": 1.0,
            "limit_val_batches": 0,
            "log_every_n_steps": 50,
        },
        "model": {
            "target": str(assets / "weights/babyllama-target"),
            "draft_layers": 1,
            "divergence": "NegativeLogAcceptance",
            "optimizer": {"class_path": "AdamW", "init_args": {"lr": 3e-3, "weight_decay": 0.0}},
            "lr_scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup": 50}},
            "validation_temperatures": TEMPERATURES,
        },
        "data": {
            "train": {"path": str(assets / "data/tinystories.jsonl")},
            "collapse_whitespace": True,
            "max_length": 128,
            "batch_size": 32,
        },
    }
    whole = config | {"trainer": {}}
    tempspec("validate", whole, folder)
    before = cells(folder / "own/validate")[1.0]["analytic_acceptance"]["value"]
    minutes, after = [], []
    for seed in SEEDS:
        run = {"run": str(folder / f"own-{seed}"), "seed_everything": seed}
        minutes.append(tempspec("fit", config | run | {"data": config["data"] | {"seed": seed}}, folder) / 60)
        trained = {"draft_layers": None, "draft": str(folder / f"own-{seed}/fit/draft")}
        tempspec("validate", whole | run | {"model": config["model"] | trained}, folder)
        found = cells(folder / f"own-{seed}/validate")
        after.append(found[1.0]["analytic_acceptance"]["value"])
        print(f"seed {seed}:", {t: round(m["analytic_acceptance"]["value"], 3) for t, m in found.items()}, flush=True)
    return [
        Goal("acceptance at T = 1 of the target's first layer", before, high=0.05),
        Goal(f"CPU minutes of distillation, the most of {len(SEEDS)} seeds", max(minutes), high=10, digits=1),
        Goal(f"acceptance at T = 1 after it, the least of {len(SEEDS)} seeds", min(after), low=0.70),
    ]


def main() -> None:
    """Run both parts and judge them."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/real_pair"))
    arguments = parse(parser)
    if arguments.assets is None:
        parser.error("--assets FOLDER is needed: the folder with weights/ and data/")
    assets, folder = Path(arguments.assets).resolve(), arguments.output.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    finish([*given_draft(assets, folder, arguments.quick), *own_draft(assets, folder, arguments.quick)])


if __name__ == "__main__":
    main()
