"""The target's hidden states from files that a serving engine or a trainer wrote, one for each text (floor 5).

A file does not say which states it holds: the configuration does, and the target's own pass over one row tells whether
that is so. It also tells whether the last state comes before the final norm, as vLLM has it, or after it, as SpecForge.

Axes: B batch, T positions, L tokens of a row, S states of the files, C those that are used, K all of the target's and
its last one after the norm, H hidden.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from tempspec.errors import UserError
from tempspec.models.heads import hidden_states
from tempspec.models.pair import Pair
from tempspec.models.tapping import Taps, final_norm
from tempspec.modules.fit.features import CachedFeatures, head_states, target_config
from tempspec.modules.fit.state_files import state_files, states_of, tokens_of
from tempspec.modules.outputs import Batch

__all__ = ["EngineFeatures"]

_FAR = 0.3
"""The share of a state's size that an engine's precision does not explain."""


class EngineFeatures:
    """An engine's files, read by the numbers of rows: what `FeatureCache` is for our own.

    Args:
        options: where they are, and which states they hold.
        pair: whose head learns.
        data: the data module, set up for fit.

    Raises:
        UserError: a state, a row's text or a tensor is missing, or of another shape; or rows hold several texts.
    """

    apart = True
    """Every text was a request of its own."""

    def __init__(self, options: CachedFeatures, pair: Pair, data: Any) -> None:
        if getattr(data, "packed", False):
            raise UserError("an engine's files are of one text each, got rows that are packed: set data.pack: false")
        held, config = list(options.engine_states or ()), target_config(pair)
        needed = [*head_states(pair), config.num_hidden_layers]
        if missing := [state for state in needed if state not in held]:
            raise UserError(
                f"features.engine_states must have {needed}, the head's states and the target's last one, got {held}: "
                f"let the engine write state {missing[0]}, too"
            )
        self._pair, self._held, self._columns = pair, held, [held.index(state) for state in needed]
        folder = Path(options.folder).expanduser()
        self._files = _files_of_rows(folder, data.train_rows, len(held), config.hidden_size)
        self._normed: bool | None = None  # of the last state; unknown before the first row

    def __call__(self, batch: Batch, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
        """The states of a batch's text, `[B, T, H]` each, and the last hidden states; 0 for rows that do not count.

        Raises:
            UserError: at the first call, the files hold other states than they are said to.
        """
        ids_BT = batch["input_ids"]
        width = self._pair.target_model.get_output_embeddings().weight.shape[1]
        found_CBTH = torch.zeros(len(self._columns), *ids_BT.shape, width, dtype=dtype)
        lengths, weights = batch["attention_mask"].sum(1).tolist(), batch["weight"].tolist()
        for place, row in enumerate(batch["row"].tolist()):
            if weights[place] > 0:
                states_LSH = self._row(row)
                self._look_once(ids_BT[place, : lengths[place]], states_LSH, self._files[row])
                found_CBTH[:, place, : lengths[place]] = states_LSH[:, self._columns].transpose(0, 1).to(dtype)
        *states, last_BTH = found_CBTH.to(ids_BT.device).unbind()
        with torch.no_grad():
            return tuple(states), last_BTH if self._normed else self._norm(last_BTH)

    @cached_property
    def _norm(self) -> nn.Module:
        target = self._pair.target_model
        norm = final_norm(target)
        if norm is None:
            raise UserError(
                f"an engine's files need a target whose last layer is followed by one norm, which {self._pair.target} "
                "lacks: take the files of `tempspec generate --cache-features`"
            )
        return norm

    def _row(self, row: int) -> Tensor:
        """All that is held of a row, `[L, S, H]`."""
        return states_of(self._files[row], len(self._held))

    @torch.no_grad()
    def _look_once(self, ids_L: Tensor, states_LSH: Tensor, file: Path) -> None:
        """Hold the first row's states to those of the target's own pass over it; the last one may be after the norm.

        Raises:
            UserError: a state is nearest to another one of the target's, or far from all of them.
        """
        if self._normed is not None:
            return
        target = self._pair.target_model
        layers = target.config.get_text_config().num_hidden_layers
        with Taps(target, range(layers + 1)) as taps:
            last_1LH = hidden_states(target, input_ids=ids_L[None], use_cache=False)
            own_KLH = torch.cat([*taps.states, last_1LH]).float().cpu()
        for state, theirs_LH in zip(self._held, states_LSH.float().unbind(1), strict=True):
            # By the median token: the first ones may be a thousand times as large as all others.
            far_K = ((own_KLH - theirs_LH).norm(dim=-1) / own_KLH.norm(dim=-1)).median(1).values
            nearest = int(far_K.argmin())
            if state == layers:
                self._normed = nearest > layers
            if min(nearest, layers) != state or not far_K[nearest] < _FAR:
                raise UserError(
                    f"{file} does not hold the target's state {state} where features.engine_states says so: it is off "
                    f"by {far_K[state]:.0%}, and by {far_K[nearest]:.0%} from state {min(nearest, layers)}; name the "
                    "ids that the engine was given, and its target"
                )
        if self._normed and layers in head_states(self._pair):
            raise UserError(f"{file} holds state {layers} after the final norm, and the head reads it before: see vLLM")


def _files_of_rows(folder: Path, rows: Any, states: int, width: int) -> list[Path]:
    """The file of every training row, by its tokens.

    Raises:
        UserError: a row has none, or a file is not as an engine writes it.
    """
    known: dict[bytes, Path] = {}
    for file in state_files(folder):
        known[_digest(tokens_of(file, states, width))] = file
    found = [known.get(_digest(text)) for text in _texts(rows)]
    lacking = [number for number, file in enumerate(found) if file is None]
    if lacking:
        raise UserError(
            f"{folder} lacks the states of {len(lacking)} of {len(found)} training rows, row {lacking[0]} the first: "
            "ask the engine for the rows' own token ids, each a request of its own (data.pack: false)"
        )
    return [file for file in found if file is not None]


def _texts(rows: Any) -> Iterator[Any]:
    """The token ids of every training row."""
    for chunk in rows.data.column("input_ids").chunks:
        ends = pc.list_value_length(chunk).to_numpy(zero_copy_only=False).cumsum()
        yield from np.split(chunk.flatten().to_numpy(zero_copy_only=False), ends[:-1])


def _digest(token_L: Any) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(token_L, dtype=np.int64).tobytes()).digest()
