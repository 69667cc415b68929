import pytest

from tempspec.cli.quickstart.results import sentences, show
from tempspec.metrics.collection import SweepMetrics
from tempspec.reporting.decoded_rows import decoded_rows
from tests.reporting.runs import write_predict

FALLING = {0.0: 0.9, 0.5: 0.9, 1.5: 0.5}
FLAT = {0.0: 0.5, 0.5: 0.5, 1.5: 0.5}


def said(tmp_path, before, after):
    metrics = []
    for name, rates in (("before", before), ("distilled", after)):
        folder = write_predict(tmp_path / name, rates, prompts=24)
        metrics.append(SweepMetrics.of_rows(decoded_rows(folder / "predict" / "predictions.parquet")[0]))
    return sentences(*metrics)


def test_a_fall_and_a_gain_are_said_where_they_are_shown(tmp_path):
    temperature, distillation, speed = said(tmp_path, FLAT, FALLING)
    assert "acceptance falls from .900 at T = 0.5 to .511 at T = 1.5, -.389 [" in temperature
    assert distillation == ("- Distillation: acceptance rises at T = 0 and 0.5, and is not shown to change at T = 1.5.")
    assert "times as fast as without it at T = 0.5" in speed
    assert "By distillation it rises at T = 0 and 0.5, and is not shown" in speed


def test_nothing_is_claimed_of_two_equal_drafts(tmp_path):
    temperature, distillation, speed = said(tmp_path, FLAT, FLAT)
    assert "acceptance is not shown to change from" in temperature
    assert distillation == "- Distillation: acceptance is not shown to change at any T."
    assert speed.endswith("By distillation it is not shown to change at any T.")


def test_a_loss_is_called_one(tmp_path):
    _, distillation, _ = said(tmp_path, FALLING, FLAT)
    assert "acceptance falls at T = 0 and 0.5" in distillation


@pytest.mark.parametrize("width", [80, 120])
def test_table_and_sentences_fit_one_screen(tmp_path, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for name, rates in (("before", FLAT), ("distilled", FALLING)):
        write_predict(tmp_path / name, {**rates, 1.0: 0.7}, prompts=24)
    show(tmp_path / "before/predict", tmp_path / "distilled/predict", tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 28
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if "difference" in line and "[" in line]
    assert len(rows) == 4
    assert all(row.count("[") == 3 for row in rows)  # a number and its interval for each metric, on one line
    assert (tmp_path / "curves.png").is_file()
