import pytest

from tempspec import registry


@pytest.mark.parametrize("load", ["true", "false"])
def test_every_plugin_is_listed_with_its_origin(run, monkeypatch, load):
    monkeypatch.setenv("COLUMNS", "250")
    code, printed, _ = run("plugins", "--load", load)
    lines = [line.split() for line in printed.splitlines()]
    assert code == 0
    for plugin in registry.scan():
        assert any(line[:2] == [plugin.family, plugin.name] and line[2] == plugin.distribution for line in lines)


def test_losslessness_is_shown(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    _, printed, _ = run("plugins", "--family", "verifiers")
    shown = {line.split()[1]: line.split()[4] for line in printed.splitlines() if line.startswith("verifiers")}
    assert shown["BlockVerification"] == "yes"
    assert shown["Typical"] == "no"


def test_one_family(run):
    _, printed, _ = run("plugins", "--family", "lengths", "--load", "false")
    assert {line.split()[0] for line in printed.splitlines()} <= {"family", "lengths"}


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
