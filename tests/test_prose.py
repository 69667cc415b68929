"""README and docs/ read well: short sentences, and no word of the project's private dialect."""

import io
import re
import tokenize

import pytest

from tests.test_documents import PAGES, ROOT

GENERATED = ("docs/tree.md",)
"""Lists of first lines of docstrings, which may use the code's own names."""

PROSE = ["README.md", *(page for page in PAGES if page not in GENERATED)]
WORDS, LONG, SHARE = 15.0, 35, 0.03

DIALECT = {
    "after": r"\bbehind\b",
    "distribution": r"\blaws?\b",
    "random decisions": r"\bcoins?\b",
    "helps": r"\bpays?\b",
    "is": r"\bstands?\b|\bstood\b",
    "resumes": r"\b(goes|go|going|went) on\b",
    "separately": r"\bapart\b",
    "analytic": r"\btwins?\b",
    "temperature": r"\bheat\b",
    "expected": r"\bforeseen\b",
    "padding": r"\brubbish\b",
    "fix": r"\bmend(s|ed|ing)?\b",
    "tokenised": r"\bspelt\b",
    "truncated": r"\btorn\b",
    "per": r"\b(a|one) (row|line|page|family|file|number|token|pass|draft|bar) (a|an|each) [a-z]+"
    r"|\b(tokens?|rows?|seconds?|calls?) an? (round|call|target call|request|token|row|second|step|batch|prompt)\b",
}
"""What to write, and the words that stood for it."""

ALLOWED = {"docs/concepts.md": r"\(\"law\" in the code\)|\*law\* in the code"}
"""The one place that explains a name of the code."""


def sentences(markdown):
    """The prose of a page, sentence by sentence: no code, table, heading, picture or link target; `code` is a word."""
    text = re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"^( {4,}|\t).*$|^\s*(#|\||<).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "code", text).replace("*", "")
    text = re.sub(r"^\s*([-+]|\d+\.)\s+", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"\b(e\.g|i\.e|et al|vs|cf)\.", r"\1", text)
    for paragraph in re.split(r"\n\s*\n", text):
        for part in re.split(r"(?<=[.!?])\s+|(?<=:)\s*$", " ".join(paragraph.split())):
            if re.search(r"[A-Za-z]{2}", part):
                yield part


def lengths(markdown):
    """How many words each sentence has."""
    return [len(re.findall(r"[\w'.-]*\w", sentence)) for sentence in sentences(markdown)]


def dialect(markdown):
    """The words of the dialect that a page uses, in tables, headings and captions too, with what to write instead."""
    text = re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^( {4,}|\t).*$|\]\([^)]*\)|`[^`]*`", "", text, flags=re.MULTILINE)
    return {found[0]: better for better, pattern in DIALECT.items() for found in re.finditer(pattern, text, re.I)}


CODE_NAMES = ("distribution", "random decisions", "separately", "expected", "truncated")
"""What the code's names and former columns are called after: `log_law`, `coins`, `apart`, `foreseen`, `torn`."""


def texts(source):
    """The strings and comments of a Python file, a line each."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield " ".join(token.string.split())


def code_dialect(source):
    """The words of the dialect in docstrings, messages and comments, code names left out."""
    patterns = [pattern for better, pattern in DIALECT.items() if better not in CODE_NAMES]
    return [found[0] for text in texts(source) for pattern in patterns for found in re.finditer(pattern, text, re.I)]


def test_no_docstring_or_message_speaks_the_dialect():
    files = sorted((ROOT / "tempspec").rglob("*.py"))
    found = {path.name: words for path in files if (words := code_dialect(path.read_text(encoding="utf-8")))}
    assert found == {}


@pytest.mark.parametrize(
    "source", ['"""Tokens behind it."""', "x = 1  # stands", 'f"it goes on {x}"', '"a row a request"']
)
def test_the_dialect_is_found_in_strings_and_comments(source):
    assert code_dialect(source)
    assert not code_dialect("behind = law = twin(stands)")


@pytest.mark.parametrize("page", PROSE)
def test_sentences_of_a_page_are_short(page):
    count = lengths((ROOT / page).read_text(encoding="utf-8"))
    mean, long = sum(count) / max(len(count), 1), sum(words > LONG for words in count) / max(len(count), 1)
    assert mean <= WORDS, f"{mean:.1f} words a sentence"
    assert long <= SHARE, f"{long:.1%} of the sentences have more than {LONG} words"


@pytest.mark.parametrize("page", PROSE)
def test_no_page_speaks_the_private_dialect(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert dialect(re.sub(ALLOWED.get(page, "$^"), "", text)) == {}


LONG_SENTENCE = "A draft " + "that is trained " * 12 + "works."


def test_prose_is_measured_without_code_tables_and_links():
    page = "# A heading that is long\n\nOne two. Three [four five](https://a.b/c d)!\n\n    code that is long\n\n"
    page += "```python\nmore = code\n```\n\n| a table | of words |\n|---|---|\n\n- six `a b c`: seven\n- eight\n"
    assert lengths(page) == [2, 3, 3, 1]


def test_a_long_sentence_is_found():
    assert max(lengths(LONG_SENTENCE)) > LONG
    assert lengths("Two words. " * 9 + LONG_SENTENCE)[-1] > LONG


@pytest.mark.parametrize(
    "said",
    [
        *("the law of p", "tokens behind it", "without its coins", "what pays", "it stands", "a run goes on"),
        *(
            "kept apart",
            "its analytic twin",
            "the heat",
            "a foreseen length",
            "a row a request",
            "tokens a target call",
        ),
    ],
)
def test_the_dialect_is_found_in_prose_and_in_tables(said):
    assert dialect(f"Here is {said}.")
    assert dialect(f"| name | {said} |")
    assert not dialect(f"    {said}\n\n`{said}` and [a page]({said.replace(' ', '-')}.md)")


def test_plain_words_are_not_taken_for_dialect():
    assert not dialect("The lawn, a standard, a coincidence, payload, heating, apartment. It goes to the next token.")


def test_every_page_is_measured():
    assert len(PROSE) > 20
    assert sum(sum(lengths((ROOT / page).read_text(encoding="utf-8"))) for page in PROSE) > 8_000
