"""Engines of tiny models and what they are compared with."""

import torch

from tempspec.decoding.engine import Engine
from tempspec.plugins.drafters import CausalLM
from tempspec.plugins.lengths import FixedLength
from tests.built_ins import built_in

VERIFIERS = {name: rule() for name, rule in built_in("verifiers").items()}
LOSSLESS = {name: verifier for name, verifier in VERIFIERS.items() if verifier.lossless}
SAMPLING = {name: verifier for name, verifier in LOSSLESS.items() if not verifier.greedy_only}


def run(engine, requests):
    """Completions in the order of the requests."""
    found = {completion.request.key: completion for completion in engine.run(requests)}
    return [found[request.key] for request in requests]


def speculative(target, draft, verifier, *, length=None, drafter=None, vocabulary=None, **options):
    size = target.config.vocab_size if vocabulary is None else vocabulary
    rule = FixedLength(3) if length is None else length
    proposer = CausalLM() if drafter is None else drafter
    return Engine(target, size, verifier=verifier, drafter=proposer, length=rule, draft=draft, **options)


def prompts(count, vocabulary, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
    return [tuple(torch.randint(0, vocabulary, (n,), generator=generator).tolist()) for n in lengths]


def greedy_text(model, prompt, count):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()
