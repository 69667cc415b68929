"""Which loss temperature serves which decoding temperature, and whether one draft can serve them all.

The same pair, divergence and steps throughout: specialists at each loss temperature on text sampled at 1 and at their
own temperature, then `Uniform`, `Grid` and a conditioned draft on text of all temperatures. Each is measured on fixed
stories and on text that the target sampled at the decoding temperature, with the draft at that temperature and at one
that was fitted on other text. Needs `--assets FOLDER` to run anything; hours in full, resumes where it stopped, and
takes parts.

    OMP_NUM_THREADS=1 python benchmarks/temperatures.py --assets FOLDER --budgets 400
    python benchmarks/temperatures.py --minutes 0           # the tables of the runs that are done
"""

from goals import Goal, finish
from runs import KINDS, SPLITS, TEMPERATURES, Rows, Run, Study, difference, mean_value, study_options, table, value

POSITIVE = [temperature for temperature in TEMPERATURES if temperature > 0]
ALL = ",".join(f"{temperature:g}" for temperature in POSITIVE)
WHOLE = {"low": min(POSITIVE), "high": max(POSITIVE), "per": "sequence"}
GENERAL = {
    "uniform": ({"class": "Uniform", **WHOLE}, 0),
    "grid": ({"class": "Grid", "temperatures": POSITIVE}, 0),
    "conditioned, rank 8": ({"class": "Uniform", **WHOLE}, 8),
}


def drafts(text: str) -> dict[str, tuple[dict, str, int]]:
    """Schedule, text and conditioning rank of each draft by its name."""
    constant = {temperature: {"class": "Constant", "temperature": temperature} for temperature in POSITIVE}
    found = {f"loss {temperature:g}": (constant[temperature], text, 0) for temperature in POSITIVE}
    if text != "fixed":
        found |= {
            f"loss {temperature:g}, matched text": (constant[temperature], f"{temperature:g}", 0)
            for temperature in POSITIVE
        }
    everything = text if text == "fixed" else ALL
    return found | {name: (schedule, everything, rank) for name, (schedule, rank) in GENERAL.items()}


def judge(served: Rows, fitted: Rows, kind: str) -> list[Goal]:
    """How far one draft stays behind the best specialist at every temperature, and behind the best mean.

    A draft whose temperature is fitted afterwards counts as general, whatever it was trained for.
    """
    temperatures = [f"{temperature:g}" for temperature in TEMPERATURES]
    special = {name: row for name, row in served.items() if name.startswith("loss")}
    best = {temperature: max(value(row[temperature]) for row in special.values()) for temperature in temperatures}
    general = {name: row for name, row in served.items() if name not in special}
    general |= {f"{name}, fitted": row for name, row in fitted.items()}
    worst = {
        name: min(value(row[temperature]) / best[temperature] for temperature in temperatures)
        for name, row in general.items()
    }
    means = {name: mean_value(row) for name, row in general.items()}
    near, ahead = max(worst, key=worst.__getitem__), max(means, key=means.__getitem__)
    diagonal = []
    for temperature in temperatures:
        if f"loss {temperature}" in special:
            winner = max(special, key=lambda name: value(special[name][temperature]))
            found, half = difference([special[f"loss {temperature}"][temperature]], [special[winner][temperature]])
            claim = (
                f"{kind} prefixes, T = {temperature}: the loss at T less the best ({winner}), ± {half:.3f} over seeds"
            )
            diagonal.append(Goal(claim, found, low=0.0))
    return [
        *diagonal,
        Goal(f"{kind} prefixes: one draft ({near}) over the best specialist at its worst T", worst[near], low=0.99),
        Goal(
            f"{kind} prefixes: one draft's mean ({ahead}) less the best single temperature's",
            means[ahead] - max(map(mean_value, special.values())),
            low=0.0,
        ),
    ]


def main() -> None:
    """Run what is asked for, print its tables, judge the aims."""
    options = study_options(__doc__.splitlines()[0], divergence="NegativeLogAcceptance")
    if options.quick:
        options.budgets, options.seeds, options.text = "3", 1, "fixed"
    study = Study(options)
    divergence = {"class": options.divergence, "scale": "gradient"}
    planned = {
        steps: [
            Run(name, divergence, schedule, steps, seed, text, rank)
            for name, (schedule, text, rank) in drafts(options.text).items()
            for seed in range(options.seeds)
        ]
        for steps in map(int, options.budgets.split(","))
    }
    study.finish([run for each in planned.values() for run in each])
    goals = []
    for steps, each in planned.items():
        for kind in KINDS:
            served, fitted = (study.rows(each, split, kind) for split in SPLITS)
            title = f"{steps} steps, {options.divergence}, text {options.text}, {kind} prefixes"
            print(f"\n{title}\n\n{table(served)}")
            print(f"\n{title}, the draft's temperature fitted on other text\n\n{table(fitted, fitted=True)}")
            whole = len(served) == len(drafts(options.text)) and not options.quick
            goals += judge(served, fitted, kind) if whole else []
    if options.quick:
        rows = study.rows(planned[3], "as served", "fixed")
        goals = [Goal("acceptance at T = 1 after 3 steps", value(rows["grid"]["1"]), low=0.0)]
    finish(goals)


if __name__ == "__main__":
    main()
