"""Figures as SVG inside a page: unique ids, a title and a description, and colours for both schemes (floor 5)."""

import re
from xml.etree import ElementTree

from tempspec.reporting.charts import FAINT, INK, Chart
from tempspec.reporting.figures import PALETTE

__all__ = ["inline_svg"]

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_LIGHTER = ("#5eb1ea", "#ff9a4d", "#3fd0a5", "#e8a3cb", "#ffc247", "#8fd0f7")
_DARK = dict(zip((color.lower() for color in PALETTE), _LIGHTER, strict=True)) | {INK: "#e6e6e6", FAINT: "#3a3f47"}


def inline_svg(chart: Chart, drawn: str) -> str:
    """The chart as an `<svg>` element for an HTML page; the same text for the same numbers.

    Args:
        chart: the chart.
        drawn: its own SVG file, with text as text.
    """
    for prefix, space in (("", _SVG), ("xlink", _XLINK)):
        ElementTree.register_namespace(prefix, space)
    root = ElementTree.fromstring(drawn)
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for name, value in list(element.items()):
            element.set(name, _adapt(name.rpartition("}")[2], value, chart.name))
    _describe(root, chart)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(name: str, value: str, prefix: str) -> str:
    """An attribute with its ids made unique in the page and its colours for both schemes."""
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href" and value.startswith("#"):
        return f"#{prefix}-{value[1:]}"
    value = value.replace("url(#", f"url(#{prefix}-").replace("fill: #ffffff", "fill: none")  # the page's own paper
    return re.sub(r"([a-z-]+): (#[0-9a-fA-F]{6})(?=;|$)", _both, value) if name == "style" else value


def _both(match: re.Match[str]) -> str:
    """A declaration, and for browsers that know it one that follows the colour scheme."""
    name, color = match.groups()
    dark = _DARK.get(color.lower())
    return f"{name}: {color}" + (f"; {name}: light-dark({color}, {dark})" if dark else "")


def _describe(root: ElementTree.Element, chart: Chart) -> None:
    for name in ("width", "height"):
        root.attrib.pop(name)
    root.set("role", "img")
    root.set("aria-labelledby", f"{chart.name}-title {chart.name}-desc")
    for place, (kind, text) in enumerate((("title", chart.title), ("desc", chart.alt))):
        element = ElementTree.Element(f"{{{_SVG}}}{kind}", {"id": f"{chart.name}-{kind}"})
        element.text = text
        root.insert(place, element)
