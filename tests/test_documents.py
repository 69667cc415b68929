"""What the documents show works: code blocks run, configurations parse."""

import re
from pathlib import Path

import pytest

from tempspec.__main__ import main
from tempspec.testing import ConformanceError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def test_the_guides_wrong_verifier_is_caught_by_the_kit_as_the_guide_says():
    write, check = blocks("CONTRIBUTING.md", "python")
    space = {"__name__": "my_package.verifiers"}
    exec(write, space)
    with pytest.raises(ConformanceError, match="the target's law"):
        exec(check, space)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("command", ["fit", "validate", "predict", "generate"])
def test_every_configuration_is_readable_by_every_subcommand(config, command, capsys):
    assert main([command, "--config", str(config), "--print_config"]) == 0
    assert "divergence:" in capsys.readouterr().out


def test_the_configurations_that_the_project_promises_are_there():
    assert {path.stem for path in CONFIGS} >= {
        "quickstart",
        "kd-local",
        "kd-qwen2.5",
        "kd-llama2",
        "predict-pair",
        "lossy",
    }


def test_the_quickstarts_configuration_is_the_one_that_it_runs():
    packaged = (ROOT / "tempspec/cli/quickstart/distilled.yaml").read_text(encoding="utf-8")
    shown = (ROOT / "configs/quickstart.yaml").read_text(encoding="utf-8")
    assert shown.partition("\n")[2] == packaged.replace("$folder", "runs/quickstart")


def test_the_readmes_configuration_is_readable(tmp_path, capsys):
    (block,) = blocks("README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    assert main(["fit", "--config", str(tmp_path / "mine.yaml"), "--print_config"]) == 0
    assert "low: 0.5" in capsys.readouterr().out


def test_every_subcommand_of_the_readme_exists(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    shown = set(re.findall(r"`tempspec (\w+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert shown
    assert all(re.search(rf"^\s+{name}\s", listed, re.MULTILINE) for name in shown)


def test_every_link_of_the_documents_leads_somewhere():
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/scale.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / document).parent / link).exists(), f"{document}: {link}"
