"""A pair of `transformers` causal language models from folders or hub names, and back to a folder (floor 3).

Whatever a path can be wrong in ends in one `UserError` line. Only safetensors are read, no code of a model's author is
run unless asked, and a hub name without network is answered at once instead of after a minute of retries.
"""

import copy
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tempspec.errors import UserError
from tempspec.models.conditioning import FILE, load_conditioning, plain_state, save_conditioning

__all__ = [
    "HUB_SECONDS",
    "ModelOptions",
    "check_vocabulary",
    "first_layers",
    "load_config",
    "load_draft",
    "load_model",
    "load_tokenizer",
    "real_vocabulary",
    "save_model",
]

logger = logging.getLogger(__name__)

DType = Literal["auto", "float32", "bfloat16", "float16"]
Spacing = Literal["first", "even"]

HUB_SECONDS = 10.0
"""How long the hub may take to say that a name exists before only the local cache is tried."""


@dataclass
class ModelOptions:
    """How the models of a pair are loaded.

    Attributes:
        dtype: `auto` keeps each checkpoint's own.
        attn_implementation: the attention implementation, by transformers' name.
        target_revision: branch, tag or commit of the target on the hub.
        draft_revision: branch, tag or commit of the draft on the hub.
        trust_remote_code: run the Python code that a model's folder or repository carries.
        shard_target: in training and validation, spread the frozen target's layers over all processes instead of
            holding it whole on each.
    """

    dtype: DType = "auto"
    attn_implementation: str = "sdpa"
    target_revision: str | None = None
    draft_revision: str | None = None
    trust_remote_code: bool = False
    shard_target: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Where a path leads
# ---------------------------------------------------------------------------------------------------------------------


def _looks_local(path: str) -> bool:
    """Whether `path` can only mean a folder: a hub name is `name` or `organisation/name`."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path or path.endswith("/")


def _folder(path: str) -> str | None:
    """The folder that `path` names, or None for a hub name.

    Raises:
        UserError: it can only be a folder, and there is none, or it is a file.
    """
    folder = Path(path).expanduser()
    if path and folder.is_dir():
        return str(folder)
    if folder.is_file():
        raise UserError(f"{path} is a file; expected a folder written by save_pretrained, or a hub name")
    if not path or _looks_local(path):
        raise UserError(f"no such folder: {path!r}; expected a folder written by save_pretrained, or a hub name")
    return None


def _hub_is_silent(name: str, revision: str | None) -> bool:
    """Whether only the local cache can be used; asks the hub once, quickly.

    Raises:
        UserError: the hub answers that there is no such model, no such revision, or no permission.
    """
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)
    except GatedRepoError as error:
        raise UserError(f"{name} needs permission: accept its terms on the hub, then run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no revision {revision!r} on the hub; expected a branch, a tag or a commit"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"no folder and no hub model called {name!r}; check the spelling, or run `hf auth login` if it is private"
        ) from error
    except Exception as error:  # the transport's errors have no common base across versions: no network, proxy, timeout
        logger.debug("the hub did not answer: %s", error)
        return True
    return False


@dataclass(frozen=True)
class _Place:
    """Where to load from: `from_pretrained`'s own arguments."""

    path: str
    revision: str | None
    local_files_only: bool
    trust_remote_code: bool

    def arguments(self) -> dict[str, object]:
        """The keyword arguments."""
        return {
            "revision": self.revision,
            "local_files_only": self.local_files_only,
            "trust_remote_code": self.trust_remote_code,
        }


def _place(path: str, revision: str | None, trust_remote_code: bool) -> _Place:
    """Resolve `path`; see `_folder` and `_hub_is_silent` for the errors."""
    if trust_remote_code:
        logger.warning("trust_remote_code is on: Python code that %s carries may run", path)
    folder = _folder(path)
    if folder is not None:
        return _Place(folder, None, True, trust_remote_code)
    return _Place(path, revision, _hub_is_silent(path, revision), trust_remote_code)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers' reports and bars off the screen."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


_LOADING = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    ImportError,
    TypeError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises over a folder that is not what it says."""


@contextmanager
def _one_line(what: str, place: _Place) -> Iterator[None]:
    """Turn whatever loading can raise into one line."""
    try:
        with _silence():
            yield
    except _LOADING as error:
        raise UserError(f"cannot load a {what} from {place.path}: {_reason(error, place)}") from error


def _reason(error: Exception, place: _Place) -> str:
    """The first line of an error, or what it means where transformers says it at length."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, StrictDataclassError):
        return " ".join(text.split())
    if place.local_files_only and not Path(place.path).is_dir():
        return "there is no such folder, it is not in the local cache, and the hub cannot be reached; give a folder"
    if isinstance(error, OSError):
        hidden = [file.name for file in Path(place.path).glob("*.safetensors") if not os.access(file, os.R_OK)]
        if hidden:  # which safetensors and transformers call missing
            return f"{hidden[0]} is there but cannot be read: change its permissions, or mend the link that it is"
    if "trust_remote_code" in text:
        return "it needs code of its author's; read that code, then set trust_remote_code: true"
    if "ignore_mismatched_sizes" in text:
        return "its weights have other shapes than its config.json says: a checkpoint of another model"
    if "Unrecognized configuration class" in text:
        return "it is not a causal language model"
    if "backend tokenizer" in text:
        return "it holds no tokenizer; expected tokenizer.json"
    return text.splitlines()[0].rstrip(".")


# ---------------------------------------------------------------------------------------------------------------------
# Loading and saving
# ---------------------------------------------------------------------------------------------------------------------


def load_config(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a folder or hub name; arguments and errors as in `load_model`."""
    place = _place(path, revision, trust_remote_code)
    with _one_line("model", place):
        return AutoConfig.from_pretrained(place.path, **place.arguments())


def load_model(
    path: str,
    *,
    dtype: DType = "auto",
    attn_implementation: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model in eval mode, on the CPU.

    Args:
        path: a folder written by `save_pretrained`, or a hub name.
        dtype: of the weights; `auto` keeps the checkpoint's.
        attn_implementation: the attention implementation, by transformers' name.
        revision: branch, tag or commit on the hub; ignored for a folder.
        trust_remote_code: run the model author's code.

    Raises:
        UserError: no such folder or model, no network, not a causal language model, weights missing or of other shapes.
    """
    return _model(_place(path, revision, trust_remote_code), dtype, attn_implementation)


def load_draft(
    path: str,
    *,
    dtype: DType = "auto",
    attn_implementation: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """As `load_model`, but conditioned on the temperature if it was saved so; arguments and errors as there."""
    place = _place(path, revision, trust_remote_code)
    model = _model(place, dtype, attn_implementation)
    with _one_line("model", place):
        folder = _conditioning(place)
        return model if folder is None else load_conditioning(model, folder)


def _model(place: _Place, dtype: DType, attn_implementation: str) -> PreTrainedModel:
    """See `load_model`."""
    with _one_line("model", place):
        config = AutoConfig.from_pretrained(place.path, **place.arguments())
        if config.is_encoder_decoder or getattr(config, "is_decoder", True) is False:
            raise ValueError(f"a {config.model_type} is not a causal language model")
        model, report = AutoModelForCausalLM.from_pretrained(
            place.path,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **place.arguments(),
        )
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(
                f"its weights lack {len(missing)} tensors that its config.json asks for, such as {missing[0]}: "
                "a checkpoint of another model"
            )
    return model.eval()


def _conditioning(place: _Place) -> str | Path | None:
    """The folder where a draft's conditioning would lie; a hub model's is fetched, None if it has none."""
    if Path(place.path).is_dir():
        return place.path
    local = place.local_files_only
    try:
        return Path(hf_hub_download(place.path, FILE, revision=place.revision, local_files_only=local)).parent
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError) and not local:
            raise  # the hub fell silent: whether it has the file is not known
        return None


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub name.

    Args:
        path: a folder written by `save_pretrained`, or a hub name.
        revision: branch, tag or commit on the hub; ignored for a folder.
        trust_remote_code: run the tokenizer author's code.

    Raises:
        UserError: no such folder or model, no network, no tokenizer in it.
    """
    place = _place(path, revision, trust_remote_code)
    with _one_line("tokenizer", place):
        return AutoTokenizer.from_pretrained(place.path, **place.arguments())


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    state: dict[str, Any] | None = None,
) -> None:
    """Write a `save_pretrained` folder (safetensors, tokenizer included) whole or not at all.

    A folder that is there already is replaced in the last moment: an interruption leaves the old or the new one.

    Args:
        model: the model.
        tokenizer: written beside it unless None.
        folder: the folder to write.
        state: its weights, where the model itself holds only a part of them.
    """
    folder = Path(folder).resolve()
    fresh, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    with _silence():
        model.save_pretrained(fresh, state_dict=plain_state(model) if state is None else state)
        save_conditioning(model, fresh)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
    for weights in fresh.glob("*.safetensors"):  # safetensors lets nobody else read them, whatever the umask
        shutil.copymode(fresh / "config.json", weights)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# Drafts and vocabularies
# ---------------------------------------------------------------------------------------------------------------------


def first_layers(
    target: PreTrainedModel,
    count: int,
    *,
    spacing: Spacing = "first",
    width: int | None = None,
    option: str = "draft_layers",
    share: bool = False,
) -> PreTrainedModel:
    """A model of some of the target's layers, on its device, with its embeddings, norm and head.

    Args:
        target: a causal language model whose config counts its layers in `num_hidden_layers`.
        count: 1 to the target's own number of layers.
        spacing: the `first` layers, or layers spread `even`ly from the first to the last.
        width: the hidden size; a narrower model takes the leading part of every weight, with heads of the same size.
        option: what the user calls `count`.
        share: hold the target's own weights, first layers in full width, instead of copies: for decoding, not training.

    Raises:
        UserError: `count` or `width` is out of range, or the architecture cannot be cut this way.
    """
    layers = target.config.num_hidden_layers
    if not 1 <= count <= layers:
        raise UserError(f"{option} must be 1 to {layers}, the target's number of layers, got {count}")
    chosen = list(range(count)) if spacing == "first" else _even(count, layers)
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = count
    for name, values in _lists_by_layer(target.config):
        setattr(config, name, [values[layer] for layer in chosen])
    weights = target.state_dict()
    if width is not None and width != config.hidden_size:
        _narrow(config, width, list(weights))
    with torch.device("meta") if share else target.device:
        draft = AutoModelForCausalLM.from_config(
            config, dtype=target.dtype, attn_implementation=target.config._attn_implementation
        )
    source = {
        name: _LAYER.sub(lambda found: f"{found[1]}{chosen[int(found[2])]}.", name) for name in draft.state_dict()
    }
    missing = [name for name, origin in source.items() if origin not in weights]
    if missing:
        raise UserError(f"a {config.model_type} cannot be cut to some of its layers ({missing[0]} has no counterpart)")
    chosen_weights = {
        name: weights[source[name]][tuple(map(slice, value.shape))] for name, value in draft.state_dict().items()
    }
    draft.load_state_dict(chosen_weights, assign=share)
    if share:
        _share_buffers(draft, target)
    draft.generation_config = copy.deepcopy(target.generation_config)
    return draft.eval()


def _share_buffers(draft: PreTrainedModel, target: PreTrainedModel) -> None:
    """Give a draft of the target's first layers the buffers that are in no state dict, such as rotary frequencies."""
    held = draft.state_dict()
    for name, _ in list(draft.named_buffers()):
        if name not in held:
            path, _, own = name.rpartition(".")
            draft.get_submodule(path).register_buffer(own, target.get_buffer(name), persistent=False)
    draft.requires_grad_(False)


_LAYER = re.compile(r"(\.(?:layers|h|blocks)\.)(\d+)\.")
_FUSED = ("c_attn", "qkv", "query_key_value", "gate_up_proj", "W_pack")


def _even(count: int, layers: int) -> list[int]:
    """Numbers of layers spread evenly, the first and the last among them; the first alone if one is asked for.

    >>> _even(3, 12), _even(1, 12), _even(2, 5)
    ([0, 6, 11], [0], [0, 4])
    """
    return [(2 * place * (layers - 1) + count - 1) // (2 * max(count - 1, 1)) for place in range(count)]


def _lists_by_layer(config: PreTrainedConfig) -> Iterator[tuple[str, Sequence[Any]]]:
    """The entries of a config that have a value for every layer; ids of tokens may only happen to be as many."""
    for name, values in vars(config).items():
        if isinstance(values, list | tuple) and len(values) == config.num_hidden_layers and not name.endswith("_id"):
            yield name, values


def _narrow(config: PreTrainedConfig, width: int, names: list[str]) -> None:
    """Scale the sizes of a config down with the hidden size, in whole heads of the same size."""
    whole, heads = config.hidden_size, config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or whole // heads
    fused = next((name for name in names if any(part in name for part in _FUSED)), None)
    if fused is not None or not hasattr(config, "intermediate_size"):
        raise UserError(
            f"a {config.model_type} cannot be narrowed: {fused or 'its sizes'} cannot be cut; drop draft_width"
        )
    fewer, fewer_groups = heads * width // whole, max(groups * width // whole, 1)
    if not 0 < width < whole or fewer < 1 or fewer * whole != heads * width or fewer % fewer_groups:
        raise UserError(
            f"draft_width must leave whole heads of the target's {heads} over {whole}, got {width}: "
            f"take a multiple of {whole // heads} below {whole}"
        )
    config.hidden_size, config.head_dim = width, size
    config.num_attention_heads, config.num_key_value_heads = fewer, fewer_groups
    config.intermediate_size = max(config.intermediate_size * width // whole, 1)


def real_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """The number of ids that mean something: the tokenizer's largest + 1, at most the size of the model's head.

    Heads are often padded to a round number; the ids behind the last real one must never be sampled.
    """
    return min(max(tokenizer.get_vocab().values()) + 1, model.get_output_embeddings().weight.shape[0])


def check_vocabulary(target_tokenizer: PreTrainedTokenizerBase, draft_tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a pair whose token ids mean different things.

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
    examples = ", ".join(f"{t!r} ({_id(target, t)} and {_id(draft, t)})" for t in differing[:3])
    raise UserError(
        f"target and draft need one tokenizer, but {len(differing)} tokens differ (target's id and draft's): "
        f"{examples}; choose a draft of the target's family, or make one from the target's first layers"
    )


def _id(vocabulary: dict[str, int], token: str) -> str:
    """A token's id in words."""
    return str(vocabulary[token]) if token in vocabulary else "none"
