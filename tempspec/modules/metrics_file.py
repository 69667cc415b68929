"""metrics.csv: everything that was logged, one row a step, never lost (floor 5)."""

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

__all__ = ["MetricsFile"]


class MetricsFile(Logger):
    """A logger that appends to `FOLDER/metrics.csv`.

    Unlike `CSVLogger` it never deletes rows: a run that is continued goes on in the same file, and a new run in the
    same folder first renames the old file to `metrics.1.csv`, `metrics.2.csv`, ...

    Args:
        folder: where the file is; made with the first row.
        resume: whether this run continues the one that wrote the file.
    """

    def __init__(self, folder: str | Path, resume: bool = False) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.resume = resume
        self.columns: list[str] = []
        self._started = False

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "metrics.csv"

    @property
    def name(self) -> str:
        """Empty: no subfolder is made."""
        return ""

    @property
    def version(self) -> str:
        """Empty: no subfolder is made."""
        return ""

    @property
    def save_dir(self) -> str:
        """The folder."""
        return str(self.folder)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row; a new metric widens the table."""
        if not self._started:
            self._start()
        row: dict[str, Any] = {"step": step, **metrics}
        fresh = [name for name in row if name not in self.columns]
        if fresh:
            self._widen(fresh)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _start(self) -> None:
        """Go on in the file that is there, or move it out of the way."""
        self._started = True
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.resume:
            with self.path.open(newline="") as file:
                self.columns = next(csv.reader(file), [])
        elif self.path.exists():
            number = 1
            while (old := self.path.with_name(f"metrics.{number}.csv")).exists():
                number += 1
            self.path.rename(old)

    def _widen(self, fresh: list[str]) -> None:
        """Write the file again with more columns."""
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        self.columns += fresh
        wider = self.path.with_suffix(".tmp")
        with wider.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        wider.replace(self.path)
