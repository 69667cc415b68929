"""The pair of an experiment: a frozen target outside the module tree and a trainable draft (floor 3)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.errors import UserError
from tempspec.interfaces import DraftHead, HeadModel
from tempspec.models.attention import use_attention
from tempspec.models.conditioning import is_conditioned
from tempspec.models.cutting import Spacing, first_layers
from tempspec.models.head_draft import (
    DraftModel,
    check_head_folder,
    make_head,
    refuse_head_folder,
    save_head,
    take_up_head,
)
from tempspec.models.loading import (
    DType,
    ModelOptions,
    cast_weights,
    check_vocabulary,
    load_config,
    load_draft,
    load_model,
    load_tokenizer,
    real_vocabulary,
    save_model,
)
from tempspec.models.quantised import quantised
from tempspec.models.ragged import check_rows

_NO_DRAFT = (
    "this needs a draft, got none: set model.draft to a folder or model.draft_layers to a number, or model.head to a "
    "kind of head"
)

Loaded = TypeVar("Loaded", PreTrainedModel, HeadModel, DraftModel)


@dataclass
class Pair:
    """Where target and draft come from; loads each once, on request.

    Args:
        target: folder or hub name.
        draft: folder or hub name, or None.
        draft_layers: make the draft from the target's first N layers instead.
        options: how to load them.
        spacing: which layers those are.
        width: the hidden size of such a draft; None keeps the target's.
        head: the kind of head that the draft is, new or from the folder `draft`; None for a language model.

    Raises:
        UserError: both or neither way of naming a draft where one is needed.
    """

    target: str
    draft: str | None
    draft_layers: int | None
    options: ModelOptions
    spacing: Spacing = "first"
    width: int | None = None
    head: DraftHead | None = None
    draft_in_memory: str = field(default="", init=False)
    """A digest of the draft's weights where no file has them: of one that was trained since it was loaded."""
    _references: dict[str, DraftModel] = field(default_factory=dict, repr=False)
    _device: torch.device = field(default=torch.device("cpu"), repr=False)
    _decoding: bool = field(default=False, repr=False)
    _ids_known: bool = field(default=True, repr=False)
    _own_dtype: torch.dtype | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse two drafts."""
        if self.draft is not None and self.draft_layers is not None:
            raise UserError("got both model.draft and model.draft_layers: name one of them")
        if self.head is not None and self.draft_layers is not None:
            raise UserError("got both model.head and model.draft_layers: name one of them")

    def hold(self, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Take a target that is loaded, and its tokenizer, instead of loading them."""
        vars(self)["target_model"] = target
        if tokenizer is not None:
            vars(self)["tokenizer"] = tokenizer

    def adopt(self, other: "Pair") -> None:
        """Take over the target and the tokenizer that another pair has loaded, where both name the same."""
        if (self.target, self.options) == (other.target, other.options):
            for name in ("tokenizer", "target_model", "vocabulary", "stop_ids"):
                if name in vars(other):
                    vars(self)[name] = vars(other)[name]
        if (self.draft, self.draft_layers, self.options) == (other.draft, other.draft_layers, other.options):
            self._own_dtype = other._own_dtype

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's tokenizer."""
        options = self.options
        return load_tokenizer(
            self.target, revision=options.target_revision, trust_remote_code=options.trust_remote_code
        )

    def check(self, *, needs_draft: bool) -> None:
        """Refuse names that lead to no model, and a draft of another tokenizer, without reading any weights.

        Args:
            needs_draft: whether a draft takes part; without, what names one is not looked at.

        Raises:
            UserError: saying which name, and why.
        """
        options = self.options
        load_config(self.target, revision=options.target_revision, trust_remote_code=options.trust_remote_code)
        if not needs_draft or self.draft_layers is not None:
            return
        if self.head is not None:
            check_head_folder(self.draft)
            return
        if self.draft is None:
            raise UserError(_NO_DRAFT)
        refuse_head_folder(self.draft)
        revision, trust = options.draft_revision, options.trust_remote_code
        load_config(self.draft, revision=revision, trust_remote_code=trust)
        draft = load_tokenizer(self.draft, revision=revision, trust_remote_code=trust)
        check_vocabulary(self.tokenizer, draft)

    def check_rows(self, length: int) -> None:
        """Refuse rows longer than either model's context, by their configurations alone.

        Raises:
            UserError: naming the model and its context.
        """
        revisions = (self.options.target_revision, self.options.draft_revision)
        for path, revision in zip((self.target, self.draft), revisions, strict=True):
            if path is None or (path == self.draft and self.head is not None):
                continue
            config = load_config(path, revision=revision, trust_remote_code=self.options.trust_remote_code)
            check_rows(path, config, length)

    def use(self, device: torch.device, *, decoding: bool) -> None:
        """Where models go and how they attend, from now on; those that are loaded already follow.

        Args:
            device: what they are loaded straight to.
            decoding: whether the engine calls them, or training and validation do.

        Raises:
            UserError: a model has no such attention.
        """
        self._device, self._decoding = device, decoding
        for model in (vars(self).get("target_model"), *self._references.values()):
            if model is not None:
                self.adapt(model)

    def adapt(self, model: Loaded) -> Loaded:
        """A model that was loaded before, moved and attending as `use` said; changed in place."""
        if isinstance(model, HeadModel):
            return model.to(self._device)
        use_attention(model, self.options.attention(decoding=self._decoding))
        # One that is quantised was loaded to its device, and some of that kind refuse to be moved.
        return model if model.device == self._device else model.to(self._device)

    @contextmanager
    def decode_with(self, *models: PreTrainedModel) -> Iterator[None]:
        """Let models attend as in decoding for a while, amid training."""
        for model in models:
            use_attention(model, self.options.attention(decoding=True))
        try:
            yield
        finally:
            for model in models:
                use_attention(model, self.options.attention(decoding=self._decoding))

    @cached_property
    def target_model(self) -> PreTrainedModel:
        """The target, in eval mode and without gradients, loaded straight to the device that `use` named."""
        options = self._options(self.options.dtype, self.options.target_revision)
        model = load_model(self.target, quantization=self.options.quantization, **options)
        if self.quantised is not None:
            rank_zero_info(f"the target is {self.quantised}: what is measured and written is of these weights")
        return model.requires_grad_(False)

    @cached_property
    def quantised(self) -> str | None:
        """How the target's weights are quantised, in words; None where they are not."""
        return quantised(self.target, self.options.quantization, self.options.target_revision)

    def load_draft(self, dtype: DType, ids_R: Tensor | None = None) -> DraftModel:
        """The draft, made or loaded; its weights are its own.

        Args:
            dtype: of its weights; `exported_dtype` knows afterwards what it came in.
            ids_R: the ids that a new head with a draft vocabulary may draft.

        Raises:
            UserError: no draft is named, its tokenizer is another one, or it is quantised and its dtype is to change.
        """
        if self.head is not None:
            return self._head(self.head, dtype, ids_R)
        draft = self._made_draft() if self.draft_layers is not None else self._named_draft()
        self._own_dtype = draft.dtype
        if dtype == "auto" or draft.dtype == getattr(torch, dtype):
            return draft
        if getattr(draft, "hf_quantizer", None) is not None:
            raise UserError(f"a draft that is quantised cannot be trained, got {self.draft}: begin with its original")
        return cast_weights(draft, getattr(torch, dtype))

    def _head(self, head: DraftHead, dtype: DType, ids_R: Tensor | None) -> HeadModel:
        """A head; one that is new comes in the target's dtype."""
        model = make_head(head, self.target_model, self.draft, ids_R)
        self._ids_known = ids_R is not None or self.draft is not None or head.draft_vocabulary is None
        own = self.target_model.dtype if self.draft is None else model.dtype
        self._own_dtype = own
        return model.to(own if dtype == "auto" else getattr(torch, dtype))

    def _made_draft(self) -> PreTrainedModel:
        assert self.draft_layers is not None
        source = self.target_model
        if self.options.quantization is not None:  # it is cut from the original, which is dropped at once
            source = load_model(
                self.target, **self._options(self.options.dtype, self.options.target_revision) | {"device": "cpu"}
            )
        draft = first_layers(source, self.draft_layers, spacing=self.spacing, width=self.width)
        return self.adapt(draft).requires_grad_(True)

    def _named_draft(self) -> PreTrainedModel:
        if self.draft is None:
            raise UserError(_NO_DRAFT)
        refuse_head_folder(self.draft)
        options = self.options
        check_vocabulary(
            self.tokenizer,
            load_tokenizer(self.draft, revision=options.draft_revision, trust_remote_code=options.trust_remote_code),
        )
        return load_draft(self.draft, **self._options(options.dtype, options.draft_revision))

    @property
    def exported_dtype(self) -> torch.dtype:
        """What a trained draft is saved in: what was asked for, else what it came in; known once it is loaded."""
        named = self.options.export_dtype if self.options.export_dtype != "auto" else self.options.dtype
        if named != "auto":
            return getattr(torch, named)
        assert self._own_dtype is not None
        return self._own_dtype

    def take_up_head(self, draft: HeadModel, checkpoint: dict[str, Any], *, fit: bool) -> None:
        """Let a head become a checkpoint's; outside of fit with the weights that its exported folder holds.

        Args:
            draft: changed in place.
            checkpoint: whose weights Lightning loads next; changed in place.
            fit: whether it is trained.
        """
        take_up_head(draft, checkpoint, None if fit else self.exported_dtype)
        self._ids_known = True

    def check_drafted_ids(self) -> None:
        """Refuse to use a new head of which nobody has said what it drafts.

        Raises:
            UserError: it is not known.
        """
        if not self._ids_known:
            raise UserError(
                "a new head's draft_vocabulary is made of its training text: run `tempspec fit` first, or name a "
                "trained head by model.draft"
            )

    def save_draft(self, draft: DraftModel, folder: Path, state: dict[str, Any] | None = None) -> None:
        """Write a draft's folder: a head's for engines, any other for `from_pretrained`, with the tokenizer.

        Args:
            draft: what is written, its weights rounded to `exported_dtype`.
            folder: where to; what is there is replaced in the last moment.
            state: the weights of a language model, where it holds only a part of them itself.
        """
        if isinstance(draft, HeadModel):
            assert self.head is not None
            save_head(self.head, draft, self.target_model, folder, self.exported_dtype)
        else:
            save_model(draft, self.tokenizer, folder, state, self.exported_dtype)

    def rows_of_output(self, folder: Path) -> tuple[int, int]:
        """`vocab_size` of a draft that was saved in a folder, and of the target: padding included."""
        options = self.options
        target = load_config(self.target, revision=options.target_revision, trust_remote_code=options.trust_remote_code)
        draft = load_config(str(folder), trust_remote_code=options.trust_remote_code)
        return draft.get_text_config().vocab_size, target.get_text_config().vocab_size

    def remember(self, draft: DraftModel) -> None:
        """Know a draft by its weights as they are in memory, from now on."""
        digest = hashlib.sha256()
        for name, value in sorted(draft.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.draft_in_memory = digest.hexdigest()[:32]

    def reference_model(self, path: str) -> DraftModel:
        """Another draft of the same kind to compare with, frozen, loaded once.

        Raises:
            UserError: there is none, its tokenizer is another one, or it is conditioned on the temperature.
        """
        if path not in self._references:
            model = self._other_draft(path)
            if is_conditioned(model):
                raise UserError(
                    f"selection.reference expected an ordinary draft, got {path}, which is conditioned on the "
                    "temperature: merge it with `tempspec export`"
                )
            self._references[path] = model.requires_grad_(False)
        return self._references[path]

    def _other_draft(self, path: str) -> DraftModel:
        if self.head is not None:
            check_head_folder(path, "selection.reference")
            return make_head(self.head, self.target_model, path, None).eval()
        trust = self.options.trust_remote_code
        check_vocabulary(self.tokenizer, load_tokenizer(path, trust_remote_code=trust))
        return load_draft(path, **self._options(self.options.dtype, None))

    def _options(self, dtype: DType, revision: str | None) -> dict[str, Any]:
        """How one of the models is loaded."""
        return {
            "dtype": dtype,
            "attn_implementation": self.options.attention(decoding=self._decoding),
            "device": self._device,
            "revision": revision,
            "trust_remote_code": self.options.trust_remote_code,
        }

    @cached_property
    def vocabulary(self) -> int:
        """The number of real ids."""
        return real_vocabulary(self.tokenizer, self.target_model)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a sequence, by the target's generation config and its tokenizer."""
        eos = self.target_model.generation_config.eos_token_id
        ids = [*(eos if isinstance(eos, list) else [eos]), self.tokenizer.eos_token_id]
        return frozenset(token for token in ids if token is not None)
