"""How a stage reads its batches: in chunks, documents separately, ids that all know; tried before any (floor 5)."""

from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer
from transformers import PreTrainedModel

from tempspec.interfaces import HeadModel
from tempspec.models.branches import branching
from tempspec.models.head_draft import DraftModel
from tempspec.models.pair import Pair
from tempspec.modules.fit.training import DraftTraining
from tempspec.modules.ids import check_ids, loaded_sets, make_ids_readable
from tempspec.modules.outputs import LogitSource, linear_heads, reading_of

__all__ = ["check_batch_ids", "logit_source"]


def logit_source(
    pair: Pair, training: DraftTraining, draft: DraftModel, trainer: Trainer, *, cached: bool, sharded: bool
) -> LogitSource:
    """Read models in chunks where every output is a linear map and nobody asked for whole logits.

    Args:
        pair: the models.
        training: its options; of a fit its reference draft takes part.
        draft: the draft. A head is read through the target's states.
        trainer: of the stage.
        cached: whether the target's logits come from a cache.
        sharded: whether the draft is held in parts, whose output matrix is whole in its own forward alone.
    """
    models = [] if isinstance(draft, HeadModel) else [draft]
    if training.reference is not None and trainer.state.fn == "fit":
        models += [one for one in [training.reference()] if isinstance(one, PreTrainedModel)]
    if not cached:
        models.append(pair.target_model)
    make_ids_readable(pair, models)
    whole = training.chunk_tokens == 0 or sharded or not linear_heads(models)
    cache = training.cache if cached else None
    kept = cache or (training.feature_cache if trainer.state.fn == "fit" else None)
    reading = reading_of(models, _data(trainer), kept is None or kept.apart)
    if trainer.state.fn in ("validate", "test") and not whole:
        reading = replace(reading, branches=all(map(branching, models)))
    vocabulary = pair.vocabulary if cache is None else cache.vocabulary
    return LogitSource(vocabulary, training.chunk_tokens, whole, reading)


def check_batch_ids(pair: Pair, trainer: Trainer) -> None:
    """Refuse rows with ids that the target has no embedding for.

    Args:
        pair: whose target reads.
        trainer: whose rows.

    Raises:
        UserError: naming the id, its row and its set.
    """
    data = _data(trainer)
    for loaders, names in (
        (trainer.train_dataloader, ["train"]),
        (trainer.val_dataloaders, getattr(data, "validation_names", [])),
        (trainer.test_dataloaders, getattr(data, "test_names", [])),
    ):
        check_ids(pair, loaded_sets(loaders, names))


def _data(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)
