"""The pair of an experiment: a frozen target outside the module tree and a trainable draft (floor 5)."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tempspec.errors import UserError
from tempspec.models.conditioning import is_conditioned
from tempspec.models.loading import (
    DType,
    ModelOptions,
    Spacing,
    check_vocabulary,
    first_layers,
    load_config,
    load_draft,
    load_model,
    load_tokenizer,
    real_vocabulary,
)
from tempspec.models.ragged import context_length

_NO_DRAFT = "this needs a draft, got none: set model.draft to a folder or model.draft_layers to a number"


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

    Raises:
        UserError: both or neither way of naming a draft where one is needed.
    """

    target: str
    draft: str | None
    draft_layers: int | None
    options: ModelOptions
    spacing: Spacing = "first"
    width: int | None = None
    _references: dict[str, PreTrainedModel] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse two drafts."""
        if self.draft is not None and self.draft_layers is not None:
            raise UserError("got both model.draft and model.draft_layers: name one of them")

    def adopt(self, other: "Pair") -> None:
        """Take over the target and the tokenizer that another pair has loaded, where both name the same."""
        if (self.target, self.options) == (other.target, other.options):
            for name in ("tokenizer", "target_model", "vocabulary", "stop_ids"):
                if name in vars(other):
                    vars(self)[name] = vars(other)[name]

    @property
    def has_draft(self) -> bool:
        """Whether a draft is named at all."""
        return self.draft is not None or self.draft_layers is not None

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
        if self.draft is None:
            raise UserError(_NO_DRAFT)
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
            if path is None:
                continue
            config = load_config(path, revision=revision, trust_remote_code=self.options.trust_remote_code)
            if length > (context := context_length(config)):
                raise UserError(
                    f"data.max_length is {length}, but {path} was made for at most {context} positions: lower it"
                )

    @cached_property
    def target_model(self) -> PreTrainedModel:
        """The target, in eval mode and without gradients."""
        model = load_model(self.target, **self._options(self.options.dtype, self.options.target_revision))
        return model.requires_grad_(False)

    def load_draft(self, dtype: DType) -> PreTrainedModel:
        """The draft, made or loaded; its weights are its own.

        Raises:
            UserError: no draft is named, or its tokenizer is another one.
        """
        if self.draft_layers is not None:
            draft = first_layers(self.target_model, self.draft_layers, spacing=self.spacing, width=self.width)
            draft = draft.requires_grad_(True)
            return draft if dtype == "auto" else draft.to(getattr(torch, dtype))
        if self.draft is None:
            raise UserError(_NO_DRAFT)
        options = self.options
        check_vocabulary(
            self.tokenizer,
            load_tokenizer(self.draft, revision=options.draft_revision, trust_remote_code=options.trust_remote_code),
        )
        return load_draft(self.draft, **self._options(dtype, options.draft_revision))

    def reference_model(self, path: str) -> PreTrainedModel:
        """Another draft to compare with, frozen, loaded once.

        Raises:
            UserError: there is none, its tokenizer is another one, or it is conditioned on the temperature.
        """
        if path not in self._references:
            trust = self.options.trust_remote_code
            check_vocabulary(self.tokenizer, load_tokenizer(path, trust_remote_code=trust))
            model = load_draft(path, **self._options(self.options.dtype, None))
            if is_conditioned(model):
                raise UserError(
                    f"selection.reference expected an ordinary draft, got {path}, which is conditioned on the "
                    "temperature: fold it with `tempspec export`"
                )
            self._references[path] = model.requires_grad_(False)
        return self._references[path]

    def _options(self, dtype: DType, revision: str | None) -> dict[str, Any]:
        """How one of the models is loaded."""
        return {
            "dtype": dtype,
            "attn_implementation": self.options.attn_implementation,
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


def common_ids(logits_p: Tensor, logits_q: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Both heads cut to the real ids that both have, for losses: padding carries no mass, `[..., V]` each.

    Decoding never does this to the target: there the ids that the draft lacks get zero draft mass instead.
    """
    common = min(logits_p.shape[-1], logits_q.shape[-1], vocabulary)
    return logits_p[..., :common], logits_q[..., :common]
