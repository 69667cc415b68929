"""What a run does with a cached teacher: generate writes it, fit takes it up where it can serve (floor 5).

Axes: B batch, T positions, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel

from tempspec.core.sparse import SparseLogits
from tempspec.decoding.pace import Pace
from tempspec.errors import UserError
from tempspec.interfaces import Divergence, TemperatureSchedule
from tempspec.models.digests import has_weights, tokenizer_digest, weights_digest
from tempspec.models.pair import Pair
from tempspec.models.reading import Reading
from tempspec.modules.fit.cache_folder import CacheOrigin, Watch, counted_tokens, paced, rows_digest
from tempspec.modules.fit.teacher_cache import CachedTeacher, CacheWriter, TeacherCache
from tempspec.modules.ids import check_ids, make_ids_readable
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import LogitSource, logits_of, reading_of, response

__all__ = ["cache_origin", "cached_target", "open_cache", "write_cache"]

_REMEDY = {
    "top": "keep the whole vocabulary, or take a divergence of probabilities, as ForwardKL or NegativeLogAcceptance",
    "sampled": "keep top tokens, or take a mean under p of a function of q / p, such as ForwardKL or TotalVariation",
}


@torch.no_grad()
def write_cache(
    options: CachedTeacher, pair: Pair, data: Any, seed: int, device: torch.device, watch: Watch | None = None
) -> None:
    """Write a cache of the target's logits on the training rows, from where it stopped.

    Args:
        options: what is kept, and where.
        pair: whose target reads.
        data: the data module whose training rows it reads.
        seed: of sampled tokens.
        device: where to compute.
        watch: shows how far it is.

    Raises:
        UserError: another cache is in the folder, or the disk is too small.
    """
    target, reading, origin = cached_target(pair, data, device)
    origin = replace(origin, seed=seed)
    writer = CacheWriter(options, origin)
    rank_zero_info(str(writer))
    # Rows that are read together would depend on where an interrupted cache begins.
    source = LogitSource(pair.vocabulary, reading=replace(reading, branches=False))

    def kept() -> Iterator[tuple[int, SparseLogits]]:
        for batch in data.in_windows(writer.begun, options.shard_rows):
            batch = {name: value.to(device) for name, value in batch.items()}
            keep_BT = response(batch)
            side, begin = source.of(target, batch, Kept.of(keep_BT)), 0
            for row, count in zip(batch["row"].tolist(), keep_BT.sum(1).tolist(), strict=True):
                logits_NV = logits_of(side, slice(begin, begin + count), pair.vocabulary)
                yield row, options.kept(logits_NV, row, seed)
                begin += count

    pace = Pace("teacher", origin.rows, writer.begun)
    found = paced(kept(), lambda numbered: len(numbered[1].token_NK), pace, watch)
    writer.write(found, counted_tokens(data.train_rows))


def open_cache(
    options: CachedTeacher,
    pair: Pair,
    data: Any,
    divergence: Divergence,
    temperature: TemperatureSchedule,
    *,
    writes: bool,
    selects: bool,
) -> TeacherCache:
    """The cache that fit learns from, if everything that it asks can be had from it.

    Args:
        options: what the cache should hold, and where it is.
        pair: whose draft learns.
        data: the data module that it learns on, set up for fit.
        divergence: what is minimised.
        temperature: the schedule.
        writes: whether text is written while training.
        selects: whether tokens are selected by a reference draft.

    Raises:
        UserError: the cache is not there, is of something else, or cannot give what is asked.
    """
    kept = options.keep
    cache = TeacherCache(options, cache_origin(pair, data))
    asked: Mapping[str, tuple[bool, str]] = {
        "data.pack_attention: separate": (
            data.packed or not cache.apart,
            "its target kept the documents of a row from each other",
        ),
        "no model.online": (not writes, "text that is written while training was never seen by the target"),
        "no model.selection": (not selects, "it compares with the target's whole distributions"),
        "another schedule": (not temperature.needs, f"{type(temperature).__name__} looks at whole distributions"),
        "another divergence": (
            cache.whole or kept in divergence.cached,
            f"{type(divergence).__name__} cannot be had from {kept} tokens; {_REMEDY[kept]}",
        ),
    }
    for expected, (fine, reason) in asked.items():
        if not fine:
            raise UserError(f"a cached teacher needs {expected}: {reason}")
    return cache


def cached_target(pair: Pair, data: Any, device: torch.device) -> tuple[PreTrainedModel, Reading, CacheOrigin]:
    """The target of a cache that is written, ready to read the training rows.

    Args:
        pair: whose target reads.
        data: the data module; it is set up for fit.
        device: where to compute.

    Returns:
        The model, how it is called, and what the cache is made of.

    Raises:
        UserError: the target cannot read rows of this length, or their ids.
    """
    pair.check_rows(data.max_length)
    data.setup("fit")
    pair.use(device, decoding=False)
    target = pair.target_model
    reading = reading_of([target], data)
    make_ids_readable(pair, [target])
    check_ids(pair, {"train": data.train_rows})
    apart, weights = data.packed and reading.apart, weights_digest(pair.target)
    origin = replace(cache_origin(pair, data), apart=apart, vocabulary=pair.vocabulary, weights=weights)
    return target, reading, origin


def cache_origin(pair: Pair, data: Any) -> CacheOrigin:
    """What a cache of this run would be made of, as far as no model says it.

    Args:
        pair: whose target reads.
        data: set up for fit.
    """
    text, tokens = rows_digest(data.train_rows)
    weights = weights_digest(pair.target) if has_weights(pair.target) else ""
    tokenizer = tokenizer_digest(pair.tokenizer)
    return CacheOrigin(text, tokenizer, len(data.train_rows), tokens, target=pair.target, weights=weights)
