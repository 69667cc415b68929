"""docs/plugins.md is the registry as it is: every built-in plugin with formula, options, guarantee and paper.

python tests/test_catalogue.py > docs/plugins.md
"""

import inspect
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the command line above

from tempspec.registry import FAMILIES  # noqa: E402
from tests.built_ins import built_in  # noqa: E402

HEAD = """# Plugins

Everything that you can choose in a configuration, by family. `python tests/test_catalogue.py > docs/plugins.md` writes this page from
the installed classes. `tempspec plugins` lists them on your screen, with those of other packages.

Name a plugin as it is written here: `divergence: ForwardKL`, or with options `divergence: {class_path: JensenShannon, init_args: {beta:
0.3}}`. On the command line that is `--model.divergence JensenShannon --model.divergence.beta 0.3`.

In the formulas p is the target's distribution and q the draft's, x a drafted token, H the entropy in nats, and T a temperature. Sums
are over the vocabulary. `(y)+` is `max(0, y)`.
"""

CHOOSE = {
    "divergences": """A divergence is what `fit` minimises at each response token: `model.divergence`.

**Which to choose.** Start with `ForwardKL`, or with `NegativeLogAcceptance` if you verify by token-wise rejection. No ranking is
claimed: eight of fifteen ended within 0.005 of each other ([Findings](findings.md#which-objective-is-best)). Let `validate` decide.
`scale: gradient` is an option of all of them. It keeps the size of the gradient when the loss temperature changes.""",
    "schedules": """A schedule gives the loss temperature of each step, row or token: `model.temperature`.

**Which to choose.** You serve at one temperature: `Constant`, at that temperature or above. You serve at several: `Grid`. Your text was
sampled at several temperatures and says so: `Matched`. The others are for experiments. `draft_scale`, where it is an option, gives the
draft another temperature than the target.""",
    "verifiers": """A verifier decides how many drafted tokens are accepted: `model.verifiers`.

**Which to choose.** `BlockVerification` for chains, `GreedyMatch` at T = 0, `Traversal` for trees. A lossy rule changes the text:
read its distance from the target together with its acceptance. [Verifiers](verifiers.md) has more.""",
    "drafters": """A drafter proposes tokens: `model.drafter`.

**Which to choose.** You rarely have to: a draft model gets `CausalLM`, a head gets `Speculator`. Take `PromptLookup` if answers repeat
their prompts, and a tree if your engine verifies trees.""",
    "lengths": """A draft length decides how many tokens are drafted in a round: `model.length`. None of them changes the distribution of the text.

**Which to choose.** Start with `FixedLength`, 4 tokens, and compare 2 and 8. If requests differ a lot, try `ConfidenceThreshold` or
`Heuristic`. `Goodput` needs step times, which `predict` measures.""",
    "heads": """A head is a small network on the target's hidden states that drafts: `model.head`.

**Which to choose.** There is one kind. [Training](training.md#a-head) says how to train it.""",
}
TITLES = {"schedules": "Temperature schedules", "lengths": "Draft lengths"}


def first_sentence(cls):
    return inspect.getdoc(cls).partition("\n")[0]


def guarantee(family, cls):
    """What a user may rely on, by family."""
    if family == "verifiers":
        kinds = {frozenset(): "chains"}.get(cls.siblings, "chains and trees")
        when = "T = 0 only" if cls.greedy_only else "any T"
        return f"{'lossless' if cls.lossless else 'lossy'}; {when}; {kinds}"
    if family == "divergences":
        if "terms" in inspect.signature(cls).parameters:
            return "a cached teacher may keep what all terms allow"
        kept = " or ".join(kind for kind in ("top", "sampled") if kind in cls.cached)
        return f"a cached teacher may keep {kept}" if kept else "a cached teacher must keep all tokens"
    if family == "schedules":
        needs = ", ".join(sorted(cls.needs))
        return f"reads {needs}: one pass more over the logits" if needs else "reads no logits"
    if family == "drafters":
        models = " or ".join(f"a {kind}" for kind in sorted(cls.drafts_with, reverse=True))
        return f"needs {models}" if cls.needs_model else "needs no draft model"
    if family == "lengths":
        return "keeps the distribution of the text"
    return "formats: " + ", ".join(cls.formats)


def options(cls):
    """Name, default and meaning of each option, from the signature and the docstring of the class that documents it."""
    if cls.__init__ is object.__init__:
        return []
    said = documented(cls)
    parameters = [one for name, one in inspect.signature(cls.__init__).parameters.items() if name != "self"]
    return [(one.name, default(one), said[one.name]) for one in parameters]


def documented(cls):
    """The `Args:` sections of a class and its bases; the nearest wins."""
    said = {}
    for base in reversed(cls.__mro__):
        section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(base.__doc__ or ""), re.DOTALL | re.MULTILINE)
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE):
            said[name] = " ".join(text.split())
    return said


def default(parameter):
    if parameter.default is inspect.Parameter.empty:
        return "required"
    named = [word for value, word in ((None, "null"), (True, "true"), (False, "false")) if parameter.default is value]
    return named[0] if named else parameter.default


def cell(text):
    return text.replace("|", "\\|")


def overview(family, classes):
    formulas = any(getattr(cls, "formula", "") for cls in classes)
    yield f"| name | {'formula | ' * formulas}guarantee |"
    yield f"|---|{'---|' * formulas}---|"
    for cls in classes:
        formula = f"`{cell(cls.formula)}` | " if formulas else ""
        yield f"| [`{cls.__name__}`](#{cls.__name__.lower()}) | {formula}{guarantee(family, cls)} |"


def entry(cls):
    yield f"### {cls.__name__}"
    yield ""
    yield first_sentence(cls)
    yield ""
    for name, value, text in options(cls):
        yield f"- `{name}` ({value}): {text}"
    if source := getattr(cls, "source", ""):
        yield f"- *Source*: {source}."
    yield ""


def catalogue():
    lines = [HEAD]
    for family in FAMILIES:
        classes = [cls for _, cls in sorted(built_in(family).items(), key=lambda item: item[0].lower())]
        lines += [
            f"## {TITLES.get(family, family.capitalize())}",
            "",
            CHOOSE[family],
            "",
            *overview(family, classes),
            "",
        ]
        for cls in classes:
            lines += entry(cls)
        lines += [f"[Write one yourself](plugins/{family.removesuffix('s')}.md).", ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def test_the_page_is_the_registry():
    written = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    assert written == catalogue(), "write it again: python tests/test_catalogue.py > docs/plugins.md"


@pytest.mark.parametrize("family", ["divergences", "schedules", "verifiers", "lengths"])
def test_every_plugin_of_these_families_has_a_formula(family):
    assert [name for name, cls in built_in(family).items() if not cls.formula or len(cls.formula) > 100] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_of_a_plugin_says_what_it_means(family):
    for cls in built_in(family).values():
        assert all(len(text) > 5 for _, _, text in options(cls)), cls


def test_an_option_without_a_word_on_it_is_found():
    class Silent:
        """Has an option that nobody explains."""

        def __init__(self, secret=1):
            self.secret = secret

    with pytest.raises(KeyError, match="secret"):
        options(Silent)


if __name__ == "__main__":
    print(catalogue(), end="")
