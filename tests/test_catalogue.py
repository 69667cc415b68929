"""docs/plugins.md is the registry as it is: every built-in plugin with formula, options, what to know, and paper.

python tests/test_catalogue.py writes it anew; the prose of the page is kept.
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

PAGE = ROOT / "docs/plugins.md"


def first_sentence(cls):
    return inspect.getdoc(cls).partition("\n")[0]


LAST = {
    "divergences": "a cached teacher keeps",
    "schedules": "reads",
    "verifiers": "guarantee",
    "drafters": "needs",
    "lengths": "guarantee",
    "heads": "formats",
}
"""The heading of a table's last column, by family."""


def last(family, cls):
    """What a user must know before choosing it, by family."""
    if family == "verifiers":
        kinds = {frozenset(): "chains"}.get(cls.siblings, "chains and trees")
        when = "T = 0 only" if cls.greedy_only else "any T"
        return f"{'lossless' if cls.lossless else 'lossy'}; {when}; {kinds}"
    if family == "divergences":
        if "terms" in inspect.signature(cls).parameters:
            return "what all terms allow"
        kept = " or ".join(kind for kind in ("top", "sampled") if kind in cls.cached)
        return f"all, or {kept} tokens" if kept else "all tokens"
    if family == "schedules":
        needs = ", ".join(sorted(cls.needs))
        return f"{needs}: one pass more over the logits" if needs else "no logits"
    if family == "drafters":
        models = " or ".join(f"a {kind}" for kind in sorted(cls.drafts_with, reverse=True))
        return models if cls.needs_model else "no draft model"
    if family == "lengths":
        return "keeps the distribution of the text"
    return ", ".join(cls.formats)


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
    yield f"| name | {'formula | ' * formulas}{LAST[family]} |"
    yield f"|---|{'---|' * formulas}---|"
    for cls in classes:
        formula = f"`{cell(cls.formula)}` | " if formulas else ""
        yield f"| [`{cls.__name__}`](#{cls.__name__.lower()}) | {formula}{last(family, cls)} |"


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


def generated(family):
    """The table and the entries of a family."""
    classes = [cls for _, cls in sorted(built_in(family).items(), key=lambda item: item[0].lower())]
    lines = [*overview(family, classes), ""]
    for cls in classes:
        lines += entry(cls)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def catalogue(page):
    """The page with what lies between its markers written anew; the prose around is kept."""
    for family in FAMILIES:
        parts = re.split(rf"(<!-- {family}: generated -->\n).*?(<!-- end -->)", page, maxsplit=1, flags=re.DOTALL)
        assert len(parts) == 4, f"no place for {family}"
        page = "".join([parts[0], parts[1], "\n", generated(family), "\n\n", *parts[2:]])
    return page


def test_the_page_is_the_registry():
    written = PAGE.read_text(encoding="utf-8")
    assert written == catalogue(written), "write it again: python tests/test_catalogue.py"


def test_a_page_that_lacks_a_family_or_is_stale_is_found():
    written = PAGE.read_text(encoding="utf-8")
    stale = written.replace("sum p log(p / q)", "sum p log(q / p)")
    assert stale != written == catalogue(stale)
    with pytest.raises(AssertionError, match="no place for heads"):
        catalogue(written.replace("<!-- heads: generated -->", ""))


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
    PAGE.write_text(catalogue(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
