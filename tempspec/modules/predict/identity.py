"""Which models rows and fitted temperatures belong to, in words that change with what changes them (floor 5)."""

from tempspec.decoding.sweep import Sweep
from tempspec.models.digests import file_digest, weights_digest
from tempspec.models.pair import Pair

__all__ = ["describe", "draft_identity", "fitted_for", "pair_identity", "target_identity"]

_WITHOUT_EFFECT = {"shard_target", "trust_remote_code", "export_dtype"}
"""Options of loading that no logit depends on."""


def draft_identity(pair: Pair, checkpoint: str | None, *, used: bool = True) -> dict[str, str]:
    """Which draft it is, in words that change with its weights, and not with where they lie.

    Args:
        pair: names it.
        checkpoint: the file that its weights came from, if not from its folder.
        used: whether the drafter has a draft model; both texts are empty where it has none.
    """
    if not used:
        return {"draft": "", "checkpoint": ""}
    made = f"{pair.draft_layers} {pair.spacing} layers of {pair.width}" if pair.head is None else describe(pair.head)
    return {
        "draft": weights_digest(pair.draft, pair.options.draft_revision) if pair.draft else made,
        "checkpoint": file_digest(checkpoint) if checkpoint else pair.draft_in_memory,
    }


def pair_identity(pair: Pair, checkpoint: str | None) -> dict[str, str]:
    """Which target and which draft it is, and how they are loaded: in which dtype, with which attention."""
    return target_identity(pair) | draft_identity(pair, checkpoint)


def target_identity(pair: Pair) -> dict[str, str]:
    """Which target it is, and how both models are loaded."""
    loading = {name: value for name, value in vars(pair.options).items() if name not in _WITHOUT_EFFECT}
    return {"target": weights_digest(pair.target, pair.options.target_revision), "loading": str(loading)}


def fitted_for(pair: Pair, checkpoint: str | None, sweep: Sweep) -> dict[str, str]:
    """What a fitted draft temperature belongs to: the pair, and how its laws are cut."""
    return pair_identity(pair, checkpoint) | {"truncation": str(sweep.truncation)}


def describe(plugin: object) -> str:
    """A plugin's class and options, as one stable line."""
    options = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(plugin).items()))
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}({options})"
