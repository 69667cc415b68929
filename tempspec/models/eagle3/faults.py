"""What is wrong in the folder of an EAGLE-3 head, a line each: what engines make of it without a word (floor 3).

Every trap here has been seen as a head that trains well and is accepted at hardly any position when it is served.
Axes: R the head's vocabulary, V the target's.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tempspec.core.vocabulary import from_differences, members
from tempspec.errors import UserError
from tempspec.models.conditioning import FILE as CONDITIONING
from tempspec.models.eagle3.config import ROPE, default_states
from tempspec.models.eagle3.files import ARCHITECTURES, EMBEDDING, OUTPUT, STATE_IDS, UNREAD, HeadFolder, read_folder

__all__ = ["head_faults", "head_notes"]

_ONES = (
    *(f"layers.0.{name}.weight" for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm")),
    "norm.weight",
)


def head_faults(folder: Path, target_config: Any) -> list[str]:
    """Everything in a head's folder that an engine reads otherwise than it is meant, or not at all.

    Args:
        folder: with `config.json` and safetensors, of either format.
        target_config: the target's configuration, as transformers has it.

    Raises:
        UserError: it holds no head at all.
    """
    found, target = read_folder(folder), target_config.get_text_config()
    checks = (_kind, _sizes, _tensors, _vocabulary, _states, _norms)
    return [*_conditioned(folder), *(line for check in checks for line in check(found, target))]


def head_notes(folder: Path) -> list[str]:
    """What is no fault of a folder, and must be known to serve it.

    Args:
        folder: as in `head_faults`.

    Raises:
        UserError: it holds no head at all.
    """
    found, notes = read_folder(folder), []
    if "eagle3" not in str(folder.resolve()).lower():
        notes.append('the path does not contain "eagle3": give vLLM "method": "eagle3", or it expects another kind')
    if "d2t" in found.tensors:
        notes.append("SGLang refuses to sample from a draft vocabulary: at temperatures above 0 serve it with vLLM")
    if found.speculators:
        notes.append("this is the format of speculators, which SGLang does not read: export it in the plain format")
        if not _verifier(found):
            notes.append("it names no verifier: `vllm serve` takes it only next to the target, by --speculative-config")
    if found.config.get("norm_output"):
        notes.append("norm_output is EAGLE 3.1: an engine that does not know it drafts with another network")
    return notes


def _conditioned(folder: Path) -> Iterator[str]:
    """Whether its weights depend on the temperature, which engines do not know."""
    if (folder / CONDITIONING).is_file():
        yield (
            f"{CONDITIONING} is in the folder: no engine knows a head that is conditioned on the temperature; fold it "
            "at one, with `tempspec export --temperature`"
        )


def _verifier(found: HeadFolder) -> str:
    return ((found.config.get("speculators_config") or {}).get("verifier") or {}).get("name_or_path") or ""


def _layer(found: HeadFolder) -> dict[str, Any]:
    return found.config.get("transformer_layer_config", found.config)


def _kind(found: HeadFolder, target: Any) -> Iterator[str]:
    """Whether engines take it for an EAGLE-3 head of one Llama layer."""
    named, expected = found.config.get("architectures") or [], ARCHITECTURES[found.speculators]
    if not set(named) & set(expected):
        yield f"architectures must be [{expected[0]}], got {list(named)}: engines choose the network by it"
    layer = _layer(found)
    if layer.get("model_type") != "llama":
        yield f"model_type must be llama, got {layer.get('model_type')}: engines read the sizes by it"
    if layer.get("num_hidden_layers", 1) != 1 or any(name.startswith("layers.1.") for name in found.tensors):
        yield "it has more than one layer: engines disagree on the norms between them; train one layer"
    if layer.get("attention_bias") or layer.get("mlp_bias"):
        yield "it has biases, which EAGLE-3 layers of engines lack: they are dropped; train without"
    if layer.get("sliding_window") and layer.get("use_sliding_window", True):
        yield "it has a sliding window, which engines do not apply to a head: train without"


def _sizes(found: HeadFolder, target: Any) -> Iterator[str]:
    """Whether sizes are said, and are the target's."""
    layer = _layer(found)
    for name in ("hidden_size", "vocab_size"):
        if layer.get(name) != getattr(target, name):
            yield f"{name} is {layer.get(name)}, the target's is {getattr(target, name)}: a head of another target"
    if layer.get("head_dim") is None:
        yield "head_dim is missing: engines take hidden_size // num_attention_heads, whatever the weights are; write it"
    if layer.get("tie_word_embeddings"):
        yield "tie_word_embeddings is true: an engine may take the embedding as output matrix; write false"
    own = getattr(target, "rope_parameters", None) or {}
    theirs = own.get("full_attention", own).get("rope_theta", ROPE["rope_theta"])
    said = layer.get("rope_theta") or (layer.get("rope_parameters") or {}).get("rope_theta")
    if said is None and theirs != ROPE["rope_theta"]:
        yield f"rope_theta is missing: engines take {ROPE['rope_theta']:g}, the target has {theirs:g}; write it"


def _tensors(found: HeadFolder, target: Any) -> Iterator[str]:
    """Whether there is every tensor, in the right shape, and no other."""
    layer, tensors = _layer(found), found.tensors
    shapes = _shapes(found, layer)
    for name in sorted(shapes.keys() - tensors.keys() - {OUTPUT}):
        yield f"{name} is missing: an engine starts with random numbers there, or not at all"
    for name in sorted(shapes.keys() & tensors.keys()):
        if tuple(tensors[name].shape) != shapes[name]:
            yield f"{name} must be {list(shapes[name])} by the config.json, got {list(tensors[name].shape)}"
    if EMBEDDING in tensors:
        yield f"{EMBEDDING} is in the file: SGLang drops it and takes the target's; train with that, leave it out"
    unknown = sorted(tensors.keys() - shapes.keys() - {EMBEDDING, "d2t", "t2d"})
    if unknown:
        yield f"{len(unknown)} tensors are unknown, such as {unknown[0]}: SGLang drops them without a word"
    if 3 * target.hidden_size == layer.get("hidden_size"):
        yield "the head is three times as wide as the target: SGLang then takes three states for one, and leaves fc out"


def _shapes(found: HeadFolder, layer: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors; nothing where the sizes are not said."""
    needed = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    if any(layer.get(name) is None for name in needed):
        return {}
    width, inner, heads, vocabulary = (layer[name] for name in needed)
    size = layer.get("head_dim") or width // heads
    groups = (layer.get("num_key_value_heads") or heads) * size
    states = len(found.named_states or (0, 0, 0))
    return {
        "fc.weight": (width, states * width),
        **dict.fromkeys(_ONES, (width,)),
        "layers.0.self_attn.q_proj.weight": (heads * size, 2 * width),
        **dict.fromkeys((f"layers.0.self_attn.{name}_proj.weight" for name in "kv"), (groups, 2 * width)),
        "layers.0.self_attn.o_proj.weight": (width, heads * size),
        **dict.fromkeys((f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up")), (inner, width)),
        "layers.0.mlp.down_proj.weight": (width, inner),
        OUTPUT: (found.config.get("draft_vocab_size") or vocabulary, width),
    }


def _vocabulary(found: HeadFolder, target: Any) -> Iterator[str]:
    """Whether the head's tokens mean the target's."""
    whole, own = target.vocab_size, found.config.get("draft_vocab_size")
    reduced, known = own is not None and own != whole, "d2t" in found.tensors
    if own is not None and reduced and not known:
        yield (
            f"draft_vocab_size is {own} of the target's {whole}, padding included, and there is no d2t: engines "
            f"propose the ids 0 to {own - 1}; write d2t, or draft_vocab_size: null for a head of all tokens"
        )
    if reduced and OUTPUT not in found.tensors:
        yield f"{OUTPUT} is missing: only a head of all {whole} tokens may share the target's"
    if known and not reduced:
        yield f"d2t is in the file, but draft_vocab_size is {own}: write {len(found.tensors['d2t'])}, its length"
    if known:
        yield from _map(found, own, whole)


def _map(found: HeadFolder, own: int | None, whole: int) -> Iterator[str]:
    """Whether d2t and t2d are what engines take them for."""
    difference_R, known_V = found.tensors["d2t"], found.tensors.get("t2d")
    if own is not None and len(difference_R) != own:
        yield f"d2t has {len(difference_R)} entries, draft_vocab_size is {own}: they must be equal"
    if difference_R.dtype != torch.int64:
        yield f"d2t must be int64, got {str(difference_R.dtype).removeprefix('torch.')}"
    ids_R = from_differences(difference_R.long())
    fits = _ascending(ids_R, whole) and (known_V is None or _agree(ids_R, known_V, whole))
    if not fits and _ascending(difference_R, whole) and (known_V is None or _agree(difference_R, known_V, whole)):
        yield "d2t holds the target's ids: engines add the draft's id to it; write the target's id less the draft's"
    elif not _ascending(ids_R, whole):
        yield f"d2t does not lead to ascending ids of 0 to {whole - 1}: write the target's id less the draft's"
    elif not fits and known_V is not None:
        yield f"t2d must be bool of {whole}, true at the {len(ids_R)} ids that d2t leads to: one of the two is wrong"


def _ascending(ids_R: torch.Tensor, whole: int) -> bool:
    return bool((ids_R.diff() > 0).all()) and bool(((ids_R >= 0) & (ids_R < whole)).all())


def _agree(ids_R: torch.Tensor, known_V: torch.Tensor, whole: int) -> bool:
    return known_V.shape == (whole,) and torch.equal(known_V.bool(), members(ids_R.long(), whole))


def _states(found: HeadFolder, target: Any) -> Iterator[str]:
    """Whether both engines read the states that the head was trained on."""
    layers, ours = target.num_hidden_layers, found.config.get(STATE_IDS)
    shifted = (found.config.get("eagle_config") or {}).get(STATE_IDS)
    named = found.named_states
    if named is None:
        try:
            default_states(layers)
        except UserError:
            yield f"{STATE_IDS} is missing: a target of {layers} layers has no default; write the states"
        return
    if not all(0 <= state <= layers for state in named) or list(named) != sorted(set(named)):
        yield f"{STATE_IDS} must be ascending, 0 to {layers}, got {list(named)}"
    if found.speculators:
        return
    if not ours or not shifted:
        place, other = ("eagle_config", "SGLang") if ours else ("the top level", "vLLM")
        meant = [state - 1 for state in named] if ours else list(named)
        yield f"{STATE_IDS} is not in {place}: {other} takes its default; write {meant} there"
    elif [state - 1 for state in ours] != list(shifted):
        yield (
            f"{STATE_IDS} is {list(ours)}, and {list(shifted)} in eagle_config: SGLang counts one less; write "
            f"{[state - 1 for state in ours]} there"
        )


def _norms(found: HeadFolder, target: Any) -> Iterator[str]:
    """Whether options that change the network are said, and known to the engines."""
    before = found.config.get("norm_before_residual")
    if found.speculators and before is None:
        yield "norm_before_residual is missing, which means true in the format of speculators: write what it was"
    if not found.speculators and before:
        yield "norm_before_residual is true: SGLang does not know it, and adds the state without its norm"
    for name in UNREAD:
        if found.config.get(name):
            yield f"{name} is true: engines differ in it, and it is not read here; train without"
