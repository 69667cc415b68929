"""The tiny models and tokenizers of the tests: real ones, with random weights that a seed decides."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tempspec.models.loading import save_model

WORDS = ["<eos>", *(f"w{number}" for number in range(1, 24))]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
NO_SPECIAL_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


@torch.no_grad()
def llama(seed=0, vocabulary=24, layers=1, *, gain=1.0, inner=1.0, context=64, **config):
    """A Llama of one or two hundred weights a layer.

    `gain` sharpens its laws, which are near to uniform for new weights; `inner` is the factor of all other matrices.
    """
    torch.manual_seed(seed)
    shape = {"vocab_size": vocabulary, "num_hidden_layers": layers, "max_position_embeddings": context}
    model = LlamaForCausalLM(LlamaConfig(**SIZES | NO_SPECIAL_IDS | shape | config)).eval()
    model.lm_head.weight.mul_(gain)
    for weight in model.model.parameters():
        weight.mul_(inner if weight.ndim > 1 else 1)
    return model


def gpt2(seed=0, vocabulary=24, layers=1, *, context=64):
    """A GPT-2: learned positions, and a head that is the embedding."""
    torch.manual_seed(seed)
    shape = {"vocab_size": vocabulary, "n_embd": 16, "n_layer": layers, "n_head": 2, "n_positions": context}
    return GPT2LMHeadModel(GPT2Config(**shape | NO_SPECIAL_IDS)).eval()


def tokenizer(words, *, unknown=None, **special):
    """A word's id is its place; another word is read as `unknown`, or as the first."""
    ids = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(WordLevel(ids, unk_token=unknown or words[0]))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def words():
    """The tokenizer of `WORDS`."""
    return tokenizer(WORDS, unknown="w1", eos_token="<eos>")


def pair(*, draft_vocabulary=24, context=64):
    """Two Llamas over `WORDS` that end texts: a target of two layers, its head padded to 32, and a draft of one."""
    sharp = {"gain": 24.0, "context": context, "eos_token_id": 0}
    return llama(0, 32, 2, **sharp), llama(1, draft_vocabulary, **sharp)


def save_pair(folder, tokenizer, **options):
    """The pair as folders, `target` and `draft`."""
    for name, model in zip(("target", "draft"), pair(**options), strict=True):
        save_model(model, tokenizer, folder / name)
