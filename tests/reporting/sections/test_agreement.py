"""Measured and analytic acceptance are compared in all cells at once: equal ones agree, and a wrong one is named."""

import random

from tempspec.modules.predict.row_store import RowStore
from tempspec.reporting.page import write_report
from tempspec.reporting.runs import collect
from tempspec.reporting.sections.agreement import agreement, compared, in_words
from tests.reporting.runs import row, write_predict


def collected(folder, shift, prompts=40, **options):
    """A run whose verifier expects `shift` more than is accepted at T = 1, at two temperatures."""
    write_predict(folder, {0.5: 0.8, 1.0: 0.7}, prompts=prompts, **options)
    generator = random.Random(3)
    rows = [
        row(generator, rate, "token", "in", t, t, prompt, "acceptance") for t, rate in ((0.5, 0.8), (1.0, 0.7))
        for prompt in range(prompts)
    ]  # fmt: skip
    for one in rows:
        rate = 0.8 if one["target_temperature"] == 0.5 else 0.7 + shift
        one["expected_acceptance"] = [rate * tested for tested in one["tested"]]
    (folder / "predict" / "predictions.parquet").unlink()
    store = RowStore(folder / "predict", "predictions", {})
    store.append(rows)
    store.finish([one["key"] for one in rows])
    return collect([folder])


def test_cells_whose_verifier_was_right_agree(tmp_path):
    found = compared(collected(tmp_path / "run", 0.0))
    assert [(one.cell.target_temperature, one.agrees) for one in found] == [(0.5, True), (1.0, True)]
    assert in_words(found).startswith("measured and analytic acceptance agree in 2 of 2 cells (95% intervals that hold")


def test_a_verifier_that_expected_otherwise_is_named(tmp_path):
    collection = collected(tmp_path / "run", 0.1)
    found = compared(collection)
    assert [one.agrees for one in found] == [True, False]
    assert found[1].gap.high < 0 < found[1].measured.value < found[1].analytic.value
    assert "agree in 1 of 2 cells" in in_words(found)
    assert ", not in run, in, token, T = 1: -." in in_words(found)
    section = agreement(collection)
    (sheet,) = section.sheets
    assert [line[-1] for line in sheet.rows] == ["yes", "no"]
    assert section.text.startswith("Measured and analytic acceptance agree in 1 of 2 cells")
    assert "token, T = 1: -." in section.text  # names as they are


def test_without_expected_acceptances_nothing_is_compared(tmp_path):
    collection = collect([write_predict(tmp_path / "run", {1.0: 0.7})])
    assert (compared(collection), in_words([]), agreement(collection).sheets) == ([], "", [])
    page = write_report(collection, tmp_path / "out").read_text(encoding="utf-8")
    assert "Measured against analytic" not in page
