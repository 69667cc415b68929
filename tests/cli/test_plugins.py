import json
import os
import subprocess
import sys
import types

import pytest
import yaml

from tempspec import registry
from tempspec.interfaces import Divergence


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
def test_every_plugin_is_listed_by_its_name_and_origin(run, monkeypatch, load, width):
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


SEVERAL = """
import contextlib, io, json, sys
from tempspec.__main__ import main
for line in json.loads(sys.argv[1]):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(line)
    print(json.dumps([code, out.getvalue(), error.getvalue()]))
"""


def command_lines(package, *lines, cwd):
    """A real process that finds a further package, and in it one command after the other: each one's code and texts."""
    environment = os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    told = json.dumps([list(map(str, line)) for line in lines])
    line = [sys.executable, "-c", SEVERAL, told]
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


THIRD_PARTY = """
model:
  divergence: {class_path: Renyi, init_args: {order: 0.7}}
  temperature: LogUniform
  verifiers: {forgiving: {class_path: SpecVerification, init_args: {gap: 0.5}}}
  sweep: {target_temperatures: [0.0], max_new_tokens: 4}
"""


@pytest.mark.slow
def test_an_installed_package_is_listed_selected_and_run(world, tmp_path, plugin_package):
    (tmp_path / "mine.yaml").write_text(THIRD_PARTY)
    options = ("--config", world / "pair.yaml", "--config", "mine.yaml", "--run", "run", "--trainer.max_steps", "1")
    typo = ("fit", "--config", world / "pair.yaml", "--model.divergence", "Reny")
    lines = ("plugins",), ("fit", *options), ("predict", *options), typo
    shown, *ran, refused = command_lines(plugin_package, *lines, cwd=tmp_path)
    found = listed(shown[1])
    assert found["divergences", "Renyi"] == found["schedules", "LogUniform"] == ["tempspec-example", "1.2.3"]
    assert found["verifiers", "SpecVerification"] == ["lossy", "tempspec-example", "1.2.3"]
    assert [code for code, *_ in ran] == [0, 0], ran
    divergence = yaml.safe_load((tmp_path / "run/fit/config.yaml").read_text())["model"]["divergence"]
    assert divergence == {"class_path": "tempspec_example.divergences.Renyi", "init_args": divergence["init_args"]}
    assert divergence["init_args"]["order"] == 0.7
    assert "forgiving" in (tmp_path / "run/predict/summary.csv").read_text()
    assert refused[0] == 2
    assert "did you mean 'Renyi'" in refused[2]


@pytest.mark.slow
def test_a_broken_package_warns_and_is_an_error_when_selected(world, tmp_path, broken_plugin_package):
    fit = ("fit", "--config", world / "pair.yaml", "--trainer.max_steps", "1")
    ran, refused = command_lines(broken_plugin_package, fit, (*fit, "--model.divergence", "Broken"), cwd=tmp_path)
    assert ran[0] == 0, ran
    assert ran[2].count("tempspec-broken 0.0.7") == 1
    assert refused[0] == 2
    assert "tempspec-broken 0.0.7" in refused[2].splitlines()[-1]
    assert "Traceback" not in refused[2]


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


def test_a_class_that_lacks_a_method_is_said_to_lack_it(run, world, monkeypatch):
    half = types.ModuleType("myplug")
    half.HalfTV = type("HalfTV", (Divergence,), {"__module__": "myplug"})
    monkeypatch.setitem(sys.modules, "myplug", half)
    declared = [*registry._declared(), registry.Plugin("divergences", "HalfTV", "myplug:HalfTV", "my-plug", "0.1")]
    monkeypatch.setattr(registry, "_declared", lambda: iter(declared))
    registry.load.cache_clear()
    try:
        with pytest.warns(registry.RegistryWarning):
            registry.load()
        for name in ("HalfTV", "myplug.HalfTV"):
            code, _, error = run("fit", "--config", world / "pair.yaml", "--model.divergence", name)
            assert code == 2
            assert "expected a concrete class, got one without per_position" in error
            assert "TEMPSPEC_ALLOW" not in error
    finally:
        monkeypatch.undo()
        registry.load.cache_clear()
