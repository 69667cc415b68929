"""Every objective at loss temperatures 1 and 2 on a real pair, equal steps: acceptance at every temperature.

Needs `--assets FOLDER` to run anything. The whole study is hours of CPU time: it resumes where it stopped, and
`--only`, `--budgets`, `--seeds`, `--text` and `--minutes` take a part of it.

    OMP_NUM_THREADS=1 python benchmarks/objectives.py --assets FOLDER --budgets 400
    python benchmarks/objectives.py --minutes 0             # the tables of the runs that are done
"""

from goals import Goal, finish
from runs import KINDS, Rows, Run, Study, difference, study_options, table, value

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


def runs(name: str, temperature: float, steps: int, seeds: int, text: str) -> list[Run]:
    """The same run under several seeds."""
    spec = OBJECTIVES[name] | {"scale": "gradient"}
    schedule = {"class": "Constant", "temperature": temperature}
    return [Run(f"{name}, {temperature:g}", spec, schedule, steps, seed, text) for seed in range(seeds)]


def ordering(rows: Rows) -> list[Goal]:
    """The statements of the first probe (400 steps, fixed prefixes) that the runs at hand can judge."""
    statements = [
        ("-log acceptance less forward KL, both at 1, at T = 1", "NegativeLogAcceptance, 1", "ForwardKL, 1", "1"),
        ("forward KL at 2 less forward KL at 1, at T = 1.5", "ForwardKL, 2", "ForwardKL, 1", "1.5"),
        ("forward KL less total variation, both at 1, at T = 1", "ForwardKL, 1", "TotalVariation, 1", "1"),
        ("forward KL less reverse KL, both at 1, at T = 0.5", "ForwardKL, 1", "ReverseKL, 1", "0.5"),
        ("LK hybrid less total variation, both at 1, at T = 1", "LKHybrid, 1", "TotalVariation, 1", "1"),
    ]
    goals = []
    for claim, one, other, temperature in statements:
        if one in rows and other in rows:
            found, half = difference([rows[one][temperature]], [rows[other][temperature]])
            goals.append(Goal(f"{claim}, ± {half:.3f} over seeds (first probe: above 0)", found, low=0.0))
    return goals


def main() -> None:
    """Run what is asked for, print its tables, judge the ordering at the short budget."""
    options = study_options(__doc__.splitlines()[0], only=",".join(OBJECTIVES), temperatures="1,2")
    if options.quick:
        options.only, options.budgets, options.temperatures, options.seeds = "ForwardKL,TotalVariation", "15", "1", 1
        options.text = "fixed"
    study = Study(options)
    planned = {
        steps: [
            run
            for name in options.only.split(",")
            for temperature in map(float, options.temperatures.split(","))
            for run in runs(name, temperature, steps, options.seeds, options.text)
        ]
        for steps in map(int, options.budgets.split(","))
    }
    study.finish([run for each in planned.values() for run in each])
    for steps, each in planned.items():
        for kind in KINDS:
            print(
                f"\n{steps} steps, text {options.text}, {kind} prefixes\n\n{table(study.rows(each, 'as served', kind))}"
            )
    goals = ordering(study.rows(planned[SHORT], "as served", "fixed")) if SHORT in planned else []
    if options.quick:
        rows = study.rows(planned[15], "as served", "fixed")
        goals = [Goal("acceptance at T = 1 after 15 steps", value(rows["ForwardKL, 1"]["1"]), low=0.02)]
    finish(goals)


if __name__ == "__main__":
    main()
