import pytest

from tests.reporting.runs import write_own_texts


@pytest.fixture
def measured(run, world, tmp_path):
    """A run that validate and predict finished."""
    sweep = "--model.sweep.target_temperatures", "[0.0, 1.0]", "--model.sweep.max_new_tokens", "4"
    for command in ("validate", "predict"):
        code, _, error = run(command, "--config", world / "pair.yaml", *sweep)
        assert code == 0, error
    return tmp_path / "runs" / "pair"


def test_what_validate_and_predict_left_becomes_a_page(run, measured):
    code, printed, error = run("report", measured)
    assert code == 0, error
    assert printed.startswith(f"{measured / 'report' / 'report.html'}: figures in ")
    page = (measured / "report" / "report.html").read_text(encoding="utf-8")
    for part in ("Four questions", "acceptance rate", "Temperatures of target and draft", "Versions, hardware"):
        assert part in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: expected a run folder, got no folder; check the path"),
        (["."], "expected a run folder with fit, generate, validate, predict, got none of these"),
        ([], "runs"),
        ([".", "--outpt", "x"], "unknown option --outpt: did you mean '--output'?"),
    ],
)
def test_what_is_wrong_is_one_line(run, arguments, said):
    code, printed, error = run("report", *arguments)
    assert (code, printed) == (2, "")
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_study_prints_its_drafts_on_the_targets_own_text(run, tmp_path):
    folder = write_own_texts(tmp_path / "study", {"a": {0: {1.0: 0.4}}, "b": {0: {1.0: 0.5}}})
    code, printed, error = run("report", folder, "--against", "b")
    assert code == 0, error
    assert "Acceptance on the target's own text" in printed
    assert "Difference to b" in printed
    code, _, error = run("report", folder, "--against", "c")
    assert (code, error.count("\n")) == (2, 1)
    assert "one of a, b, got 'c'" in error
