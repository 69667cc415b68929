from tempspec.metrics.bootstrap import Estimate
from tempspec.reporting.charts import heatmap


def map_of(*values):
    found = {(0.0, float(row)): Estimate(value, value, value, 9) for row, value in enumerate(values)}
    return heatmap("m", "Acceptance", found, [(0.0, 0.0)], x="T", y="draft T", mark="equal ones").figure.axes[0]


def test_a_map_shades_from_nothing_to_its_largest_value():
    """A scale to 1 leaves a map of small values one dark field."""
    cells = map_of(0.2, 0.4).collections[0]
    assert cells.get_clim() == (0.0, 0.4)
    light, dark = (sum(cells.to_rgba(value)[:3]) for value in (0.2, 0.4))
    assert dark < light - 0.8


def test_numbers_are_light_on_dark_cells_and_dark_on_light_ones():
    axes = map_of(0.2, 0.4)
    assert [text.get_color() for text in axes.texts] == ["#010101", "#fefefe"]


def test_a_map_of_nothing_but_zeros_can_be_drawn():
    assert map_of(0.0, float("nan")).collections[0].get_clim() == (0.0, 1.0)
