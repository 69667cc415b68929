"""The law of the first tokens of a request, by enumeration, and what an engine samples of it."""

import itertools

import torch

from tempspec.core.sampling import log_law
from tempspec.interfaces import Request

from .engines import speculative

EMITTED = 4
KINDS = [
    Request((1, 2, 3), 0.7),
    Request((4,), 1.0, 0.5),
    Request((0, 0, 2, 1, 3, 4, 1), 1.5, top_k=3),
    Request((2, 2), 1.0, 1.3, top_p=0.8),
]


@torch.inference_mode()
def joint_law(model, request):
    """The law of the first tokens by enumeration, float64 `[V ** EMITTED]`."""
    size = model.config.vocab_size
    chains = torch.tensor(list(itertools.product(range(size), repeat=EMITTED)))
    rows = torch.cat([torch.tensor(request.prompt).expand(len(chains), -1), chains], 1)
    logits = model(rows).logits[:, len(request.prompt) - 1 : -1].double()
    logp = log_law(
        logits,
        torch.full((len(rows),), request.target_temperature),
        top_k_B=torch.full((len(rows),), request.top_k),
        top_p_B=torch.full((len(rows),), request.top_p),
    )
    return logp.gather(-1, chains[..., None]).squeeze(-1).sum(-1).exp()


def chi_square_p_value(count, expected):
    """P-value of Pearson's test after merging cells that expect fewer than 8."""
    assert count[expected == 0].sum() == 0, "a token outside the target's support was emitted"
    order = expected.argsort()
    count, expected = count[order], expected[order]
    group = (expected.cumsum(0) / 8).long().clamp(max=int(expected.sum() / 8) - 1)
    merged = [torch.zeros(int(group.max()) + 1).double().index_add(0, group, x.double()) for x in (count, expected)]
    used = merged[1] > 0
    statistic = ((merged[0] - merged[1])[used] ** 2 / merged[1][used]).sum()
    freedom = torch.tensor((used.sum().item() - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()


def p_values(target, draft, verifier, runs, **options):
    """One p-value a kind of request, all kinds decoded in one ragged batch."""
    engine = speculative(target, draft, verifier, slots=2048, **options)
    requests = [
        Request(kind.prompt, kind.target_temperature, kind.draft_temperature, kind.top_k, kind.top_p,
                max_new_tokens=EMITTED, seed=run * len(KINDS) + index, key=f"{index}")
        for run in range(runs)
        for index, kind in enumerate(KINDS)
    ]  # fmt: skip
    base = target.config.vocab_size ** torch.arange(EMITTED - 1, -1, -1)
    cells = [[] for _ in KINDS]
    for completion in engine.run(requests):
        cells[int(completion.request.key)].append(completion.tokens)
    return [
        chi_square_p_value(torch.bincount(torch.tensor(cell) @ base, minlength=len(law)), law * runs)
        for cell, law in zip(cells, (joint_law(target, kind) for kind in KINDS), strict=True)
    ]
