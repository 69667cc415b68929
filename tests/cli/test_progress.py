import io

import pytest

from tempspec.cli.progress import PaceLines
from tempspec.decoding.pace import Pace, PassCounts


@pytest.mark.parametrize(
    ("command", "config", "shown"),
    [("fit", "lm.yaml", ("Epoch 0", "loss:")), ("predict", "pair.yaml", ("timing pass", "acceptance 0.", "tokens/s"))],
)
def test_the_bar_shows_the_stage_and_its_figures_by_short_names(command, config, shown, run, world, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # a terminal, for rich
    monkeypatch.setenv("TERM", "xterm-256color")  # one that redraws, whatever the tests were started in
    options = ("--trainer.enable_progress_bar", "true", "--model.sweep.max_new_tokens", "4")
    code, out, error = run(command, "--config", world / config, *(options if command == "predict" else options[:2]))
    assert code == 0, error
    assert all(part in out for part in shown), out
    assert "train/" not in out
    assert "v_num" not in out


@pytest.fixture
def clock():
    """A clock that stands until it is set."""

    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    return Clock()


def test_lines_begin_soon_and_come_every_half_minute(clock):
    stream = io.StringIO()
    lines, pace = PaceLines(stream, clock), Pace("acceptance pass", 100, clock=clock)
    pace.start()
    moved = []
    for second in range(1, 71):
        clock.now = 100.0 + second
        tokens = 10 * max(second - 3, 0)  # three seconds pass before the first token
        pace.counts = PassCounts(second // 10, 60 * (second // 10), tokens, tokens, tokens // 2)
        before = stream.tell()
        lines.show(pace)
        moved += [second] if stream.tell() > before else []
    assert moved == [9, 39, 69]  # the first within five seconds of the first token
    first, second, _ = stream.getvalue().splitlines()
    assert first == "acceptance pass: 0 of 100 rows, tokens/s 7, acceptance 0.500"
    assert second == "acceptance pass: 3 of 100 rows, tokens/s 9, acceptance 0.500, left 10:11"


def test_the_time_left_goes_by_tokens_not_by_rows(clock):
    pace = Pace("timing pass", 50, old_rows=10, clock=clock)
    pace.start()
    assert pace.seconds_left is None
    clock.now += 20
    pace.counts = PassCounts(rows=10, finished=1000, tokens=1400)
    # 30 rows of 100 tokens are missing, and 400 of these tokens are there, at 70 a second
    assert pace.seconds_left == pytest.approx((30 * 100 - 400) / 70)
    assert (pace.rows, pace.all_rows) == (20, 50)


@pytest.mark.parametrize(("tokens", "shown"), [(0, "0"), (4, "0.40"), (10, "1"), (126, "13")])
def test_less_than_a_token_per_second_is_not_shown_as_0(tokens, shown, clock):
    pace = Pace("timing pass", 3, clock=clock)
    pace.start()
    clock.now += 10
    pace.counts = PassCounts(tokens=tokens)
    assert pace.figures()["tokens/s"] == shown


def test_another_pass_has_lines_of_its_own(clock):
    stream = io.StringIO()
    lines = PaceLines(stream, clock)
    for name in ("acceptance pass", "timing pass"):
        pace = Pace(name, 3, clock=clock)
        pace.start()
        for _ in range(7):
            clock.now += 1
            pace.counts = PassCounts(0, 0, 5, 0, 0)
            lines.show(pace)
    assert [line.partition(":")[0] for line in stream.getvalue().splitlines()] == ["acceptance pass", "timing pass"]
