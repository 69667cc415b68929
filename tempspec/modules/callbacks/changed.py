"""Options that changed since the checkpoint that a run is continued from (floor 5)."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tempspec.errors import UserError
from tempspec.modules.fit.optim import WarmupCosine

__all__ = ["ChangedOptions", "decisive"]

_KEY = "trained_with"
"""Where a checkpoint keeps the options."""
_REFUSED = (
    "model.divergence",
    "model.temperature",
    "model.label_weight",
    "model.average",
    "model.selection",
    "model.conditioning_rank",
    "model.head_training",
    "model.online",
    "model.teacher",
    "model.features",
    "model.optimizer",
    "model.lr_scheduler",
)
"""They decide what is minimised and how: half a run with another is neither run."""
_TAKEN = (
    "model.target",
    "model.seed",
    "data.train",
    "data.max_length",
    "data.batch_size",
    "data.seed",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
)
"""They are as they are from here on; a change is only told."""
_DEFAULT = {"model.optimizer": "AdamW", "model.lr_scheduler": "WarmupCosine"}


def decisive(options: Mapping[str, Any]) -> dict[str, str]:
    """What of a resolved configuration decides what is learned, by its dotted name, as a line shows it.

    >>> decisive({"model": {"divergence": {"class_path": "a.Skew", "init_args": {"alpha": 0.1}}, "optimizer": None}})
    {'model.divergence': 'Skew(alpha=0.1)', 'model.optimizer': 'AdamW'}
    """
    found = {}
    for name in (*_REFUSED, *_TAKEN):
        section, _, key = name.partition(".")
        part = options.get(section) or {}
        part = part.get("init_args", part)
        if key in part:
            found[name] = _DEFAULT[name] if name in _DEFAULT and part[key] is None else _shown(part[key])
    return found


def _only_options(name: str, old: str, new: str) -> bool:
    """Whether what was chosen is the same, with other options that can be taken anew."""
    kind = new.partition("(")[0]
    return old.partition("(")[0] == kind and (name == "model.optimizer" or kind == "WarmupCosine")


def _catch_up(fresh: LRScheduler, steps: int) -> None:
    """Bring a fresh schedule to where another one is: learning rates of 0 say nothing of their shares of the peak.

    One that goes by a measured value begins at its peak.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch expects a step of the optimiser before each
        while fresh.last_epoch < steps and not isinstance(fresh, ReduceLROnPlateau):
            fresh.step()


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        return f"{value['class_path'].rpartition('.')[2]}({_inside(value.get('init_args') or {})})".replace("()", "")
    if isinstance(value, Mapping):
        return f"{{{_inside(value)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value)


def _inside(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in sorted(options.items()) if value is not None)


class ChangedOptions(Callback):
    """Keeps in every checkpoint what it was trained with, and compares where a run is continued.

    A checkpoint brings the optimiser's state, in which torch keeps the old learning rate. What can be taken anew is:
    the optimiser's options (learning rate, weight decay, betas) and those of `WarmupCosine`. Another objective,
    optimiser or schedule is refused unless that is accepted; another optimiser or schedule then begins anew, and so do
    those of a checkpoint that does not say what it was trained with.

    Args:
        options: what `decisive` gives of this run's configuration.
        accept: take whatever changed.
    """

    def __init__(self, options: Mapping[str, str], accept: bool = False) -> None:
        self.options = dict(options)
        self.accept = accept
        self._step: int | None = None
        self._told: list[str] = []
        self._anew = self._optimizer_changed = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the options."""
        checkpoint[_KEY] = dict(self.options)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare them.

        Raises:
            UserError: what decides the objective or the optimiser changed, and nobody said that it may.
        """
        before = checkpoint.get(_KEY)
        if before is None:
            rank_zero_info("the checkpoint does not say what it was trained with: nobody can tell what changed since")
            if self.accept:  # earlier versions kept the weights in other groups, and their states cannot be taken
                checkpoint["optimizer_states"] = checkpoint["lr_schedulers"] = []
            return
        self._step = int(checkpoint["global_step"])
        changed = {name: (before[name], now) for name, now in self.options.items() if before.get(name, now) != now}
        refused = [name for name in changed if name in _REFUSED and not _only_options(name, *changed[name])]
        if refused and not self.accept:
            now, (old, new) = refused[0], changed[refused[0]]
            rest = f" ({', '.join(refused[1:])} changed too)" if refused[1:] else ""
            raise UserError(
                f"{now} is {new}, but the checkpoint was trained with {old}{rest}: set it back, begin another run, or "
                "resume with what is new by --resume_changed true"
            )
        self._told = [f"{name} {old} -> {new}" for name, (old, new) in changed.items() if name in (*refused, *_TAKEN)]
        self._optimizer_changed = "model.optimizer" in changed
        if "model.optimizer" in refused:
            checkpoint["optimizer_states"] = []
        self._anew = bool({"model.optimizer", "model.lr_scheduler"} & set(refused))
        if self._anew:
            checkpoint["lr_schedulers"] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take what this run's optimiser and schedule were made with; say what changed."""
        if self._step is None:
            return
        made: Any = pl_module.configure_optimizers()
        self._told += list(dict.fromkeys(self._take(trainer, made)))
        if self._told:
            rank_zero_info(f"changed since the checkpoint of step {self._step}, from here on: {'; '.join(self._told)}")

    def _take(self, trainer: Trainer, made: Any) -> Iterator[str]:
        """Bring the restored optimiser and schedule up to the new ones; one text a change."""
        groups, fresh = trainer.optimizers[0].param_groups, made["optimizer"].param_groups
        schedule, new = trainer.lr_scheduler_configs[0].scheduler, made["lr_scheduler"]["scheduler"]
        for old, now in zip(groups, fresh, strict=True):
            before, after = (group.get("initial_lr", group["lr"]) for group in (old, now))
            for name in now.keys() - {"params", "lr", "initial_lr"}:
                if old.get(name) != now[name]:
                    yield f"{name} {old.get(name)} -> {now[name]}"
                    old[name] = now[name]
            scheduled = "initial_lr" in now
            if before != after and (scheduled or self._optimizer_changed):
                yield f"learning rate {before:g} -> {after:g}"
                if not before and not self._anew:
                    _catch_up(new, schedule.last_epoch)
                    before, old["lr"] = after, now["lr"]
                old["lr"] = now["lr"] if self._anew or not scheduled else old["lr"] * after / before
                if scheduled:
                    old["initial_lr"] = after
        if hasattr(new, "base_lrs"):
            schedule.base_lrs = new.base_lrs
        if isinstance(schedule, WarmupCosine) and isinstance(new, WarmupCosine):
            for name in ("warmup", "floor"):
                if getattr(schedule, name) != getattr(new, name):
                    yield f"{name} {getattr(schedule, name):g} -> {getattr(new, name):g}"
                    setattr(schedule, name, getattr(new, name))
            for group, rate in zip(groups, schedule.get_lr(), strict=True):
                group["lr"] = rate
