"""The analytic acceptance of a draft that somebody else trains, on held-out text (floor 5).

It knows no trainer: what calls it is in `tempspec.modules.callbacks`.

Axes: B batch, T positions, N the batch's counted tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.errors import UserError
from tempspec.metrics.acceptance_grid import AcceptanceGrid
from tempspec.metrics.table import ResultTable
from tempspec.models.evaluating import evaluating
from tempspec.models.heads import linear_head
from tempspec.models.loading import load_model, load_tokenizer, real_vocabulary
from tempspec.models.reading import Reading, reading
from tempspec.models.tokens import Marked, Tokeniser
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import LogitSource
from tempspec.modules.results import acceptance_table

__all__ = ["AcceptanceProbe", "draft_of"]

HELD_OUT = "held-out"
"""What the text is called in tables."""

Batch = Mapping[str, Tensor]
HeldOut = LightningDataModule | DataLoader[Any] | Sequence[str] | Sequence[Batch]
FindDraft = str | Callable[[Any], nn.Module]


class AcceptanceProbe:
    """Measures how much of a draft's proposals its target would accept, over a grid of temperatures.

    One pass of each model over the text. Every process measures all of it.

    Args:
        target: the target, or its folder or hub name; loaded at the first measurement, to the draft's device.
        data: held-out text: a data module, whose validation sets are read as one; a loader, or a list, of batches with
            `input_ids` and, where not all tokens count, `attention_mask` and `loss_mask` or `labels`; or texts.
        temperatures: of target and draft; 0 is argmax.
        tokenizer: of texts, or its name; by default what lies beside the target.
        max_length: the most tokens of a text.
        batch_size: texts at a time.
        limit: batches that are read at most; all by default.

    Raises:
        UserError: there is no temperature, or one below 0.
    """

    def __init__(
        self,
        target: str | PreTrainedModel,
        data: HeldOut,
        temperatures: Sequence[float] = (0.0, 0.5, 1.0, 1.5),
        *,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        max_length: int = 512,
        batch_size: int = 8,
        limit: int | None = None,
    ) -> None:
        if not temperatures or min(temperatures) < 0:
            raise UserError(f"temperatures must be 0 or more, at least one, got {list(temperatures)}")
        self.temperatures = tuple(dict.fromkeys(map(float, temperatures)))
        self.data = data
        self.max_length = max_length
        self.batch_size = batch_size
        self.limit = limit
        self._target = target
        self._tokenizer = tokenizer
        self._batches: Iterable[Batch] | None = None
        self._grid: AcceptanceGrid | None = None

    @torch.no_grad()
    def measure(self, draft: nn.Module) -> dict[str, float]:
        """The acceptance at equal temperatures, as `acceptance/T1`; `table` has all pairs.

        A collective where torch.distributed is initialised: every process must call it. The draft is in eval mode
        meanwhile, without autocast, and afterwards as it was.

        Raises:
            UserError: the models share no ids, or there is no token to count.
        """
        # Lightning validates in inference mode, whose tensors autograd refuses later on.
        with torch.inference_mode(False), torch.autocast(_device(draft).type, enabled=False):
            target = self._loaded(_device(draft))
            grid = AcceptanceGrid(self.temperatures, self.temperatures).to(_device(draft))
            with evaluating(target, draft):
                self._count(target, draft, grid)
        found = grid.grid().acceptance
        if not any(estimate.prompts for estimate in found.values()):
            raise UserError("expected held-out text with tokens to predict, got none: check data and loss_mask")
        self._grid = grid
        return {f"acceptance/T{t:g}": found[t, t].value for t in self.temperatures}

    def table(self) -> ResultTable:
        """The last measurement at every pair of temperatures, with intervals over rows.

        Raises:
            UserError: nothing was measured yet.
        """
        if self._grid is None:
            raise UserError("expected a measurement before, got none: train or validate with this callback first")
        return acceptance_table({HELD_OUT: self._grid})

    def _count(self, target: PreTrainedModel, draft: nn.Module, grid: AcceptanceGrid) -> None:
        vocabulary = self._vocabulary(target, draft)
        known = isinstance(draft, PreTrainedModel)
        call = reading([draft, target]) if isinstance(draft, PreTrainedModel) else Reading()
        whole = not known or linear_head(target) is None or linear_head(draft) is None
        source = LogitSource(vocabulary, whole=whole, reading=call)
        rows = 0
        for number, given in enumerate(self._held_out(target)):
            if number == self.limit:
                break
            batch = _completed(given, rows, _device(draft))
            rows += len(batch["input_ids"])
            kept = Kept.of(batch["loss_mask"][:, 1:])
            key_N = kept.rows(batch["key"])
            if not len(key_N):
                continue
            pairs = source.pairs(source.of(target, batch, kept), source.of(draft, batch, kept))
            for piece in pairs.pieces():
                found, key_n = piece.survey(self.temperatures), key_N[piece.tokens]
                grid.update(
                    found.acceptance_NAD,
                    found.argmax_NA,
                    found.match_NA,
                    found.entropy_NA,
                    key_n,
                    torch.ones_like(key_n, dtype=torch.float32),
                )

    def _loaded(self, device: torch.device) -> PreTrainedModel:
        """The target, on the draft's device and without gradients."""
        if isinstance(self._target, str):
            if self._tokenizer is None:
                self._tokenizer = load_tokenizer(self._target)
            self._target = load_model(self._target, device=device).requires_grad_(False)
        if self._target.device != device:
            self._target = self._target.to(device)
        return self._target

    def _words(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, where one is known."""
        if self._tokenizer is None and isinstance(self.data, LightningDataModule):
            self._tokenizer = getattr(self.data, "tokenizer", None)
        if isinstance(self._tokenizer, str):
            self._tokenizer = load_tokenizer(self._tokenizer)
        return self._tokenizer

    def _vocabulary(self, target: PreTrainedModel, draft: nn.Module) -> int:
        """The number of real ids: those of the tokenizer where one is known, else those of the target's head."""
        words = self._words()
        return target.get_output_embeddings().weight.shape[0] if words is None else real_vocabulary(words, target)

    def _held_out(self, target: PreTrainedModel) -> Iterable[Batch]:
        """The batches, the same at every measurement."""
        if self._batches is None:
            self._batches = self._read(target)
        return self._batches

    def _read(self, target: PreTrainedModel) -> Iterable[Batch]:
        data: Any = self.data
        if isinstance(data, LightningDataModule):
            data.prepare_data()
            data.setup("validate")
            loaders = data.val_dataloader()
            return _Chain(loaders if isinstance(loaders, list | tuple) else [loaders])
        if isinstance(data, str) or not isinstance(data, Sequence) or not data or not isinstance(data[0], str):
            if isinstance(data, str) or not isinstance(data, Iterable):
                raise UserError(f"data: expected a data module, a loader or a list of texts, got {type(data).__name__}")
            return data
        words = self._words()
        if words is None:
            name = target.name_or_path
            if not name:
                raise UserError("held-out texts need a tokenizer, got none: give tokenizer=...")
            self._tokenizer = words = load_tokenizer(name)
        return list(_batches(data, words, self.max_length, self.batch_size))


class _Chain(Iterable[Batch]):
    """Loaders one after the other, as often as is asked."""

    def __init__(self, loaders: Sequence[Iterable[Batch]]) -> None:
        self._loaders = loaders

    def __iter__(self) -> Iterator[Batch]:
        for loader in self._loaders:
            yield from loader


def draft_of(module: Any, find: FindDraft | None) -> nn.Module:
    """The model that is trained, inside of what trains it.

    Args:
        module: a LightningModule, or a model, perhaps wrapped for several processes.
        find: the attribute where it is (dots lead deeper), or a function of the module; by default `draft`, else
            `model`, else the module itself.

    Raises:
        UserError: there is none.
    """
    if callable(find):
        return find(module)
    if isinstance(find, str):
        found = module
        for part in find.split("."):
            found = getattr(found, part, None)
    elif isinstance(module, PreTrainedModel):  # has a `model` of its own, without a head
        found = module
    else:
        attributes = (getattr(module, name, None) for name in ("draft", "model", "module"))
        found = next((one for one in attributes if isinstance(one, nn.Module)), module)
    found = found.module if isinstance(found, nn.parallel.DistributedDataParallel) else found
    if not isinstance(found, nn.Module) or not hasattr(found, "get_output_embeddings"):
        raise UserError(
            f"expected a language model in {find or 'draft or model'} of {type(module).__name__}, got "
            f"{type(found).__name__}: say where it is, draft='NAME' or draft=lambda module: ..."
        )
    return found


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _completed(given: Mapping[str, Any], rows: int, device: torch.device) -> dict[str, Tensor]:
    """A batch with all that is counted by; rows are distinguished by their `key`, or by how many came before.

    Raises:
        UserError: it has no ids.
    """
    if not isinstance(given, Mapping) or "input_ids" not in given:
        got = f"one with {', '.join(map(str, given))}" if isinstance(given, Mapping) else type(given).__name__
        raise UserError(f"data: expected batches with input_ids, got {got}: let its collate function make such")
    batch = {name: value.to(device) for name, value in given.items() if isinstance(value, Tensor)}
    ids_BT = batch["input_ids"]
    batch.setdefault("attention_mask", torch.ones_like(ids_BT))
    if "loss_mask" not in batch:
        batch["loss_mask"] = batch["labels"] >= 0 if "labels" in batch else batch["attention_mask"] > 0
    batch["loss_mask"] = batch["loss_mask"].bool() & (batch["attention_mask"] > 0)
    if "weight" in batch:  # 0 for rows that even out the processes
        batch["loss_mask"] &= batch["weight"][:, None] > 0
    batch.setdefault("key", torch.arange(rows, rows + len(ids_BT), device=device))
    return batch


def _batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, size: int
) -> Iterator[dict[str, Tensor]]:
    """Texts as batches of documents, padded on the right and cut."""
    marked = [Marked(text, [(0, len(text))], opened=True, closed=True) for text in texts]
    rows = [torch.from_numpy(each.ids[:max_length]).long() for each in Tokeniser(tokenizer).encode(marked)]
    first = 0
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids_BT = nn.utils.rnn.pad_sequence(part, batch_first=True)
        lengths_B = torch.tensor([len(row) for row in part], dtype=torch.int64)
        seen_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
        yield {"input_ids": ids_BT, "attention_mask": seen_BT, "key": torch.arange(first, first + len(part))}
        first += len(part)
