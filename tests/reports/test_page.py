"""The report's files: complete, escaped, without parts from elsewhere, the same every time."""

import csv
import json
import os
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("matplotlib")

import sample_report

from aadml_jax.errors import UserError
from aadml_jax.reports.figures import draw_bars
from aadml_jax.reports.page import Card, Report, SideBySide
from aadml_jax.reports.page import report as report_module
from aadml_jax.reports.statistics import MeanAndSpread, PairedDifference
from aadml_jax.reports.tables import Table

VOID = {"meta", "br", "hr", "img", "input", "link"}
ATTACK = "<script>alert('a&b')</script>\"]"


class Page(HTMLParser):
    """Elements, identifiers, targets and texts of a page; a tag left open is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.targets, self.references = [], [], [], []
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            self.attributes.append((tag, name, value))
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href"):
                self.targets.append(value)
            elif name == "aria-labelledby":
                self.references.append(value)
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    assert sample_report.sample_report().write(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def sample(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def small_figure():
    return draw_bars(["a"], {"s": [1]}, title="t", value_label="v")


def test_folder_holds_all_that_was_reported_and_no_more(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    drawings = ("training", "classes", "confusion", "embedding")
    assert names == {
        *("report.html", "report.md", "numbers.json", "map-by-loss.csv"),
        "map-on-ave-as-quoted-from-the-literature-unverified.csv",
        *(f"figures/{name}.{kind}" for name in drawings for kind in ("png", "svg")),
    }


def test_page_is_well_formed_and_its_identifiers_are_unique(sample):
    assert len(sample.ids) == len(set(sample.ids))
    assert len([name for name in sample.ids if name.startswith("training.")]) > 10
    headings = [tag for tag in sample.tags if re.fullmatch("h[1-6]", tag)]
    assert headings == ["h1", "h2", "h2", "h2", "h2"]


def test_every_reference_within_the_page_has_a_target(sample):
    inner = [target[1:] for target in sample.targets if target.startswith("#")]
    assert len(inner) > 100  # links of the contents, marks and letters of the figures
    assert set(inner) <= set(sample.ids)
    assert len(sample.references) > 10  # clip paths, titles of tables
    assert set(sample.references) <= set(sample.ids)


def test_page_asks_for_nothing_from_elsewhere(sample, folder):
    others = {target for target in sample.targets if not target.startswith("#")}
    assert all(target.startswith("data:") or (folder / target).is_file() for target in others)
    assert not {"link", "iframe", "object", "img"} & set(sample.tags)
    (policy,) = [
        value
        for tag, name, value in sample.attributes
        if (tag, name) == ("meta", "content") and "default-src" in value
    ]
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    )
    style = (folder / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_figures_are_described_and_take_the_colours_of_the_page(sample, folder):
    descriptions = [v for t, name, v in sample.attributes if (t, name) == ("svg", "aria-label")]
    assert len(descriptions) == 4
    assert descriptions[0] == "MAP on the test rows, and precision at K."
    text = (folder / "report.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert all("var(--ink)" in drawing and "#1f2328" not in drawing for drawing in drawings)
    assert not any("<style" in drawing or "<metadata" in drawing for drawing in drawings)


def test_a_figure_of_another_style_keeps_its_white_ground(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    report = Report("t")
    report.section("s").figure("other", figure, "A line.")
    text = report.write(tmp_path).read_text()
    drawing = text[text.index("<svg") :]
    assert 'class="on-white"' in drawing
    assert "var(--" not in drawing.partition("</svg>")[0]


def test_captions_set_code_as_code_and_describe_without_its_marks(tmp_path):
    report = Report("t")
    report.section("s").figure("figure", small_figure(), "Loss `a<b` by epoch.")
    text = report.write(tmp_path).read_text()
    assert "<figcaption>Loss <code>a&lt;b</code> by epoch.</figcaption>" in text
    assert 'aria-label="Loss a&lt;b by epoch."' in text
    markdown = (tmp_path / "report.md").read_text()
    assert "![Loss a\\<b by epoch.](" in markdown and "Loss `a<b` by epoch." in markdown


def test_text_from_outside_stays_text(tmp_path):
    report = Report(f"title {ATTACK}", f"introduction {ATTACK} `code {ATTACK}`")
    section = report.section(f"section {ATTACK}", f"text {ATTACK}")
    section.table(Table(f"table {ATTACK}", [f"column {ATTACK}"], [[f"cell {ATTACK}"]], ATTACK))
    section.figure("figure", small_figure(), f"caption {ATTACK}")
    report.configuration({f"key {ATTACK}": f"value {ATTACK}", "list": [ATTACK]})
    report.versions({f"package {ATTACK}": ATTACK})
    text = report.write(tmp_path).read_text()
    parsed = Page(text)
    assert parsed.tags.count("script") == 1
    assert "<script>alert" not in text
    shown = "\n".join(parsed.texts)
    for what in ("title", "introduction", "code", "section", "text", "table", "column", "cell"):
        assert f"{what} {ATTACK}" in shown
    for what in ("caption", "key", "value", "package"):
        assert f"{what} {ATTACK}" in shown
    assert ("svg", "aria-label", f"caption {ATTACK}") in parsed.attributes
    markdown = (tmp_path / "report.md").read_text()
    assert not re.search(r"(?<!\\)<script", markdown.replace(f"`code {ATTACK}`", ""))


def test_numbers_are_those_that_went_in(tmp_path):
    third = 1 / 3
    rows = [
        ["a", MeanAndSpread(third, 1e-17, 5), PairedDifference(-third, None, None, 1), 2**60],
        [None, 0.1 + 0.2, PairedDifference(third, -1e300, 5e-324, 7), -0.0],
    ]
    report = Report("t")
    report.section("first").text("no table")
    report.section("second").table(Table("Table 1", ["name", "MAP", "gain", "n"], rows, "note"))
    report.configuration({"sizes": [1, 2], "rate": 1e-4, "fold": None})
    report.versions({"jax": "1"})
    report.write(tmp_path)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    records = [
        {"name": "a", "MAP": {"mean": third, "std": 1e-17, "n": 5}, "n": 2**60}
        | {"gain": {"mean": -third, "low": None, "high": None, "n": 1}},
        {"name": None, "MAP": 0.1 + 0.2, "n": -0.0}
        | {"gain": {"mean": third, "low": -1e300, "high": 5e-324, "n": 7}},
    ]
    table = {"title": "Table 1", "file": "table-1.csv", "note": "note", "records": records}
    table["columns"] = ["name", "MAP", "gain", "n"]
    assert numbers == {
        "title": "t",
        "sections": [{"title": "first", "tables": []}, {"title": "second", "tables": [table]}],
        "configuration": {"sizes": [1, 2], "rate": 1e-4, "fold": None},
        "versions": {"jax": "1"},
    }
    first, _ = csv.DictReader((tmp_path / "table-1.csv").read_text().splitlines())
    assert float(first["MAP mean"]) == third


def test_cells_carry_what_they_are_sorted_by(tmp_path):
    rows = [["x", MeanAndSpread(0.727, 0.004, 5), PairedDifference(-0.003, -0.1, 0.1, 5), None]]
    report = Report("t")
    report.section("s").table(Table("t", ["a", "b", "c", "d"], rows))
    text = report.write(tmp_path).read_text()
    assert '<th scope="row">x</th>' in text
    assert '<td class="number" data-sort="0.727">.727 ± .004</td>' in text
    assert '<td class="number" data-sort="-0.003">−.003 [−.100, +.100]</td>' in text
    assert '<td data-sort="">–</td>' in text


def test_only_long_texts_may_be_broken(tmp_path):
    report = Report("t")
    report.section("s").table(Table("t", ["a", "b", "c"], [["x" * 90, "&" * 48, "z" * 49]]))
    text = report.write(tmp_path).read_text()
    assert f'<th scope="row">{"x" * 90}</th>' in text
    assert f"<td>{'&amp;' * 48}</td>" in text
    assert f'<td class="long">{"z" * 49}</td>' in text


def test_markdown_has_everything_in_order(folder):
    text = (folder / "report.md").read_text()
    parts = [
        "# Anchor-aware proxies under two losses\n",
        "`--num_neighbors=3`",
        "## Results\n\nBoth directions are averaged.\n",
        "| n-pair \\| all |",
        "![MAP on the test rows, and precision at K.](figures/training.png)",
        "## Classes",
        "## Quoted figures",
        "## Configuration\n\n| name | value |\n|---|---|\n| loss | triplet |\n| margin | 1.0 |",
        "## Versions",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_items_stand_side_by_side_with_their_media_files(tmp_path):
    query = Card(f"query {ATTACK}", [f"fact {ATTACK}"], [f"/media/{ATTACK.replace('/', '')}.wav"])
    results = [Card("first", media=["/media/x.jpg", "/media/x.webm"]), Card("second *")]
    report = Report("t")
    report.section("s").side_by_side(SideBySide(query, results))
    text = report.write(tmp_path).read_text()
    parsed = Page(text)
    shown = "\n".join(parsed.texts)
    assert f"query {ATTACK}" in shown and f"fact {ATTACK}" in shown
    assert parsed.tags.count("script") == 1
    (sound,) = (value for tag, name, value in parsed.attributes if (tag, name) == ("audio", "src"))
    path = os.path.relpath("/media", tmp_path)
    assert sound == f"{path}/%3Cscript%3Ealert%28%27a%26b%27%29%3Cscript%3E%22%5D.wav"
    assert parsed.targets[-2:] == [f"{path}/x.jpg", f"{path}/x.webm"]
    assert text.index('class="query"') < text.index(">first<") < text.index(">second *<")
    markdown = (tmp_path / "report.md").read_text()
    assert f"1. first, [x.jpg]({path}/x.jpg), [x.webm]({path}/x.webm)\n2. second \\*\n" in markdown
    assert not re.search(r"(?<!\\)<script", markdown)


def test_same_report_gives_the_same_bytes(tmp_path, folder):
    report = sample_report.sample_report()
    report.write(tmp_path)
    report.write(tmp_path)
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder)
            assert (tmp_path / name).read_bytes() == path.read_bytes(), name


def test_equal_titles_get_files_and_headings_of_their_own(tmp_path):
    report = Report("t")
    for value in (1, 2, 3):
        report.section("Same").table(Table("Same → title", ["a"], [[value]]))
    report.section("→").table(Table("→", ["a"], [[4]]))
    text = report.write(tmp_path).read_text()
    names = ["same-title.csv", "same-title-2.csv", "same-title-3.csv", "table.csv"]
    assert [(tmp_path / name).read_text() for name in names] == [f"a\n{n}\n" for n in range(1, 5)]
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))


def test_an_interrupted_write_leaves_the_page_as_it_was(tmp_path, monkeypatch):
    report = Report("old")
    report.write(tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    replace = os.replace

    def stop_at_the_page(source, target):
        if target.name == "report.html":
            raise KeyboardInterrupt
        replace(source, target)

    report = Report("new")
    report.section("s").figure("f", small_figure(), "c")
    with monkeypatch.context() as patch:
        patch.setattr("aadml_jax._files.os.replace", stop_at_the_page)
        with pytest.raises(KeyboardInterrupt):
            report.write(tmp_path)
    assert (tmp_path / "figures" / "f.svg").exists()
    assert (tmp_path / "report.html").read_bytes() == before


def test_page_is_written_last(tmp_path, monkeypatch):
    report = Report("t")
    section = report.section("s")
    section.figure("f", small_figure(), "c")
    section.table(Table("t", ["a"], [[1]]))
    written = []
    real = report_module.written_as_a_whole

    def noted(path, mode):
        written.append(path.name)
        return real(path, mode)

    monkeypatch.setattr(report_module, "written_as_a_whole", noted)
    report.write(tmp_path)
    assert written == ["numbers.json", "t.csv", "report.md", "report.html"]


def test_a_report_without_parts_is_a_page_too(tmp_path):
    parsed = Page(Report("Alone").write(tmp_path).read_text())
    assert "nav" not in parsed.tags
    assert (tmp_path / "report.md").read_text() == "# Alone\n"


def test_later_changes_of_a_configuration_do_not_reach_the_report(tmp_path):
    values = {"sizes": [1]}
    report = Report("t")
    report.configuration(values)
    values["sizes"].append(2)
    report.write(tmp_path)
    assert json.loads((tmp_path / "numbers.json").read_text())["configuration"] == {"sizes": [1]}


def add_figures(*names, caption="c"):
    section = Report("t").section("s")
    for name in names:
        section.figure(name, None, caption)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Report("  "), "a report needs a title"),
        (lambda: add_figures("a b"), "figure name 'a b' must be small letters"),
        (lambda: add_figures("../a"), "figure name '../a' must be small letters"),
        (lambda: add_figures("a", "a"), "figure name 'a' is taken"),
        (lambda: add_figures("a", caption=" "), "figure 'a' has no caption"),
        (lambda: Report("t").configuration({"a": {1}}), "configuration: a = {1} cannot be written"),
        (lambda: Report("t").versions({"a": float("nan")}), "versions: a = nan cannot be written"),
        (lambda: Report("t").configuration({1: 2}), "the name 1 is not a text"),
    ],
)
def test_wrong_input_is_named(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        wrong()


def test_a_folder_that_cannot_be_written_to_ends_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x cannot be written to \(Not a directory\)"):
        Report("t").write(tmp_path / "file" / "x")
