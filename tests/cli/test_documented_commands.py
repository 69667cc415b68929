"""Every command line that a page shows in a block runs, on a small pair and in the page's own order."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from tests.slow import slow_but
from tests.test_documents import DOCUMENTS, PAGES, ROOT, blocks

SMALL = (
    *("--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--model.sweep.max_new_tokens", "4", "--model.sweep.timing_prompts", "0"),
    *("--data.max_length", "32", "--data.batch_size", "4"),
)
HOW = (
    (r"tempspec (serve-check|check-head)|fit/head", ("--help",)),  # a server or a head, which no test has
    (r"--server|kd-llama2|--trainer.devices", ("--print_config",)),  # a server, a hub, processes: tests of their own
    (r"--config configs/(smollm2|qwen-coder|eagle3)", ("--print_config",)),  # real models, which no test has
    (r"report\s+runs/smollm2", ("--help",)),
    (r"tempspec (fit|validate|test|predict|generate) ", SMALL),
    (r"tempspec study ", ("--dry-run",)),
    (r"tempspec (report|import-results|export|plugins)", ()),
    (r"tempspec quickstart", ("--help",)),
)
"""What is added to a line of each kind: everything runs but what a test cannot have, which is parsed."""


def lines(page):
    """The command lines of ours in a page's blocks, indented or fenced, without prompts and remarks."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"\\\n\s*", " ", text)  # continued lines
    shown = re.findall(r"^.*\btempspec [a-z-]+\b.*$", "\n".join(_blocks(text)) + "\n", re.MULTILINE)
    return [re.split(r"\s+#|\s{4,}(?=[a-z])", line.strip())[0] for line in shown]


def _blocks(text):
    """Fenced shell blocks, and indented ones."""
    yield from re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^ {4}.*$", outside, re.MULTILINE)


def arguments(line):
    """What `main` gets: the line behind `tempspec`, with what its kind is given besides."""
    extra = next(more for pattern, more in HOW if re.search(pattern, line))
    told = shlex.split(line[line.index("tempspec ") :])[1:]
    return [word.replace("$T", "1.0").replace("RUN", "runs/mine") for word in told] + list(extra)


@pytest.fixture(scope="module")
def project(world, tmp_path_factory):
    """A folder as the pages suppose it: models, data, and a run that was fitted and decoded."""
    from tempspec.__main__ import main

    folder = tmp_path_factory.mktemp("project")
    for name in ("target", "draft"):
        shutil.copytree(world / name, folder / "models" / name)
    (folder / "data").mkdir()
    texts = [json.loads(line)["text"].split() for line in (world / "text.jsonl").read_text().splitlines()[:8]]
    rows = [json.dumps({"prompt": " ".join(words[:4]), "response": " ".join(words[4:])}) for words in texts]
    for name in ("train", "held", "questions"):
        (folder / f"data/{name}.jsonl").write_text("\n".join(rows))
    (folder / "data/prompts.jsonl").write_text('{"prompt": "w1 w2 w3"}\n{"prompt": "w4 w5"}\n')
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "responses.jsonl").write_text('{"accepted": [2, 0, 4], "drafted": 4}\n')
    (folder / "mine.yaml").write_text(blocks("README.md", "yaml")[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command, run in (("fit", "mine"), ("predict", "mine"), ("predict", "before")):
            assert main([command, "--config", "mine.yaml", "--run", f"runs/{run}", *SMALL]) == 0
    return folder


LONG = [f"docs/{name}.md" for name in ("findings", "measuring", "scale", "studies", "training", "tutorial")]
COMMANDS = [page for page in DOCUMENTS if lines(page)]


@pytest.mark.parametrize("page", slow_but(*(page for page in COMMANDS if page not in LONG), among=COMMANDS))
def test_every_command_line_of_a_page_runs(page, project, run, monkeypatch):
    monkeypatch.chdir(project)
    own = [block for block in blocks(page, "yaml") if "run" in yaml.safe_load(block)]
    Path("mine.yaml").write_text((own or blocks("README.md", "yaml"))[0])
    for line in lines(page):
        code, _, error = run(*arguments(line))
        assert code == 0, f"{line}\n{error}"


def test_the_assistant_of_the_page_on_serving_writes_text(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    section = (ROOT / "docs/serving.md").read_text(encoding="utf-8").partition("## transformers")[2].partition("## ")[0]
    exec("\n".join(re.findall(r"^ {4}(.*)$", section, re.MULTILINE)).replace("=64", "=8"), {})
    assert capsys.readouterr().out.strip()


def test_no_block_is_of_a_kind_that_is_not_run():
    run_here = {"python", "yaml", "toml", "sh", "bash"}
    fences = [re.findall(r"^```(\w*)\n", (ROOT / page).read_text("utf-8"), re.MULTILINE) for page in DOCUMENTS]
    assert {fence for found in fences for fence in found if fence} - run_here <= {"text"}
    assert len(PAGES) > 10
