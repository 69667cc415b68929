"""Small tables on the screen (floor 6)."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

__all__ = ["print_metrics"]


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print names and values, one a line, never truncated."""
    table = Table("metric", "value", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console(soft_wrap=True).print(table)
