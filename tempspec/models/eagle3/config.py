"""The sizes of an EAGLE-3 head, and how both file formats write them (floor 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tempspec.errors import UserError

__all__ = ["Eagle3Config", "default_states"]

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies are the same at any length."""
_LAYER = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "rms_norm_eps", "max_position_embeddings", "vocab_size"),
)
_NEEDED = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


def default_states(layers: int) -> tuple[int, ...]:
    """The states that both engines take where a file names none: 2, n // 2 and n - 3.

    Args:
        layers: n, of the target.

    Raises:
        UserError: so few layers that these are not three.

    >>> default_states(32)
    (2, 16, 29)
    """
    states = (2, layers // 2, layers - 3)
    if not states[0] < states[1] < states[2]:
        raise UserError(
            f"EAGLE-3 reads states 2, n // 2 and n - 3, which takes a target of 7 layers or more, got {layers}: "
            "name the states yourself, as in states: [1, 2, 3]"
        )
    return states


@dataclass(frozen=True)
class Eagle3Config:
    """What a head's tensors do not say by themselves.

    Attributes:
        hidden_size: H, also the target's.
        intermediate_size: of the MLP.
        num_attention_heads: heads of queries.
        num_key_value_heads: heads of keys and values.
        head_dim: of a head.
        vocab_size: V, the rows of the target's output matrix.
        states: the target's states that it reads, as `HeadModel` numbers them.
        draft_vocab_size: R; None for all of V.
        rope_parameters: type and base of the rotary embedding, as transformers writes them.
        hidden_act: the activation of the MLP, `silu`.
        rms_norm_eps: of all norms.
        max_position_embeddings: the longest text that it was made for.
        norm_before_residual: the residual is the normed state: not in SGLang.
        norm_output: hand on the normed output (EAGLE 3.1).
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    states: tuple[int, ...]
    draft_vocab_size: int | None = None
    rope_parameters: dict[str, Any] = field(default_factory=lambda: dict(ROPE))
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    norm_before_residual: bool = False
    norm_output: bool = False

    @classmethod
    def for_target(cls, config: Any, vocabulary: int, states: Sequence[int], **options: Any) -> "Eagle3Config":
        """The sizes of a new head: those of a layer of the target.

        A rotary embedding whose frequencies depend on the length is replaced by the plain one of the same base.

        Args:
            config: the target's text configuration.
            vocabulary: the rows of its output matrix.
            states: which of its states the head reads.
            options: of the head.
        """
        heads = config.num_attention_heads
        size, given = config.hidden_size, getattr(config, "rope_parameters", None) or {}
        given = given.get("full_attention", given)  # where each type of layer has its own
        rope = {name: value for name, value in given.items() if name != "partial_rotary_factor"}
        if rope.get("rope_type", "default") not in STATIC_ROPE:
            rope = {"rope_type": "default", "rope_theta": rope.get("rope_theta", ROPE["rope_theta"])}
        return cls(
            hidden_size=size,
            intermediate_size=getattr(config, "intermediate_size", None) or 4 * size,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or size // heads,
            vocab_size=vocabulary,
            states=tuple(states),
            rope_parameters=ROPE | rope,
            rms_norm_eps=getattr(config, "rms_norm_eps", None) or 1e-6,
            max_position_embeddings=getattr(config, "max_position_embeddings", None) or 2048,
            **options,
        )

    @classmethod
    def read(cls, config: Mapping[str, Any], states: tuple[int, ...]) -> "Eagle3Config":
        """The sizes that a `config.json` of either format says.

        Args:
            config: the file's content.
            states: the states that it says, or the default.

        Raises:
            UserError: a size is missing.
        """
        layer = config.get("transformer_layer_config", config)
        missing = [name for name in _NEEDED if layer.get(name) is None]
        if missing:
            raise UserError(f"a head's config.json needs {', '.join(missing)}: it has no such entry")
        heads = layer["num_attention_heads"]
        known = {name: layer[name] for name in _LAYER if layer.get(name) is not None}
        known.setdefault("num_key_value_heads", heads)
        known.setdefault("head_dim", layer["hidden_size"] // heads)
        return cls(
            **known,
            states=states,
            draft_vocab_size=config.get("draft_vocab_size"),
            rope_parameters=_rope(layer),
            norm_before_residual=bool(config.get("norm_before_residual", "transformer_layer_config" in config)),
            norm_output=bool(config.get("norm_output", False)),
        )

    def layer(self) -> dict[str, Any]:
        """The entries of the transformer layer, as a Llama's `config.json` has them."""
        whole = asdict(self)
        return {
            **{name: whole[name] for name in _LAYER},
            "model_type": "llama",
            "num_hidden_layers": 1,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "rope_theta": self.rope_parameters["rope_theta"],
            "rope_parameters": self.rope_parameters,
            **({} if self.rope_parameters["rope_type"] == "default" else {"rope_scaling": self.rope_parameters}),
        }


def _rope(layer: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary embedding of a `config.json`, in the form of today's transformers."""
    given = dict(layer.get("rope_parameters") or layer.get("rope_scaling") or {})
    kind = given.pop("type", "default")
    base = layer.get("rope_theta", ROPE["rope_theta"])
    return {"rope_type": kind, "rope_theta": base} | given
