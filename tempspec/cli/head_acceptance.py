"""What a head's folder accepts on a few prompts, as an engine would serve it (floor 6).

The prompts are asked by the target's chat template where it has one. They are few: a head that is served by another
network than it was trained as accepts hardly anything, and that shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tempspec.data.encoding import Encoder
from tempspec.decoding.engine import Engine
from tempspec.interfaces import Completion, DraftHead, HeadModel, Request
from tempspec.models.evaluating import evaluating
from tempspec.models.loading import ModelOptions
from tempspec.models.pair import Pair
from tempspec.plugins.drafters import Speculator
from tempspec.plugins.lengths import FixedLength
from tempspec.plugins.verifiers import TokenwiseRejection

__all__ = ["PROMPTS", "HeadAcceptance", "head_acceptance"]

PROMPTS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "A train travels 60 miles in 45 minutes. How fast is it in miles per hour? Show your steps.",
    "Write a short letter to a neighbour who plays music too loudly.",
    "List five tips for learning a new language.",
    "Summarise the plot of Romeo and Juliet in one paragraph.",
)


@dataclass(frozen=True)
class HeadAcceptance:
    """What a head came to at one temperature.

    Attributes:
        temperature: of target and draft.
        block_efficiency: tokens per pass of the target, its own included; 1 where nothing is accepted.
        by_position: of the tokens that were tested at each drafted position, the share that was accepted.
    """

    temperature: float
    block_efficiency: float
    by_position: tuple[float, ...]

    @classmethod
    def of(cls, temperature: float, completions: Sequence[Completion], drafted: int) -> "HeadAcceptance":
        """Count completions.

        Args:
            temperature: of all of them.
            completions: what was decoded.
            drafted: the most tokens per round.
        """
        rounds = [pair for each in completions for pair in zip(each.tested, each.accepted, strict=True)]
        shares = []
        for position in range(1, drafted + 1):
            tested = sum(count >= position for count, _ in rounds)
            shares.append(sum(count >= position for _, count in rounds) / max(tested, 1))
        tokens = sum(len(each.tokens) for each in completions)
        return cls(temperature, tokens / max(len(rounds), 1), tuple(shares))

    def __str__(self) -> str:
        """One line."""
        shares = " ".join(f"{share:.2f}" for share in self.by_position)
        return f"T = {self.temperature:g}: {self.block_efficiency:.2f} tokens per pass; accepted by position: {shares}"


def head_acceptance(
    head: DraftHead,
    folder: Path,
    target: str,
    *,
    temperatures: Sequence[float] = (0.0, 1.0),
    tokens: int = 64,
    drafted: int = 4,
) -> list[HeadAcceptance]:
    """Decode `PROMPTS` with a head at each temperature, sampled drafts verified token by token.

    Args:
        head: its kind.
        folder: where it is.
        target: folder or hub name of the target.
        temperatures: of target and draft.
        tokens: the most tokens of an answer.
        drafted: tokens per round.

    Raises:
        UserError: the folder holds no such head, or one that is not read; or there is no such target.
    """
    pair = Pair(target, str(folder), None, ModelOptions(), head=head)
    draft, encoder = pair.load_draft("auto"), Encoder(pair.tokenizer)
    assert isinstance(draft, HeadModel)
    parts = {"verifier": TokenwiseRejection(), "drafter": Speculator(), "length": FixedLength(drafted)}
    found = []
    with evaluating(pair.target_model, draft):
        engine = Engine(pair.target_model, pair.vocabulary, draft=draft, **parts)  # type: ignore[arg-type]
        for temperature in temperatures:
            requests = [
                Request(tuple(ids), temperature, max_new_tokens=tokens, stop_ids=pair.stop_ids, seed=seed)
                for seed, ids in enumerate(_asked(encoder))
            ]
            found.append(HeadAcceptance.of(temperature, list(engine.run(requests)), drafted))
    return found


def _asked(encoder: Encoder) -> list[list[int]]:
    """The ids of the prompts."""
    if not encoder.tokenizer.chat_template:
        return encoder.prompts(PROMPTS)
    return [encoder.opening([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
