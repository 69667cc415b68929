"""metrics.csv: everything that was logged, one row per step, never lost (floor 5)."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from tempspec.files import write_atomically

__all__ = ["MetricsFile", "MetricsPosition"]


class MetricsFile(Logger):
    """A logger that appends to `FOLDER/metrics.csv`.

    Unlike `CSVLogger` it never deletes rows of a finished run: a new run in the same folder first renames the old file
    to `metrics.1.csv`, `metrics.2.csv`, ... A run that is continued appends to the same file, after the rows that its
    checkpoint knew of (see `MetricsPosition`): what was logged after them is logged again.

    Args:
        folder: where the file is; made with the first row.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.columns: list[str] = []
        self.rows = 0
        self._kept: int | None = None
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

    def keep(self, rows: int) -> None:
        """Continue the file after its first so many rows; called before anything is logged."""
        self._kept = self.rows = rows

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append a row; a new metric widens the table."""
        if not self._started:
            self._start()
        row: dict[str, Any] = {"step": step, **metrics}
        fresh = [name for name in row if name not in self.columns]
        if fresh:
            self.columns += fresh
            self._write(self._read())
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        self.rows += 1

    def _start(self) -> None:
        """Cut the file that is there to what is kept of it, or move it out of the way."""
        self._started = True
        if self._kept is None:
            self._put_away()
            return
        rows = self._read()[: self._kept]
        self.columns = list(rows[0]) if rows else []
        self.rows = len(rows)
        if rows:
            self._write(rows)

    def _put_away(self) -> None:
        number = 1
        while (old := self.path.with_name(f"metrics.{number}.csv")).exists():
            number += 1
        if self.path.exists():
            self.path.rename(old)

    def _read(self) -> list[dict[str, str]]:
        """The whole rows of the file; a last line that was cut off by a crash is none."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))

    def _write(self, rows: list[dict[str, str]]) -> None:
        """Write the file anew, with all columns."""
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, buffer.getvalue())


class MetricsPosition(Callback):
    """Keeps in every checkpoint how many rows the metrics file had, so that a continued run repeats none of them."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the rows."""
        checkpoint["metrics_rows"] = max((log.rows for log in _metrics_files(trainer)), default=0)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Append after them; a checkpoint of somebody else's names none, and all rows are kept away."""
        if "metrics_rows" in checkpoint:
            for log in _metrics_files(trainer):
                log.keep(checkpoint["metrics_rows"])


def _metrics_files(trainer: Trainer) -> list[MetricsFile]:
    return [log for log in trainer.loggers if isinstance(log, MetricsFile)]
