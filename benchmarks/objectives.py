"""Every objective at loss temperatures 1 and 2 on a real pair, equal steps: acceptance at every temperature.

Needs `--assets FOLDER`. The whole study is hours of CPU time: it goes on where it stopped, and `--only`, `--budgets`,
`--seeds` and `--text` take a part of it.

    OMP_NUM_THREADS=1 python benchmarks/objectives.py --assets FOLDER --only ForwardKL,TotalVariation --seeds 1
"""

from argparse import ArgumentParser
from pathlib import Path

from goals import Goal, finish, parse
from runs import Run, Study, mean_over_seeds, table

OBJECTIVES = {
    "ForwardKL": {"class": "ForwardKL"},
    "ReverseKL": {"class": "ReverseKL"},
    "JensenShannon": {"class": "JensenShannon"},
    "SkewKL": {"class": "SkewKL"},
    "SkewReverseKL": {"class": "SkewReverseKL"},
    "TotalVariation": {"class": "TotalVariation"},
    "NormalisedTotalVariation": {"class": "NormalisedTotalVariation"},
    "NegativeLogAcceptance": {"class": "NegativeLogAcceptance"},
    "LKHybrid": {"class": "LKHybrid"},
    "AlphaBeta": {"class": "AlphaBeta"},
    "AdaptiveKL": {"class": "AdaptiveKL"},
    "TAID": {"class": "TAID"},
    "TopKCrossEntropy": {"class": "TopKCrossEntropy"},
    "LabelCrossEntropy": {"class": "LabelCrossEntropy"},
    "LogitDifference": {"class": "LogitDifference"},
}
SHORT = 400


def runs(name: str, heat: float, steps: int, seeds: int, text: str) -> list[Run]:
    """The same run under several seeds."""
    spec = OBJECTIVES[name] | {"scale": "gradient"}
    schedule = {"class": "Constant", "temperature": heat}
    return [Run(f"{name}, {heat:g}", spec, schedule, steps, seed, text) for seed in range(seeds)]


def ordering(rows: dict[str, dict[str, float]]) -> list[Goal]:
    """The statements of the first probe (400 steps of fixed text) that the runs at hand can judge."""
    statements = [
        ("-log acceptance less forward KL, both at 1, at T = 1", "NegativeLogAcceptance, 1", "ForwardKL, 1", "1"),
        ("forward KL at 2 less forward KL at 1, at T = 1.5", "ForwardKL, 2", "ForwardKL, 1", "1.5"),
        ("forward KL less total variation, both at 1, at T = 1", "ForwardKL, 1", "TotalVariation, 1", "1"),
        ("forward KL less reverse KL, both at 1, at T = 0.5", "ForwardKL, 1", "ReverseKL, 1", "0.5"),
        ("LK hybrid less total variation, both at 1, at T = 1", "LKHybrid, 1", "TotalVariation, 1", "1"),
    ]
    return [
        Goal(f"{claim} (first probe: above 0)", rows[one][heat] - rows[other][heat], low=0.0)
        for claim, one, other, heat in statements
        if one in rows and other in rows
    ]


def main() -> None:
    """Run what is asked for, print its tables, judge the ordering at the short budget."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--only", default=",".join(OBJECTIVES), help="names of objectives, joined by commas")
    parser.add_argument("--budgets", default="400,4000", help="optimiser steps")
    parser.add_argument("--heats", default="1,2", help="loss temperatures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text", default="1.0", help="`fixed`, or the target's temperatures, joined by commas")
    options = parse(parser)
    if options.assets is None:
        parser.error("--assets FOLDER is needed: the folder with weights/ and data/")
    if options.quick:
        options.only, options.budgets, options.heats, options.seeds = "ForwardKL,TotalVariation", "15", "1", 1
        options.text = "fixed"
    study = Study(options.output, Path(options.assets), options.quick)
    goals = []
    for steps in map(int, options.budgets.split(",")):
        rows = {
            f"{name}, {heat:g}": mean_over_seeds(study, runs(name, heat, steps, options.seeds, options.text))
            for name in options.only.split(",")
            for heat in map(float, options.heats.split(","))
        }
        print(f"\n{steps} steps, text {options.text}, {options.seeds} seeds\n\n{table(rows)}")
        goals += ordering(rows) if steps == SHORT else []
    if options.quick:
        goals = [Goal("acceptance at T = 1 after 15 steps", rows["ForwardKL, 1"]["1"], low=0.02)]
    finish(goals)


if __name__ == "__main__":
    main()
