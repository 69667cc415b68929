"""The figures of a report: one small function per figure, each with its own panel (floor 5).

Panels are small on purpose: a page puts them side by side or below one another, as its width allows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tempspec.metrics.bootstrap import Estimate
from tempspec.reporting.figures import MARKERS, PALETTE
from tempspec.reporting.page_tables import counted

__all__ = ["Chart", "Curves", "bars", "curves", "forest", "heatmap"]

INK = "#222222"
FAINT = "#d9d9d9"
_LONGEST = 26
_STYLE: Any = {"font.size": 8.5, "text.parse_math": False, "text.color": INK, "axes.labelcolor": INK}
_STYLE |= {"xtick.color": INK, "ytick.color": INK, "axes.edgecolor": INK, "grid.color": FAINT}

Curves = Mapping[str, Mapping[float, Estimate]]
"""Name of a curve -> x -> estimate."""


@dataclass(frozen=True)
class Chart:
    """A figure with its words.

    Attributes:
        name: the stem of its files.
        title: what it shows.
        caption: over how many prompts, and what bands are.
        alt: the same in words, with numbers.
        figure: the picture.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


def curves(
    name: str,
    title: str,
    found: Curves,
    *,
    x: str,
    y: str,
    bottom: float | None = 0.0,
    top: float | None = None,
    ticks: bool = True,
) -> Chart:
    """Curves with 95% bands against a number.

    Args:
        name: the stem of the files.
        title: what is shown.
        found: the curves.
        x: the axis, with its unit.
        y: the axis, with its unit.
        bottom: the lower end of y; None follows the data.
        top: the upper end.
        ticks: whether the ticks of x are its points.
    """

    def draw(axes: Axes) -> None:
        for index, (label, points) in enumerate(found.items()):
            xs = sorted(points)
            color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            style = ("-", "--", ":")[index // len(PALETTE) % 3]
            axes.plot(xs, [points[t].value for t in xs], style, marker=marker, ms=4, color=color, label=_shown(label))
            low, high = ([getattr(points[t], end) for t in xs] for end in ("low", "high"))
            axes.fill_between(xs, low, high, color=color, alpha=0.18, lw=0)
        if ticks:
            axes.set_xticks(at := sorted({t for points in found.values() for t in points}), [f"{t:g}" for t in at])
        axes.set_ylim(bottom, top)

    return Chart(name, title, _caption(found), _alt(title, found, x), _panel(draw, x, y, legend=True))


def bars(name: str, title: str, found: Curves, *, x: str, y: str) -> Chart:
    """Shares by a whole number, groups side by side, with 95% whiskers."""

    def draw(axes: Axes) -> None:
        width = 0.8 / max(len(found), 1)
        for index, (label, points) in enumerate(found.items()):
            xs = [at - 0.4 + width * (index + 0.5) for at in points]
            values = [e.value for e in points.values()]
            errors = [[e.value - e.low for e in points.values()], [e.high - e.value for e in points.values()]]
            color = PALETTE[index % len(PALETTE)]
            axes.bar(xs, values, width, color=color, label=_shown(label))
            axes.errorbar(xs, values, errors, fmt="none", ecolor=INK, elinewidth=0.8)
        axes.set_xticks(sorted({at for points in found.values() for at in points}))

    return Chart(name, title, _caption(found), _alt(title, found, x), _panel(draw, x, y, legend=True))


def forest(name: str, title: str, found: Mapping[str, Estimate], *, x: str, zero: bool = True) -> Chart:
    """Estimates with their intervals, one below the other; differences about a line at zero."""

    def draw(axes: Axes) -> None:
        for place, estimate in enumerate(found.values()):
            ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            axes.errorbar([estimate.value], [place], xerr=ends, fmt="o", ms=4, color=PALETTE[0], capsize=2)
        if zero:
            axes.axvline(0, color=INK, lw=0.8, ls="--")
        axes.set_yticks(range(len(found)), [_shown(label) for label in found])
        axes.set_ylim(len(found) - 0.5, -0.5)

    said = "; ".join(f"{label} {estimate:+}" for label, estimate in found.items())
    height = 1.0 + 0.24 * len(found)
    figure = _panel(draw, x, "", height=max(height, 2.0))
    return Chart(name, title, _caption({"": dict(enumerate(found.values()))}), f"{title}: {said}", figure)


def heatmap(
    name: str,
    title: str,
    found: Mapping[tuple[float, float], Estimate],
    marked: Sequence[tuple[float, float]],
    *,
    x: str,
    y: str,
    mark: str,
) -> Chart:
    """A map over two temperatures, each cell with its number, the darker the larger; marked cells are framed.

    Args:
        name: the stem of the files.
        title: what is shown.
        found: by (x, y).
        marked: cells that are framed.
        x: the axis, with its unit.
        y: the axis, with its unit.
        mark: what a frame means.
    """
    xs, ys = (sorted({key[axis] for key in found}) for axis in (0, 1))
    top = max((each.value for each in found.values() if math.isfinite(each.value)), default=0.0) or 1.0

    def draw(axes: Axes) -> None:
        values = [[found[a, b].value if (a, b) in found else float("nan") for a in xs] for b in ys]
        edges = ([place - 0.5 for place in range(len(ends) + 1)] for ends in (xs, ys))
        axes.pcolormesh(*edges, values, cmap="Blues", vmin=0, vmax=top)  # shapes, where imshow would be a bitmap
        for row, b in enumerate(ys):
            for column, a in enumerate(xs):
                if (a, b) in found:
                    color = "#fefefe" if found[a, b].value > 0.6 * top else "#010101"
                    weight = "bold" if (a, b) in marked else "normal"
                    axes.text(
                        column, row, found[a, b].point(), ha="center", va="center", color=color, weight=weight, size=8
                    )
                if (a, b) in marked:
                    frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, ec="#D55E00", lw=2.2)
                    axes.add_patch(frame)
        axes.set_xticks(range(len(xs)), [f"{a:g}" for a in xs])
        axes.set_yticks(range(len(ys)), [f"{b:g}" for b in ys])
        axes.grid(visible=False)

    said = "; ".join(f"{a:g}, {b:g}: {found[a, b].point()}" for a, b in marked)
    caption = f"{mark.capitalize()} framed; {counted(found.values())} a cell"
    return Chart(name, title, caption, f"{title}, {mark} ({x}, {y}): {said}", _panel(draw, x, y))


def _panel(draw: Callable[[Axes], None], x: str, y: str, *, height: float = 3.1, legend: bool = False) -> Figure:
    """One pair of axes in a figure of its own."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.grid(axis="y" if y else "x", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        handles, labels = axes.get_legend_handles_labels()
        if legend and handles:
            longest = max(map(len, labels))
            columns = 4 if longest <= 9 else 2 if longest <= 18 else 1
            figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _shown(label: str) -> str:
    """A label that fits; matplotlib would hide one that begins with an underscore."""
    short = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 9]}…{label[-8:]}"
    return f" {short}" if short.startswith("_") else short


def _caption(found: Curves) -> str:
    count = counted(estimate for points in found.values() for estimate in points.values())
    return f"{count} per point; 95% bootstrap intervals over prompts"


def _alt(title: str, found: Curves, x: str) -> str:
    said = [
        f"{name}: {points[min(points)].point()} at {min(points):g} to {points[max(points)].point()} at {max(points):g}"
        for name, points in found.items()
        if points
    ]
    return f"{title}, against {x}. " + "; ".join(said)
