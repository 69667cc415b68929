import os
import subprocess
import sys

import pytest
import yaml

from tempspec import registry


def listed(printed):
    """The facts of every plugin by (family, name)."""
    found, family = {}, ""
    for line in printed.splitlines():
        if line and not line.startswith(" "):
            family = line.strip()
        elif line.startswith("  ") and not line.startswith("   "):
            name, *facts = line.split()
            found[family, name] = facts
    return found


@pytest.mark.parametrize("load", ["true", "false"])
@pytest.mark.parametrize("width", ["40", "250"])
def test_every_plugin_is_listed_by_its_whole_name_with_its_origin(run, monkeypatch, load, width):
    monkeypatch.setenv("COLUMNS", width)
    code, printed, _ = run("plugins", "--load", load)
    assert code == 0
    found = listed(printed)
    for plugin in registry.scan():
        assert plugin.distribution in found[plugin.family, plugin.name]


def test_losslessness_is_shown(run):
    found = listed(run("plugins", "--family", "verifiers")[1])
    assert found["verifiers", "BlockVerification"][0] == "lossless"
    assert found["verifiers", "Typical"][0] == "lossy"


def test_one_family(run):
    found = listed(run("plugins", "--family", "lengths", "--load", "false")[1])
    assert {family for family, _ in found} == {"lengths"}


def command_line(packages, *arguments, cwd):
    """A real process that finds further packages."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, packages)), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "tempspec", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_an_installed_package_is_listed_selected_by_name_and_configured(world, tmp_path, plugin_package):
    shown = command_line([plugin_package], "plugins", cwd=tmp_path)
    assert listed(shown.stdout)["divergences", "Jeffreys"] == ["tempspec-acme", "1.2.3"]
    options = ("--model.divergence", "Jeffreys", "--model.divergence.balance", "0.7", "--trainer.max_steps", "1")
    done = command_line([plugin_package], "fit", "--config", world / "pair.yaml", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((tmp_path / "runs/pair/fit/config.yaml").read_text())
    assert config["model"]["divergence"]["class_path"].endswith("Jeffreys")
    assert config["model"]["divergence"]["init_args"]["balance"] == 0.7


def test_a_typo_in_a_third_partys_name_gets_its_name(world, tmp_path, plugin_package):
    options = ("--config", world / "pair.yaml", "--model.divergence", "Jefreys")
    done = command_line([plugin_package], "fit", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'Jeffreys'" in done.stderr


def test_a_broken_package_costs_a_warning_and_an_error_when_selected(world, tmp_path, broken_plugin_package):
    options = ("--config", world / "pair.yaml", "--trainer.max_steps", "1")
    done = command_line([broken_plugin_package], "fit", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tempspec-broken 0.0.7") == 1
    options = (*options, "--model.divergence", "Broken")
    done = command_line([broken_plugin_package], "fit", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "tempspec-broken 0.0.7" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--family", "lenghts"], "family: expected one of 'divergences'"),
        (["--famly", "x"], "did you mean '--family'?"),
        (["--load", "perhaps"], "load: expected bool, got perhaps"),
    ],
)
def test_a_wrong_option_is_one_line(arguments, says, run):
    code, _, error = run("plugins", *arguments)
    assert code == 2
    assert says in error
    assert error.count("\n") == 1
