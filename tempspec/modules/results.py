"""What a module has measured, as tables; the command line has its own in `tempspec.cli.stage_files` (floor 5)."""

from collections.abc import Mapping

from tempspec.errors import UserError
from tempspec.metrics.acceptance_grid import AcceptanceGrid
from tempspec.metrics.table import Line, ResultTable, cells_table
from tempspec.modules.predict.row_metrics import sweep_metrics
from tempspec.modules.predict.sweep_runner import SweepRunner

__all__ = ["acceptance_table", "decoding_table"]


def acceptance_table(grids: Mapping[str, AcceptanceGrid]) -> ResultTable:
    """The acceptance of sets at every pair of temperatures. A collective under DDP: every rank must call it.

    Args:
        grids: by the sets' names.

    Raises:
        UserError: there is none.
    """
    if not grids:
        raise UserError("expected a validation before, got none: run trainer.validate(module, data) first")
    lines = [
        Line({"set": name, "draft_temperature": draft, "target_temperature": target}, {"acceptance": estimate})
        for name, grid in grids.items()
        for (target, draft), estimate in grid.grid().acceptance.items()
    ]
    return ResultTable("analytic acceptance", lines, across="target_temperature")


def decoding_table(runner: SweepRunner, parameter_ratio: float | None) -> ResultTable:
    """The decoding metrics of a sweep that is finished, from its rows on disk.

    Args:
        runner: after its rows were merged.
        parameter_ratio: the draft's parameters over the target's.

    Raises:
        UserError: nothing was decoded.
    """
    if not runner.order:
        raise UserError("expected a predict before, got none: run trainer.predict(module, data) first")
    whole, _ = sweep_metrics(runner.store, runner.order, parameter_ratio)
    return cells_table(f"decoding: {runner.store.path}", whole.estimates())
