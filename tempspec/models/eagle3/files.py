"""EAGLE-3 heads on disk: the plain format of vLLM and SGLang, and that of speculators (floor 3).

Read here: `config.json` and safetensors of one folder. Axes: H hidden, V vocabulary, R the head's own.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tempspec.core.vocabulary import differences, from_differences, members
from tempspec.errors import UserError
from tempspec.interfaces import HeadTarget
from tempspec.models.conditioning import FILE as CONDITIONING
from tempspec.models.eagle3.config import Eagle3Config, default_states
from tempspec.models.eagle3.network import Eagle3Model

__all__ = ["ARCHITECTURES", "FORMATS", "HeadFolder", "is_head_folder", "read_folder", "read_head", "write_head"]

FORMATS = ("plain", "speculators")
"""`plain` is read by vLLM and SGLang, `speculators` by vLLM alone."""

ARCHITECTURES = {False: ("LlamaForCausalLMEagle3",), True: ("Eagle3Speculator", "Eagle3DraftModel")}
"""The names by which engines know an EAGLE-3 head: of the plain format, and of that of speculators."""

EMBEDDING, OUTPUT = "embed_tokens.weight", "lm_head.weight"
STATE_IDS = "eagle_aux_hidden_state_layer_ids"
_FILE = "model.safetensors"
_DRAFTED = 5
"""Tokens per round that a file of speculators proposes to the engine."""
UNREAD = ("norm_before_fc", "fc_norm")
"""Options of speculators that change the network, and are not read here."""


class HeadFolder:
    """What a head's folder says, before it is held to a target.

    Args:
        config: the content of `config.json`.
        tensors: the tensors, by the plain format's names.

    Attributes:
        speculators: whether it is in the format of speculators.
    """

    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.config, self.tensors = config, tensors
        self.speculators = "transformer_layer_config" in config

    @property
    def named_states(self) -> tuple[int, ...] | None:
        """The states that the file names, as `HeadModel` numbers them; None where it leaves them to the default."""
        if self.config.get(STATE_IDS):
            return tuple(self.config[STATE_IDS])
        shifted = (self.config.get("eagle_config") or {}).get(STATE_IDS)
        return tuple(one + 1 for one in shifted) if shifted else None

    def ids(self) -> Tensor | None:
        """The target's ids that it can draft, ascending; None for all."""
        return from_differences(self.tensors["d2t"].long()) if "d2t" in self.tensors else None


def plain_name(name: str) -> str:
    """A tensor's name in the plain format: `model.` may precede it, `midlayer.` for `layers.0.`.

    >>> plain_name("model.midlayer.hidden_norm.weight"), plain_name("d2t")
    ('layers.0.hidden_norm.weight', 'd2t')
    """
    name = name.removeprefix("model.")
    return "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name


def is_head_folder(folder: Path) -> bool:
    """Whether a folder's `config.json` calls it an EAGLE-3 head."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False
    return bool({*ARCHITECTURES[False], *ARCHITECTURES[True]} & set(named))


def read_folder(folder: Path) -> HeadFolder:
    """A head's folder as it is.

    Raises:
        UserError: there is no such folder, or it holds no `config.json` and safetensors of a head.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        files = sorted(file for file in folder.glob("*.safetensors") if file.name != CONDITIONING)
        tensors = {plain_name(name): value for file in files for name, value in load_file(file).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} holds no EAGLE-3 head: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict) or "fc.weight" not in tensors:
        raise UserError(
            f"{folder} holds no EAGLE-3 head: expected a config.json and safetensors with fc.weight; name the folder "
            "of the head itself"
        )
    return HeadFolder(config, tensors)


def read_head(folder: Path, target: HeadTarget) -> Eagle3Model:
    """A head of either format, in the file's dtype on the target's device.

    A missing output matrix is the target's own. The embedding is always the target's.

    Args:
        folder: where it is.
        target: which it is for.

    Raises:
        UserError: it is no EAGLE-3 head, or one that is not read, or one for another target.
    """
    found = read_folder(folder)
    unread = [name for name in UNREAD if found.config.get(name)]
    if unread:
        raise UserError(f"{folder} is an EAGLE-3 head with {unread[0]}, which is not read: export it without")
    states = found.named_states or default_states(target.config.num_hidden_layers)
    config = Eagle3Config.read(found.config, states)
    vocabulary, width = target.output_VH.shape
    if (config.vocab_size, config.hidden_size) != (vocabulary, width):
        raise UserError(
            f"{folder} is for a target of {config.vocab_size} tokens and {config.hidden_size} wide, got one of "
            f"{vocabulary} and {width}: choose the target that it was trained for"
        )
    _check_embedding(folder, found, target)
    tensors = {name: value for name, value in found.tensors.items() if name not in (EMBEDDING, "d2t", "t2d")}
    if OUTPUT not in tensors and found.ids() is None:
        tensors[OUTPUT] = target.output_VH
    return _assembled(folder, _whole(config), found.ids(), tensors, target.output_VH.device)


def _whole(config: Eagle3Config) -> Eagle3Config:
    """A draft vocabulary as large as the target's is none."""
    return replace(config, draft_vocab_size=None) if config.draft_vocab_size == config.vocab_size else config


def _check_embedding(folder: Path, found: HeadFolder, target: HeadTarget) -> None:
    own = found.tensors.get(EMBEDDING)
    if own is None or target.embedding_VH.is_meta:  # a target without contents is one that is only estimated
        return
    if not torch.equal(own.to(target.embedding_VH), target.embedding_VH):
        raise UserError(
            f"{folder} has an embedding of its own, which SGLang drops and which is not read: train with the target's"
        )


def _assembled(
    folder: Path,
    config: Eagle3Config,
    ids_R: Tensor | None,
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> Eagle3Model:
    """The network with these tensors.

    Raises:
        UserError: tensors are missing, unknown, or of other shapes.
    """
    with device:
        model = Eagle3Model(config, None if ids_R is None else ids_R.to(device))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    wrong = [name for name in sorted(shapes.keys() | tensors.keys()) if shapes.get(name) != _shape(tensors, name)]
    if wrong:
        name = wrong[0]
        expected, got = (list(one) if one is not None else "none" for one in (shapes.get(name), _shape(tensors, name)))
        raise UserError(f"{folder} is no EAGLE-3 head of these sizes: {name} must be {expected}, got {got}")
    model = model.to(next(iter(tensors.values())).dtype)
    model.load_state_dict({name: value.to(device) for name, value in tensors.items()})
    return model


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def write_head(model: Eagle3Model, target: HeadTarget, folder: Path, format: str, dtype: torch.dtype) -> None:
    """Write `config.json` and `model.safetensors` into a folder, which is made.

    Args:
        model: the head.
        target: which it is for.
        folder: where to.
        format: one of `FORMATS`.
        dtype: what the weights are rounded to.

    Raises:
        UserError: no such format.
    """
    if format not in FORMATS:
        raise UserError(f"the format of a head must be {' or '.join(FORMATS)}, got {format}")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    if model.ids_R is not None:
        ids_R = model.ids_R.cpu()
        tensors |= {"d2t": differences(ids_R), "t2d": members(ids_R, model.vocabulary)}
    config = plain_config(model.config, target, dtype) if format == "plain" else _speculators(model.config, target)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / _FILE, metadata={"format": "pt"})
    (folder / _FILE).chmod((folder / "config.json").stat().st_mode)  # safetensors lets nobody else read it


def plain_config(config: Eagle3Config, target: HeadTarget, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` for vLLM and SGLang; states are named twice, as each counts them, or not at all."""
    named = {}
    if not _by_default(config, target):
        named = {
            STATE_IDS: list(config.states),
            "eagle_config": {STATE_IDS: [state - 1 for state in config.states], "use_aux_hidden_state": True},
        }
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        **config.layer(),
        "draft_vocab_size": config.draft_vocab_size,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "norm_before_residual": config.norm_before_residual,
        **({"norm_output": True} if config.norm_output else {}),
        **named,
    }


def _by_default(config: Eagle3Config, target: HeadTarget) -> bool:
    """Whether the states are those that an engine takes where none are named."""
    try:
        return config.states == default_states(target.config.num_hidden_layers)
    except UserError:
        return False


def _speculators(config: Eagle3Config, target: HeadTarget) -> dict[str, Any]:
    """`config.json` in the format of speculators, whose defaults for norms are not ours."""
    verifier = {
        "name_or_path": getattr(target.config, "_name_or_path", "") or "",
        "architectures": list(getattr(target.config, "architectures", None) or []),
    }
    proposal = {"proposal_type": "greedy", "speculative_tokens": _DRAFTED}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": config.layer(),
        "draft_vocab_size": config.draft_vocab_size or config.vocab_size,
        "norm_before_residual": config.norm_before_residual,
        "norm_output": config.norm_output,
        **dict.fromkeys(UNREAD, False),
        STATE_IDS: list(config.states),
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [proposal],
            "default_proposal_method": "greedy",
            "verifier": verifier,
        },
    }
