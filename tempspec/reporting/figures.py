"""Curves against temperature with 95% bands, as PNG and SVG (floor 5).

Drawn with matplotlib's objects alone: no pyplot, no backend chosen for the process, no figure kept alive.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tempspec.files import write_atomically
from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.rows import Cell
from tempspec.reporting.records import Estimates

__all__ = ["MARKERS", "PALETTE", "temperature_figure", "write_figure"]

# Okabe and Ito, "Color Universal Design", 2008; black and yellow left out. Vermillion and blue first.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
_STYLES = ("-", "--", ":", "-.")
_LABELS = {
    "acceptance_rate": "acceptance rate\n(accepted / tested)",
    "block_efficiency": "block efficiency\n(tokens / target call)",
    "accepted_length": "accepted length\n(tokens / round)",
    "tokens_per_second": "tokens / s",
    "speedup": "speed-up\n(over plain decoding)",
}
_LIMITS: Mapping[str, tuple[float, float | None]] = {"acceptance_rate": (0, 1), "block_efficiency": (1, None)}
"""Ends of an axis where they mean something: plain decoding has block efficiency 1. Others start at 0."""


def temperature_figure(
    runs: Mapping[str, Estimates],
    *,
    metrics: Sequence[str] = ("acceptance_rate", "block_efficiency"),
    caption: str = "",
) -> Figure:
    """Metrics against the target temperature: a row for each metric, a column for each prompt set.

    A colour is a run, a dash pattern a verifier (with its draft temperatures where these are not the target's); bands
    are 95% intervals. Plain decoding is left out.

    Args:
        runs: estimates by cell, by the name of the run: such as before and after distillation.
        metrics: names of `DecodingMetrics.estimates`.
        caption: what to say below, before the number of prompts and what the bands are.
    """
    sets = list(dict.fromkeys(cell.prompt_set for run in runs.values() for cell in run if cell.verifier != BASELINE))
    figure = Figure(figsize=(max(5.4, 1.2 + 3.3 * len(sets)), 1.2 + 2.5 * len(metrics)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(metrics), max(len(sets), 1), sharex=True, sharey="row", squeeze=False)
    for row, metric in enumerate(metrics):
        for column, prompt_set in enumerate(sets):
            _panel(panels[row, column], list(runs), _curves(runs, prompt_set, metric))
        panels[row, 0].set_ylabel(_LABELS.get(metric, metric.replace("_", " ")))
        _limit(panels[row, 0], *_LIMITS.get(metric, (0, None)))
    for column, prompt_set in enumerate(sets):
        panels[0, column].set_title(prompt_set)
        panels[-1, column].set_xlabel("target temperature T")
    _legend(figure)
    figure.supxlabel(_caption(runs, metrics, caption), fontsize=8, color="0.35")
    return figure


def write_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `stem.png` (200 dots an inch) and `stem.svg`, the same bytes for the same numbers; returns both paths."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # it would place everything anew, twice for each format
    paths = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    with matplotlib.rc_context({"svg.hashsalt": "tempspec", "svg.fonttype": "none"}):
        for path, facts in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], dpi=200, metadata=facts)
            write_atomically(path, buffer.getvalue())
    return paths


_Point = tuple[float, Estimate]


def _curves(runs: Mapping[str, Estimates], prompt_set: str, metric: str) -> dict[tuple[str, str], list[_Point]]:
    """(run, verifier) -> estimates by ascending target temperature."""
    curves: dict[tuple[str, str], list[_Point]] = {}
    for run, estimates in runs.items():
        for cell in sorted(estimates, key=lambda cell: cell.target_temperature):
            if cell.verifier != BASELINE and cell.prompt_set == prompt_set and metric in estimates[cell]:
                point = (cell.target_temperature, estimates[cell][metric])
                curves.setdefault((run, _variant(cell, estimates)), []).append(point)
    return curves


def _variant(cell: Cell, estimates: Estimates) -> str:
    """The verifier, with the draft temperature where the sweep sets one of its own."""
    own = [c for c in estimates if c.verifier == cell.verifier and c.draft_temperature != c.target_temperature]
    return f"{cell.verifier}, draft T = {cell.draft_temperature:g}" if own else cell.verifier


def _panel(axes: Axes, runs: Sequence[str], curves: Mapping[tuple[str, str], Sequence[_Point]]) -> None:
    variants = list(dict.fromkeys(variant for _, variant in curves))
    for (run, variant), points in curves.items():
        color = PALETTE[runs.index(run) % len(PALETTE)]
        place = variants.index(variant)
        label = run if len(variants) == 1 else f"{run}: {variant}"
        x = [temperature for temperature, _ in points]
        style, marker = _STYLES[place % len(_STYLES)], MARKERS[place % len(MARKERS)]
        axes.plot(x, [e.value for _, e in points], style, marker=marker, markersize=4, color=color, label=label)
        axes.fill_between(x, [e.low for _, e in points], [e.high for _, e in points], color=color, alpha=0.18, lw=0)
    axes.set_xticks(sorted({temperature for points in curves.values() for temperature, _ in points}))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _limit(axes: Axes, low: float, high: float | None) -> None:
    """Fix the low end, and the high one too unless it is None: then it follows the curves, one unit away or more."""
    axes.set_ylim(low, max(axes.get_ylim()[1], low + 1) if high is None else high)


def _legend(figure: Figure) -> None:
    """One legend for all panels."""
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    if handles:
        columns = min(len(handles), 3)
        figure.legend(handles.values(), handles, loc="outside upper center", ncols=columns, frameon=False)


def _caption(runs: Mapping[str, Estimates], metrics: Sequence[str], caption: str) -> str:
    """The caption, and n: how many prompts the curves rest on."""
    counts = {
        estimates[cell][metric].prompts
        for estimates in runs.values()
        for cell in estimates
        for metric in metrics
        if cell.verifier != BASELINE and metric in estimates[cell]
    }
    prompts = "0" if not counts else "-".join(map(str, sorted({min(counts), max(counts)})))
    bands = f"n = {prompts} prompts per point; bands are 95% bootstrap intervals over prompts"
    return f"{caption}; {bands}" if caption else bands
