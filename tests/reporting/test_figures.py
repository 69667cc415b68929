import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.rows import Cell
from tempspec.reporting.figures import temperature_figure, write_figure


@pytest.fixture
def figure(estimates):
    return temperature_figure({"undistilled": estimates, "distilled": estimates}, caption="a small pair")


def test_each_metric_and_set_has_a_panel_each_run_a_curve(figure):
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert [line.get_label() for line in axes.get_lines()] == ["undistilled", "distilled"]
        assert list(axes.get_lines()[0].get_xdata()) == [0, 0.5, 1, 1.5]
    assert figure.axes[0].get_ylabel() == "acceptance rate\n(accepted / tested)"
    assert figure.axes[2].get_xlabel() == "target temperature T"
    assert figure.get_supxlabel().startswith("a small pair; n = 24 prompts per point")


def test_bands_are_the_intervals(figure, estimates):
    (band, _) = figure.axes[0].collections
    heights = {round(y, 6) for _, y in band.get_paths()[0].vertices}
    own = [e["acceptance_rate"] for cell, e in estimates.items() if cell.verifier == "TokenwiseRejection"]
    assert heights == {round(end, 6) for estimate in own for end in (estimate.low, estimate.high)}


def test_draft_temperatures_of_their_own_are_separate_curves():
    cells = [Cell("block", "code", t, draft) for t in (0.0, 1.0) for draft in (0.0, 0.5)]
    estimates = {cell: {"accepted_length": Estimate(2.0, 1.9, 2.1, 8)} for cell in cells}
    figure = temperature_figure({"one": estimates}, metrics=["accepted_length"])
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["one: block, draft T = 0", "one: block, draft T = 0.5"]


def test_the_same_numbers_give_the_same_bytes_of_png_and_svg(estimates, tmp_path):
    stems = tmp_path / "new" / "once", tmp_path / "v1.5 again"
    once, again = (write_figure(temperature_figure({"run": estimates}), stem) for stem in stems)
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert once[0].read_bytes().startswith(b"\x89PNG")
    assert "target temperature T" in "".join(ElementTree.fromstring(once[1].read_bytes()).itertext())
    assert [path.name for path in again] == ["v1.5 again.png", "v1.5 again.svg"]


def test_a_run_without_drafts_has_an_empty_figure(tmp_path):
    assert all(path.exists() for path in write_figure(temperature_figure({}), tmp_path / "empty"))


def test_drawing_touches_no_global_state():
    code = "import sys, tempspec.reporting.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
