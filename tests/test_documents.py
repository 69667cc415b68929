"""What the documents show works: code blocks run, configurations parse."""

import json
import re
import warnings
from pathlib import Path
from typing import get_args

import pytest
import yaml

import tempspec
from tempspec.__main__ import main
from tempspec.cli.quickstart import steps
from tempspec.registry import FAMILIES, scan
from tempspec.reporting.study_index import Kind
from tempspec.testing import ConformanceError
from tests.slow import slow_but
from tests.tiny import save_pair, words

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STUDIES = sorted((ROOT / "configs/studies").glob("*.yaml"))


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
GUIDES = [page for page in PAGES if page.startswith("docs/plugins/")]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/tempspec-plugin/README.md", *PAGES]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page != "docs/python.md"])
def test_the_code_of_every_page_runs_and_says_what_it_should(page):
    space = {"__name__": "my_package"}
    for block in blocks(page, "python"):
        if "# ConformanceError" in block:
            with pytest.raises(ConformanceError, match="the target's law"):
                exec(block, space)
        else:
            exec(block, space)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_on_your_own_models_runs_as_written(page, tmp_path, monkeypatch):
    """On a tiny pair in the folders that the page names, with fewer steps."""
    pair_on_disk(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    space = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, on a machine without devices
        for block in blocks(page, "python"):
            shorter = re.sub(r"\b(max_steps|eval_steps)=\d+", r"\1=2", block)
            exec(shorter, space)
    assert len(space["module"].results()) == len(space.get("frame", range(8))) == 8
    assert (tmp_path / "predict/predictions.parquet").is_file()


def test_the_page_on_python_lists_the_names_that_are_no_plugins():
    listed = (ROOT / "docs/python.md").read_text(encoding="utf-8").partition("## The names")[2]
    plugins = {plugin.name for plugin in scan()}
    names = {name for name in dir(tempspec) if name not in plugins and not name.startswith("_")}
    assert names == {name for name in names if f"`{name}`" in listed}


def pair_on_disk(folder):
    save_pair(folder / "models", words(), context=256)
    (folder / "data").mkdir()
    rows = [{"prompt": f"w{n} w{n + 1}", "response": f" w{n + 2} w{n}"} for n in range(1, 21)]
    for name, some in (("train", rows), ("prompts", rows[:2])):
        text = "\n".join(map(json.dumps, some))
        (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")


def test_every_family_has_a_guide_that_contributing_links():
    entrance = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {Path(guide).stem for guide in GUIDES} == {family.removesuffix("s") for family in FAMILIES}
    for guide in GUIDES:
        assert guide in entrance
        page = (ROOT / guide).read_text(encoding="utf-8")
        assert f"check_{Path(guide).stem}(" in page
        assert f'entry-points."tempspec.{Path(guide).stem}s"' in page


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [page for page in PAGES if page != "docs/README.md" and f"({page.removeprefix('docs/')})" not in index] == []


def test_the_errors_that_are_explained_are_ones_that_exist():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tempspec").rglob("*.py"))
    explained = re.findall(
        r"^\| `([^`]+)`", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(explained) > 15
    assert [line for line in explained if line not in source] == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("command", ["fit", "validate", "predict", "generate"])
def test_every_configuration_is_readable_by_every_subcommand(config, command, capsys):
    assert main([command, "--config", str(config), "--print_config"]) == 0
    assert "divergence:" in capsys.readouterr().out


@pytest.mark.parametrize("name", slow_but("decoding-temperature", "real-gain", among=(path.stem for path in STUDIES)))
def test_every_study_shows_its_plan(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs" / "studies" / f"{name}.yaml"
    assert main(["study", "--config", str(config), "--dry-run"]) == 0
    assert re.match(r"plan: [1-9]\d* cells in [1-9]\d* runs\n", capsys.readouterr().out)
    kind = re.findall(r"^kind: (\S+)$", config.read_text(encoding="utf-8"), re.MULTILINE)
    assert kind == [name] or name not in get_args(Kind)


@pytest.mark.parametrize("config", [*CONFIGS, *STUDIES], ids=lambda path: path.stem)
def test_a_configuration_says_first_for_whom_it_is(config):
    assert re.match(r"# For [^\n]+[.?]\n", config.read_text(encoding="utf-8"))


def test_the_configurations_that_the_project_promises_are_there():
    assert {path.stem for path in CONFIGS} >= {
        "quickstart",
        "kd-local",
        "kd-qwen2.5",
        "kd-llama2",
        "predict-pair",
        "lossy",
        "cached-teacher",
        "one-draft",
        "on-policy",
    }


def test_the_quickstarts_configuration_is_the_one_that_it_runs():
    packaged = (ROOT / "tempspec/cli/quickstart/distilled.yaml").read_text(encoding="utf-8")
    shown = (ROOT / "configs/quickstart.yaml").read_text(encoding="utf-8")
    assert shown.partition("\n")[2] == packaged.replace("$folder", "runs/quickstart")


def test_the_page_on_the_quickstart_has_its_steps_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the configurations are written
    page = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| \d+ \| (.+) \| `(.+)` \| `.+` \|$", page, re.MULTILINE)
    assert shown == [(step.title, step.command) for step in steps(Path("runs/quickstart"))]


@pytest.mark.parametrize("page", ["README.md", *(page for page in PAGES if blocks(page, "yaml"))])
def test_the_configurations_of_the_documents_are_readable(page, tmp_path, capsys):
    for block in blocks(page, "yaml"):
        (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
        assert main(["fit", "--config", str(tmp_path / "mine.yaml"), "--print_config"]) == 0
        assert "divergence:" in capsys.readouterr().out


def test_the_readme_shows_every_subcommand_and_no_other(capsys):
    assert main(["--help"]) == 0
    listed = set(re.findall(r"^  ([\w-]+)  ", capsys.readouterr().out, re.MULTILINE))
    assert set(re.findall(r"`tempspec ([\w-]+)", (ROOT / "README.md").read_text(encoding="utf-8"))) == listed


def test_the_citation_is_of_this_version_and_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == tempspec.__version__
    assert cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(cited)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / document).parent / link).exists(), link
