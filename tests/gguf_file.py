"""GGUF files for tests, written as llama.cpp writes them: a Llama's weights, its sizes and its tokenizer."""

import json

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import llama

TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def byte_level():
    """A byte-level BPE of 288 ids, an end of text among them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=288, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(["the cat sat on the mat and the dog sat on the cat again and again"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", bos_token="<|end|>")


def small_llama(tokenizer, layers=2):
    """A Llama over a tokenizer's ids, with sizes that every quantisation of blocks of 32 takes."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return llama(0, len(tokenizer), layers, context=128, **shape, **ends)


def write_gguf(file, model, tokenizer, kind="Q8_0"):
    """Write a model with its tokenizer and a chat template; matrices are quantised unless kind is F32."""
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("small")
    writer.add_file_type(getattr(gguf.LlamaFileType, "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    for name, value in model.state_dict().items():
        array = value.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            array = _interleaved(array, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if kind == "F32" or array.ndim == 1:
            writer.add_tensor(_name(name), array)
        else:
            wanted = getattr(gguf.GGMLQuantizationType, kind)
            writer.add_tensor(_name(name), gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer, tokenizer):
    held = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(held["vocab"], key=held["vocab"].get)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token == "<|end|>" else normal for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in held["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)


def _name(name):
    """A tensor's name as llama.cpp has it."""
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    name = name.removesuffix(".weight")
    if name in outer:
        return f"{outer[name]}.weight"
    _, _, layer, inner = name.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.weight"


def _interleaved(array, heads):
    """Rows of a query or key projection in the order of llama.cpp's rotary embedding."""
    rows, width = array.shape
    turned = array.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2)
    return np.ascontiguousarray(turned.reshape(rows, width))
