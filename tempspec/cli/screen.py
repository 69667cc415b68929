"""What is shown on the screen besides a progress bar, and which messages of the libraries are not (floor 6)."""

import logging
import os
import warnings
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

__all__ = ["print_metrics", "quiet"]

_WARNINGS = (
    r".*does not have many workers.*",  # encoded rows come from a memory-mapped cache: workers cost more than they save
    r".*Checkpoint directory .* exists and is not empty.*",  # that is what continuing a run looks like
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning on torch, nothing of ours
    r".*Trying to infer the `batch_size` from an ambiguous collection.*",  # only weights epoch means that are not used
    r".*callbacks used to create the checkpoint need to be provided.*",  # evaluation needs none of fit's
    r".*Precision .* is not supported by the model summary.*",
    r"You defined a `validation_step` but have no `val_dataloader`.*",  # validation_fraction: 0 asks for that
    r".*Total length of `list` across ranks is zero.*",  # nothing is held out, which a line of ours has said
    r".*`max_epochs` was not set.*",  # said again, better, by the configuration
    r"The number of training batches \(\d+\) is smaller than the logging interval.*",  # a small run logs its epochs
)
_CHATTER = ("💡", "GPU available: False", "TPU available", "HPU available", "`weights_only` was not set")


class _Chatter(logging.Filter):
    """Drops Lightning's advertisements, its list of absent accelerators, and notes on its own defaults."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record says something."""
        text = record.getMessage()
        return not text.startswith(_CHATTER)


def quiet() -> None:
    """Silence them; everything else still shows."""
    # LightningCLI calls what jsonargparse 5 will remove; pyproject.toml holds both below that
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    checkpoints = "pytorch.trainer.connectors.checkpoint_connector"
    names = ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", checkpoints)
    for name in map("lightning.{}".format, names):
        logging.getLogger(name).addFilter(_Chatter())
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Print names and values, one per line, never truncated."""
    table = Table("metric", "value", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    Console(soft_wrap=True).print(table)
