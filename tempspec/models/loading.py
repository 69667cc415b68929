"""Load and save a model, a draft, a tokenizer; whether two vocabularies agree (floor 3).

Whatever a path can be wrong in ends in one `UserError` line. Only safetensors and GGUF files are read, no code of a
model's author is run unless asked, and a hub name without network is answered at once.
"""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import Parameter
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.quantizers import AutoQuantizationConfig

from tempspec.errors import UserError
from tempspec.files import replacing_folder
from tempspec.interfaces import Exact
from tempspec.models.attention import check_takes_masks, use_attention
from tempspec.models.conditioning import FILE, load_conditioning, plain_state, save_conditioning
from tempspec.models.hub import Place, one_line, place, silence

__all__ = [
    "DType",
    "ModelOptions",
    "cast_weights",
    "check_vocabulary",
    "load_config",
    "load_draft",
    "load_model",
    "load_tokenizer",
    "real_vocabulary",
    "round_as_exported",
    "save_model",
    "vocabulary_of_config",
    "weights_of",
]

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class ModelOptions:
    """How the models of a pair are loaded, and how a trained draft is saved.

    Attributes:
        dtype: of both models' weights; `auto` keeps each checkpoint's own, float32 for a GGUF file that is quantised.
        export_dtype: of the draft that fit leaves; `auto` is what the draft came in: `dtype` where that is named, else
            its folder's own, or the target's for a draft made of its layers.
        attn_implementation: the attention implementation, by transformers' name; null leaves it to each model.
        decoding_attn_implementation: the same of predict, generate and text that is written while training, whose
            masks flash attention cannot take; null is `attn_implementation`.
        quantization: quantise the target while it is loaded: the entries of one of transformers' quantization
            configurations, such as `{quant_method: bitsandbytes, load_in_4bit: true}`; null loads it as it is.
        target_revision: branch, tag or commit of the target on the hub.
        draft_revision: branch, tag or commit of the draft on the hub.
        trust_remote_code: run the Python code that a model's folder or repository carries.
        shard_target: in training and validation, spread the frozen target's layers over all processes instead of
            holding it whole on each.
    """

    dtype: DType = "auto"
    export_dtype: DType = "auto"
    attn_implementation: str | None = None
    decoding_attn_implementation: str | None = None
    quantization: dict[str, Any] | None = None
    target_revision: str | None = None
    draft_revision: str | None = None
    trust_remote_code: bool = False
    shard_target: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UserError: decoding by an attention that takes no masks, or a quantised target in parts.
        """
        if self.decoding_attn_implementation is not None:
            check_takes_masks(self.decoding_attn_implementation)
        if self.quantization is not None and self.shard_target:
            raise UserError("a target that is quantised cannot be spread: set loading.shard_target: false")

    def attention(self, *, decoding: bool) -> str | None:
        """The attention implementation of a stage; None leaves it to the model.

        Args:
            decoding: whether the engine calls the models, or training and validation do.

        Raises:
            UserError: the engine would call an attention that takes no masks.
        """
        if not decoding:
            return self.attn_implementation
        name = self.decoding_attn_implementation or self.attn_implementation
        if name is not None:
            check_takes_masks(name)
        return name


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def load_config(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model; arguments and errors as in `load_model`."""
    found = place(path, revision, trust_remote_code)
    with one_line("model", found):
        return _read(AutoConfig.from_pretrained, found)


def load_model(
    path: str,
    *,
    dtype: DType = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """A causal language model in eval mode, loaded straight to a device.

    Args:
        path: a folder written by `save_pretrained`, a GGUF file or a folder with one, a hub name, or
            `hub/name:file.gguf`. The weights of a GGUF file are dequantised.
        dtype: of the weights; `auto` keeps the checkpoint's, float32 for a GGUF file that is quantised.
        attn_implementation: the attention implementation, by transformers' name; None is the model's own default.
        revision: branch, tag or commit on the hub; ignored for a folder.
        trust_remote_code: run the model author's code.
        quantization: quantise it so, by the entries of one of transformers' quantization configurations.
        device: where to.

    Raises:
        UserError: no such folder or model, no network, not a causal language model, weights missing or of other shapes,
            a package that is not installed.
    """
    found = place(path, revision, trust_remote_code)
    return _model(found, dtype, attn_implementation, quantization, device)


def load_draft(
    path: str,
    *,
    dtype: DType = "auto",
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """As `load_model`, but conditioned on the temperature if it was saved so; arguments and errors as there."""
    found = place(path, revision, trust_remote_code)
    model = _model(found, dtype, attn_implementation, None, device)
    with one_line("model", found):
        folder = _conditioning(found)
        return model if folder is None else load_conditioning(model, folder)


def _model(
    found: Place,
    dtype: DType,
    attn_implementation: str | None,
    quantization: Mapping[str, Any] | None,
    device: torch.device | str,
) -> PreTrainedModel:
    """See `load_model`."""
    with one_line("model", found):
        config = _read(AutoConfig.from_pretrained, found)
        if config.is_encoder_decoder or getattr(config, "is_decoder", True) is False:
            raise ValueError(f"a {config.model_type} is not a causal language model")
        model, report = AutoModelForCausalLM.from_pretrained(
            found.path,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map={"": torch.device(device)},
            use_safetensors=True,
            output_loading_info=True,
            **_quantization(found, quantization),
            **found.arguments(),
        )
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(
                f"its weights lack {len(missing)} tensors that its config.json asks for, such as {missing[0]}: "
                "a checkpoint of another model"
            )
    use_attention(model, attn_implementation)
    return model.eval()


def _read(load: Callable[..., Any], found: Place) -> Any:
    """A configuration or a tokenizer. Parsing those of a GGUF file takes seconds, and is done once in a process."""
    if found.gguf is None:
        return load(found.path, **found.arguments())
    file = Path(found.path) / found.gguf
    stamp = (file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None
    return copy.deepcopy(_parsed(load, found, stamp))


@lru_cache(maxsize=8)
def _parsed(load: Callable[..., Any], found: Place, stamp: tuple[int, int] | None) -> Any:
    return load(found.path, **found.arguments())


def _quantization(found: Place, asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `from_pretrained` is told of quantised weights."""
    if found.gguf is not None:
        if asked is not None:
            raise ValueError("it is a GGUF file, which is dequantised: drop loading.quantization")
        # Versions of transformers without this class dequantise always.
        known = getattr(transformers, "GgufConfig", None)
        return {} if known is None else {"quantization_config": known(dequantize=True)}
    if asked is None:
        return {}
    try:
        return {"quantization_config": AutoQuantizationConfig.from_dict(dict(asked))}
    except AssertionError as error:
        raise ValueError(f"loading.quantization is no configuration of transformers: {error}") from error


def _conditioning(found: Place) -> str | Path | None:
    """The folder where a draft's conditioning would lie; a hub model's is fetched, None if it has none."""
    if found.gguf is not None:
        return None
    if Path(found.path).is_dir():
        return found.path
    local = found.local_files_only
    try:
        return Path(hf_hub_download(found.path, FILE, revision=found.revision, local_files_only=local)).parent
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and not local:
            raise  # the hub fell silent: whether it has the file is not known
        return None


def load_tokenizer(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a folder, a hub name, or a GGUF file that has none beside it.

    Args:
        path: as in `load_model`.
        revision: branch, tag or commit on the hub; ignored for a folder.
        trust_remote_code: run the tokenizer author's code.

    Raises:
        UserError: no such folder or model, no network, no tokenizer in it.
    """
    found = place(path, revision, trust_remote_code, tokenizer=True)
    with one_line("tokenizer", found):
        return _read(AutoTokenizer.from_pretrained, found)


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Round or widen a model's weights in place, as if it had been loaded so; returned.

    Buffers stay as they are: what `Module.to` would make of rotary frequencies is not what loading gives.
    """
    for _, parameter in weights_of(model):
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def weights_of(model: torch.nn.Module) -> Iterator[tuple[str, Parameter]]:
    """A model's parameters by all their names, without numbers of ours that keep their own dtype (`Exact`)."""
    exact = {id(one) for part in model.modules() if isinstance(part, Exact) for one in part.parameters()}
    return ((name, one) for name, one in model.named_parameters(remove_duplicate=False) if id(one) not in exact)


# ---------------------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------------------


def save_model(
    model: PreTrainedModel,
    tokenizer: Tokenizer | None,
    folder: str | Path,
    state: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a `save_pretrained` folder (safetensors, tokenizer included) whole or not at all.

    A folder that is there already is replaced in the last moment: an interruption leaves the old or the new one.

    Args:
        model: the model.
        tokenizer: written beside it unless None.
        folder: the folder to write.
        state: its weights, where the model itself holds only a part of them.
        dtype: what the weights are rounded to, once; None keeps the model's.
    """
    state = plain_state(model) if state is None else state
    with replacing_folder(Path(folder)) as fresh, silence():
        model.save_pretrained(fresh, state_dict=state if dtype is None else _rounded(state, dtype))
        if dtype is not None and dtype != model.dtype:  # save_pretrained writes the model's own
            config = copy.deepcopy(model.config)
            config.dtype = dtype
            config.save_pretrained(fresh)
        save_conditioning(model, fresh)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        for weights in fresh.glob("*.safetensors"):  # safetensors lets nobody else read them, whatever the umask
            shutil.copymode(fresh / "config.json", weights)


def _rounded(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point weights in another dtype; names that share a tensor still do, and it is written once."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    for value in state.values():
        made.setdefault((value.data_ptr(), value.shape), value.to(dtype) if value.is_floating_point() else value)
    return {name: made[value.data_ptr(), value.shape] for name, value in state.items()}


def round_as_exported(
    draft: PreTrainedModel, state: dict[str, Tensor], dtype: torch.dtype, options: ModelOptions
) -> None:
    """Make a training checkpoint's draft what its exported folder holds: weights rounded, and the dtype its own.

    Args:
        draft: the model that takes the weights; its dtype changes.
        state: a checkpoint's `state_dict`, changed in place.
        dtype: what the draft is exported in.
        options: whose `dtype` wins where it is named.
    """
    for name in (f"draft.{name}" for name, _ in weights_of(draft)):
        if name in state:
            state[name] = state[name].to(dtype)
    if options.dtype == "auto" and draft.dtype != dtype:
        cast_weights(draft, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Vocabularies
# ---------------------------------------------------------------------------------------------------------------------


def real_vocabulary(tokenizer: Tokenizer, model: PreTrainedModel) -> int:
    """The number of ids that mean something: the tokenizer's largest + 1, at most the size of the model's head.

    Heads are often padded to a round number; the ids after the last real one must never be sampled.
    """
    return _real(tokenizer, model.get_output_embeddings().weight.shape[0])


def vocabulary_of_config(tokenizer: Tokenizer, config: PreTrainedConfig) -> int:
    """`real_vocabulary` of a model whose configuration alone is here."""
    return _real(tokenizer, config.get_text_config().vocab_size)


def _real(tokenizer: Tokenizer, head: int) -> int:
    return min(max(tokenizer.get_vocab().values()) + 1, head)


def check_vocabulary(target_tokenizer: Tokenizer, draft_tokenizer: Tokenizer) -> None:
    """Refuse a pair whose token ids mean different things; say in one line where one side has more of them.

    An id that the target lacks is never emitted. One that the draft lacks is never drafted.

    Raises:
        UserError: naming the first tokens that differ, with both ids.
    """
    target, draft = target_tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    differing = sorted(
        (token for token in target.keys() | draft.keys() if target.get(token) != draft.get(token)),
        key=lambda token: (target.get(token, len(target)), token),
    )
    if not differing:
        return
    if all(_free(token, draft, target) or _free(token, target, draft) for token in differing):
        more, other = ("draft", "target") if differing[0] in draft else ("target", "draft")
        named = ", ".join(repr(token) for token in differing[:3])
        rank_zero_info(f"the {more}'s tokenizer has {len(differing)} more than the {other}'s ({named}): never drafted")
        return
    examples = ", ".join(f"{t!r} ({_id(target, t)} and {_id(draft, t)})" for t in differing[:3])
    raise UserError(
        f"target and draft need one tokenizer, but {len(differing)} tokens differ (target's id and draft's): "
        f"{examples}; choose a draft of the target's family, or make one from the target's first layers"
    )


def _free(token: str, own: dict[str, int], other: dict[str, int]) -> bool:
    """Whether only one vocabulary has a token, at an id that the other does not use."""
    return token in own and token not in other and own[token] not in other.values()


def _id(vocabulary: dict[str, int], token: str) -> str:
    """A token's id in words."""
    return str(vocabulary[token]) if token in vocabulary else "none"
