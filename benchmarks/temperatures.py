"""Which loss temperature serves which decoding temperature, and whether one draft can serve them all.

The same pair, divergence and steps throughout: specialists at each loss temperature on text sampled at 1 and at their
own temperature, then `Uniform`, `Grid` and a conditioned draft on text of all temperatures. Prefixes of the measurement
are fixed stories. Needs `--assets FOLDER`; hours in full, goes on where it stopped, and takes parts.

    OMP_NUM_THREADS=1 python benchmarks/temperatures.py --assets FOLDER --budgets 400 --seeds 1 --text fixed
"""

from argparse import ArgumentParser
from pathlib import Path

from goals import Goal, finish, parse
from runs import TEMPERATURES, Run, Study, mean_over_seeds, table

HEATS = [heat for heat in TEMPERATURES if heat > 0]
ALL_HEATS = ",".join(f"{heat:g}" for heat in HEATS)
WHOLE = {"low": min(HEATS), "high": max(HEATS), "per": "sequence"}
GENERAL = {
    "uniform": ({"class": "Uniform", **WHOLE}, 0),
    "grid": ({"class": "Grid", "temperatures": HEATS}, 0),
    "conditioned, rank 8": ({"class": "Uniform", **WHOLE}, 8),
}


def drafts(text: str) -> dict[str, tuple[dict, str, int]]:
    """Schedule, text and conditioning rank of each draft by its name."""
    constant = {heat: {"class": "Constant", "temperature": heat} for heat in HEATS}
    found = {f"loss {heat:g}": (constant[heat], text, 0) for heat in HEATS}
    if text != "fixed":
        found |= {f"loss {heat:g}, matched text": (constant[heat], f"{heat:g}", 0) for heat in HEATS}
    everything = text if text == "fixed" else ALL_HEATS
    return found | {name: (schedule, everything, rank) for name, (schedule, rank) in GENERAL.items()}


def judge(rows: dict[str, dict[str, float]]) -> list[Goal]:
    """How far the general drafts stay behind the best specialist at every temperature, and behind the best mean."""
    heats = [f"{heat:g}" for heat in TEMPERATURES]
    special = {name: row for name, row in rows.items() if name.startswith("loss")}
    best = {heat: max(row[heat] for row in special.values()) for heat in heats}
    best_mean = max(sum(row.values()) / len(row) for row in special.values())
    general = {name: row for name, row in rows.items() if name not in special}
    worst = {name: min(row[heat] / best[heat] for heat in heats) for name, row in general.items()}
    means = {name: sum(row.values()) / len(row) for name, row in general.items()}
    diagonal = [
        Goal(
            f"the loss at T less the best loss, at T = {heat:g} (0 where the diagonal wins)",
            rows[f"loss {heat:g}"][f"{heat:g}"] - best[f"{heat:g}"],
            low=0.0,
        )
        for heat in HEATS
    ]
    return [
        *diagonal,
        Goal("best general draft over the best specialist, at its worst temperature", max(worst.values()), low=0.99),
        Goal("best general draft's mean less the best single temperature's", max(means.values()) - best_mean, low=0.0),
    ]


def main() -> None:
    """Run what is asked for, print its tables, judge the aims."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/temperatures"))
    parser.add_argument("--divergence", default="NegativeLogAcceptance")
    parser.add_argument("--budgets", default="400,4000", help="optimiser steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text", default="1", help="`fixed`, or the temperature of the text of unmatched specialists")
    options = parse(parser)
    if options.assets is None:
        parser.error("--assets FOLDER is needed: the folder with weights/ and data/")
    if options.quick:
        options.budgets, options.seeds, options.text = "3", 1, "fixed"
    study = Study(options.output, Path(options.assets), options.quick)
    divergence = {"class": options.divergence, "scale": "gradient"}
    goals = []
    for steps in map(int, options.budgets.split(",")):
        rows = {
            name: mean_over_seeds(
                study,
                [Run(name, divergence, schedule, steps, seed, text, rank) for seed in range(options.seeds)],
            )
            for name, (schedule, text, rank) in drafts(options.text).items()
        }
        print(f"\n{steps} steps, {options.divergence}, text {options.text}, {options.seeds} seeds\n\n{table(rows)}")
        goals += judge(rows)
    if options.quick:
        goals = [Goal("acceptance at T = 1 after 3 steps", rows["grid"]["1"], low=0.0)]
    finish(goals)


if __name__ == "__main__":
    main()
