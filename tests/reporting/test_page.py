import shutil
from html.parser import HTMLParser

import pytest

from tempspec.reporting.page import write_report
from tempspec.reporting.runs import collect
from tests.reporting.runs import HOSTILE, write_predict, write_small_study, write_validate


class Elements(HTMLParser):
    """Every element with its attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.found, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a study with hostile names."""
    folder = tmp_path_factory.mktemp("report")
    return write_report(collect([write_small_study(folder / "study", name=HOSTILE)]), folder / "out")


@pytest.fixture(scope="module")
def elements(report):
    parser = Elements()
    parser.feed(report.read_text(encoding="utf-8"))
    return parser


def test_the_page_loads_nothing_and_runs_nothing(report, elements):
    tags = {tag for tag, _ in elements.found}
    assert tags.isdisjoint({"script", "img", "iframe", "object", "embed", "image", "foreignobject"})
    links = [attrs[name] for _, attrs in elements.found for name in ("src", "href", "xlink:href") if name in attrs]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not any(name.startswith("on") for _, attrs in elements.found for name in attrs)
    assert "@import" not in report.read_text(encoding="utf-8")
    assert "url(http" not in report.read_text(encoding="utf-8")


def test_names_are_text_wherever_they_stand(report, elements):
    assert HOSTILE in elements.text
    assert "1337" not in elements.text
    tables = report.parent / "tables"
    assert "{{7*191}}" in (tables / "decoding.csv").read_text(encoding="utf-8")
    assert r"\{\{7*191\}\} \$\textbackslash{}frac\$ \_" in (tables / "decoding.tex").read_text(encoding="utf-8")


def test_ids_are_unique_and_every_link_within_the_page_arrives(elements):
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs[name][1:] for _, attrs in elements.found for name in ("href", "xlink:href") if name in attrs}
    assert {link for link in links if not link.startswith("ata:")} <= set(ids)


def test_every_figure_is_told_in_words_and_lies_beside_the_page(report, elements):
    figures = [attrs for tag, attrs in elements.found if tag == "svg"]
    assert figures
    ids = {attrs["id"] for _, attrs in elements.found if "id" in attrs}
    for attrs in figures:
        assert attrs["role"] == "img"
        assert set(attrs["aria-labelledby"].split()) <= ids
    for kind in ("png", "svg"):
        assert len(list((report.parent / "figures").glob(f"*.{kind}"))) == len(figures)


def test_a_study_fills_every_section(elements):
    for title in (
        "Four questions",
        "Acceptance and block efficiency",
        "Speed",
        "Inside a round",
        "Temperatures of target and draft",
        "Trained at, decoded at: in, fixed text",
        "Sampled against argmax drafting",
        "Fixed against sampled prefixes",
        "Differences between drafts",
        "Categories",
        "Provenance",
    ):
        assert title in elements.text


def test_sections_without_numbers_are_left_out(tmp_path):
    page = write_report(collect([write_validate(tmp_path / "run", 0.1)]), tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert "Inside a round" not in text
    assert "Temperatures of target and draft" in text
    assert {path.stem for path in (tmp_path / "out" / "tables").iterdir()} == {"draft-temperatures", "provenance"}


@pytest.mark.slow
def test_the_same_runs_give_the_same_page_and_changes_are_listed(tmp_path):
    runs = [write_predict(tmp_path / "a", {1.0: 0.5}), write_predict(tmp_path / "b", {1.0: 0.6})]
    pages = [write_report(collect(runs), tmp_path / name).read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert (tmp_path / "one" / "tables" / "changes-predict.csv").read_text() == "option,a,b\nrates,[0.5],[0.6]\n"


@pytest.mark.slow
def test_a_later_report_removes_the_earlier_ones_files_alone(tmp_path):
    write_report(collect([write_predict(tmp_path / "old", {1.0: 0.5}, verifier="typical")]), tmp_path / "out")
    theirs = tmp_path / "out/figures/mine.png"
    theirs.write_bytes(b"")
    with (tmp_path / "out/files.txt").open("a") as listed:
        listed.write("../old/predict/predictions.parquet\n")
    write_report(collect([write_predict(tmp_path / "new", {1.0: 0.5})]), tmp_path / "out")
    left = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("*/*")}
    assert left == {*(tmp_path / "out/files.txt").read_text().splitlines(), "figures/mine.png"}
    assert not any("typical" in name for name in left)
    assert (tmp_path / "old/predict/predictions.parquet").exists()


CHECK = """() => {
  const outside = [], small = [];
  for (const svg of document.querySelectorAll("figure svg")) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        outside.push(svg.id + text.textContent);
      if (parseFloat(getComputedStyle(text).fontSize) * frame.width / svg.viewBox.baseVal.width < 9)
        small.push(text.textContent);
    }
  }
  const root = document.documentElement;
  return {outside, small, overflow: root.scrollWidth - root.clientWidth,
    untold: [...document.querySelectorAll("figure svg")].filter(svg =>
      svg.getAttribute("aria-labelledby").split(" ").some(id => !document.getElementById(id).textContent)).length,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector("figure svg text")).fill};
}"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    ("scheme", "paper", "ink"),
    [("light", "rgb(255, 255, 255)", "rgb(34, 34, 34)"), ("dark", "rgb(21, 24, 28)", "rgb(230, 230, 230)")],
)
def test_the_page_in_a_browser(report, tmp_path, width, scheme, paper, ink):
    from playwright.sync_api import sync_playwright

    said, asked = [], []
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        found = page.evaluate(CHECK)
        page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert found == {"outside": [], "small": [], "overflow": 0, "untold": 0, "paper": paper, "ink": ink}
