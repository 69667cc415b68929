"""Acceptance of a study's drafts on the target's own text at each temperature, over all prompts and seeds.

    tempspec study --config configs/studies/real-consistent.yaml --until validate
    python benchmarks/trained.py runs/studies/real-training

T is the temperature of decoding, of proposing, and of the text that acceptance is measured on.
Tokens of all prompt sets count alike, and those of all seeds. In brackets is the 95% interval over prompts; after it
come the values of the single seeds. The second table has the differences to one draft, prompt by prompt, and says in
how many seeds the difference has the same sign. A draft is shown with the seeds that are finished.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from goals import Goal, finish, parse

from tempspec.metrics.ratio import ClusteredRatio, paired_difference

METRIC, TEXT = "analytic_acceptance", " sampled@"


def drafts(study: Path) -> Iterator[tuple[str, list[Path]]]:
    """The drafts of a study in the order of their names, and the measurements of their finished seeds."""
    found: dict[str, list[Path]] = {}
    for path in sorted(study.glob("runs/*/validate/acceptance.parquet")):
        name, _, _ = path.parts[-3].rpartition("-s")
        found.setdefault(name, []).append(path)
    yield from found.items()


def measured(paths: list[Path], temperature: float) -> ClusteredRatio:
    """The acceptance of some seeds at one temperature, on text of that temperature."""
    ratio = ClusteredRatio()
    for path in paths:
        rows = pq.read_table(path)
        wanted = pc.and_(pc.equal(rows["metric"], METRIC), pc.ends_with(rows["prompt_set"], f"{TEXT}{temperature:g}"))
        for name in ("target_temperature", "draft_temperature"):
            wanted = pc.and_(wanted, pc.equal(rows[name], temperature))
        rows = rows.filter(wanted)
        numbers = (torch.tensor(rows[name].to_numpy(), dtype=torch.float64) for name in ("numerator", "denominator"))
        ratio.update(*numbers, torch.tensor(rows["prompt_key"].to_numpy(), dtype=torch.int64))
    return ratio


def main() -> None:
    """Print both tables."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5])
    parser.add_argument("--reference", default="text-1-loss-1")
    options = parse(parser)
    if options.quick:
        options.temperatures = [1.0]
    found = dict(drafts(options.study))
    for name, paths in found.items():
        print(f"{name} ({len(paths)} seeds)")
        for temperature in options.temperatures:
            alone = ", ".join(f"{measured([path], temperature).estimate().value:.3f}" for path in paths)
            print(f"  T = {temperature:g}: {measured(paths, temperature).estimate()}; {alone}")
    print(f"\ndifference to {options.reference}, on the seeds that both have")
    for name, paths in found.items():
        other = {path.parts[-3].rpartition("-s")[2]: path for path in found[options.reference]}
        pairs = [(path, other[seed]) for path in paths if (seed := path.parts[-3].rpartition("-s")[2]) in other]
        if name == options.reference or not pairs:
            continue
        print(f"{name} ({len(pairs)} seeds)")
        for temperature in options.temperatures:
            here, there = (measured(list(each), temperature) for each in zip(*pairs, strict=True))
            change = paired_difference(here, there)
            signs = [
                measured([a], temperature).estimate().value - measured([b], temperature).estimate().value
                for a, b in pairs
            ]
            same = sum(one * change.value > 0 for one in signs)
            print(f"  T = {temperature:g}: {change:+}; the same sign in {same} of {len(pairs)} seeds")
    finish([Goal("seeds of the draft that has fewest", min(map(len, found.values())), low=3, digits=0)])


if __name__ == "__main__":
    main()
