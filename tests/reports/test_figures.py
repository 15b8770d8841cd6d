"""Figures: what is drawn is what was given, and the files are the same every time."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import aadml_jax
from aadml_jax.errors import UserError
from aadml_jax.reports import figures
from aadml_jax.reports.figures import (
    Curve,
    Embedding,
    Panel,
    Reference,
    draw_bars,
    draw_curves,
    draw_heat_map,
    draw_intervals,
    draw_scatter,
    write_figure,
)
from aadml_jax.reports.statistics import PairedDifference

needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="Matplotlib is not installed",
)
AWARE = Curve("aware", [1, 2, 4], [0.5, 0.6, 0.65], [0.4, 0.5, 0.6], [0.6, 0.7, 0.7], "aware", 2)
PLAIN = Curve("plain", [1, 2, 4], [0.5, 0.55, 0.6], style="plain", color=2)
PANEL = Panel("VEGAS", "K", "MAP", [PLAIN, AWARE], log_x=True, references=[Reference("chance", 0)])


def one_of_each():
    """A figure of each kind, by name."""
    labels = np.array([0, 1, 1, 0])
    audio, visual = np.arange(16.0).reshape(2, 4, 2)
    return {
        "curves": draw_curves([PANEL]),
        "heat": draw_heat_map([[0.1, np.nan, 0.9]], ["r"], ["a", "b", "c"], title="t"),
        "scatter": draw_scatter([Embedding("t", audio, visual, labels)], class_names=["a", "b"]),
        "intervals": draw_intervals(
            ["a", "b"], {"x": [PairedDifference(0.1, 0, 0.2, 3), None]}, value_label="gain"
        ),
        "bars": draw_bars(["a", "b"], {"x": [0.1, 0.2]}, title="t", value_label="MAP"),
    }


@needs_matplotlib
def test_curves_have_the_points_bands_labels_and_levels_that_were_given():
    figure = draw_curves([PANEL, Panel("AVE", "epoch", "MAP", [PLAIN])])
    left, right = figure.axes
    assert (left.get_title(loc="left"), left.get_xlabel(), left.get_ylabel()) == (
        "VEGAS",
        "K",
        "MAP",
    )
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    plain, aware, chance = left.get_lines()
    np.testing.assert_array_equal(aware.get_xydata(), np.transpose([AWARE.x, AWARE.y]))
    assert set(chance.get_ydata()) == {0}
    (band,) = left.collections
    assert band.get_datalim(left.transData).intervaly.tolist() == [0.4, 0.7]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["plain", "aware", "chance"]
    assert [text.get_text() for text in left.get_xticklabels()] == ["1", "2", "4"]
    assert plain.get_color() == aware.get_color() == right.get_lines()[0].get_color()
    assert (plain.get_linestyle(), aware.get_linestyle()) == ("--", "-")
    assert plain.get_markerfacecolor() != aware.get_markerfacecolor()


@needs_matplotlib
def test_intervals_are_filled_where_they_leave_zero_out():
    left = [
        PairedDifference(0.2, 0.1, 0.3, 5),
        PairedDifference(0.1, -0.1, 0.3, 5),
        PairedDifference(-0.2, -0.3, -0.1, 5),
        None,
    ]
    right = [PairedDifference(0.5, None, None, 1), *[None] * 3]
    figure = draw_intervals(
        ["better", "unclear", "worse", "baseline"],
        {"one": left, "two": right},
        value_label="gain",
    )
    one, two = figure.axes
    assert (one.get_title(loc="left"), one.get_xlabel(), two.get_title(loc="left")) == (
        "one",
        "gain",
        "two",
    )
    _, *lines = one.get_lines()
    bars, points = lines[::2], lines[1::2]
    for row, (difference, bar, point) in enumerate(zip(left, bars, points, strict=False)):
        assert bar.get_xydata().tolist() == [[difference.low, row], [difference.high, row]]
        assert point.get_xydata().tolist() == [[difference.mean, row]]
        filled = point.get_markerfacecolor() == point.get_markeredgecolor()
        assert filled == (row in (0, 2))
    assert len(points) == 3
    _, alone = two.get_lines()
    assert alone.get_xydata().tolist() == [[0.5, 0]]
    assert alone.get_markerfacecolor() != alone.get_markeredgecolor()
    assert [text.get_text() for text in one.get_yticklabels()] == [
        "better",
        "unclear",
        "worse",
        "baseline",
    ]
    assert one.get_ylim()[0] > one.get_ylim()[1]  # the first on top
    assert one.get_xlim() == two.get_xlim()


@needs_matplotlib
@pytest.mark.parametrize(
    ("labels", "panels", "line"),
    [
        ([], {"one": []}, "without a panel or a label"),
        (["a"], {}, "without a panel or a label"),
        (["a"], {"one": []}, "intervals 'one': 0 differences for 1 labels"),
        (
            ["a"],
            {"one": [PairedDifference(float("nan"), None, None, 1)]},
            "intervals 'one', 'a' holds nan",
        ),
    ],
)
def test_intervals_that_do_not_fit_are_named(labels, panels, line):
    with pytest.raises(ValueError, match=line):
        draw_intervals(labels, panels, value_label="gain")


@needs_matplotlib
def test_curves_without_a_color_take_those_that_are_free():
    curves = [Curve("a", [1], [1], color=1), *(Curve(name, [1], [1]) for name in "bcd")]
    (ax,) = draw_curves([Panel("t", "x", "y", curves)]).axes
    looks = {(line.get_color(), line.get_marker()) for line in ax.get_lines()}
    assert len(looks) == 4


@needs_matplotlib
def test_panels_beyond_three_go_to_the_next_row():
    axes = draw_curves([PANEL] * 4).axes
    assert len(axes) == 4
    tops = [round(ax.get_position().y1, 2) for ax in axes]
    assert tops[0] == tops[1] == tops[2] > tops[3]


@needs_matplotlib
def test_heat_map_writes_each_number_into_its_cell():
    matrix = [[0.1, 0.25, 1.0], [-0.5, np.nan, 0.0]]
    figure = draw_heat_map(matrix, ["r", "s"], ["a", "b", "c"], title="t", value_label="share")
    ax, scale = figure.axes
    assert {text.get_position(): text.get_text() for text in ax.texts} == {
        (0.5, 0.5): ".10",
        (1.5, 0.5): ".25",
        (2.5, 0.5): "1.00",
        (0.5, 1.5): "−.50",
        (1.5, 1.5): "–",
        (2.5, 1.5): ".00",
    }
    assert [text.get_text() for text in ax.get_yticklabels()] == ["r", "s"]
    low, high = ax.get_ylim()
    assert low > high  # the first row on top
    assert scale.get_ylabel() == "share"
    assert ax.collections[0].get_clim() == (-0.5, 1.0)


@needs_matplotlib
def test_heat_map_of_equal_numbers_can_be_drawn():
    figure = draw_heat_map([[0.5, 0.5]], ["r"], ["a", "b"], title="t")
    assert [text.get_text() for text in figure.axes[0].texts] == [".50", ".50"]


@needs_matplotlib
def test_scatter_shows_every_point_and_tells_modalities_and_classes_apart():
    labels = np.array([0, 8, 8])
    audio, visual = np.array([[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]], float)
    names = [f"class {index}" for index in range(9)]
    figure = draw_scatter([Embedding("t", audio, visual, labels)], class_names=names)
    drawn = {}
    for line in figure.axes[0].get_lines():
        if len(line.get_xydata()):
            look = (line.get_marker(), line.get_markeredgecolor(), line.get_markerfacecolor())
            drawn[look] = line.get_xydata().tolist()
    blue, white = "#0072b2", "#ffffff"  # the ninth class is the first one's colour, hollow
    assert drawn == {
        ("o", blue, blue): [[0, 1]],
        ("^", blue, blue): [[6, 7]],
        ("o", blue, white): [[2, 3], [4, 5]],
        ("^", blue, white): [[8, 9], [10, 11]],
    }
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["audio", "visual", *names]


@needs_matplotlib
def test_bars_stand_beside_their_names_in_order():
    series = {"audio→visual": [0.1, 0.2, 0.3], "visual→audio": [0.4, 0.5, 0.6]}
    figure = draw_bars(["a", "b", "c"], series, title="t", value_label="MAP")
    (ax,) = figure.axes
    for bars, values in zip(ax.containers, series.values(), strict=True):
        assert [bar.get_width() for bar in bars] == values
        assert [round(bar.get_y() + bar.get_height() / 2) for bar in bars] == [0, 1, 2]
    assert ax.containers[0][0].get_y() < ax.containers[1][0].get_y()
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.containers[0][0].get_hatch() != ax.containers[1][0].get_hatch()


@needs_matplotlib
def test_files_have_the_same_bytes_each_time(tmp_path):
    for name, figure in one_of_each().items():
        write_figure(figure, tmp_path / "first", name)
    for name, figure in one_of_each().items():
        write_figure(figure, tmp_path / "second", name)
        write_figure(figure, tmp_path / "again", name)
    first = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()}
    assert len(first) == 10
    for path in [*(tmp_path / "second").iterdir(), *(tmp_path / "again").iterdir()]:
        assert path.read_bytes() == first[path.name], path.name


@needs_matplotlib
def test_files_are_png_and_svg_without_date(tmp_path):
    png, svg = write_figure(one_of_each()["bars"], tmp_path, "bars")
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    root = ElementTree.fromstring(svg.read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert b"date" not in svg.read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["bars.png", "bars.svg"]


@needs_matplotlib
def test_the_users_settings_neither_matter_nor_change(tmp_path):
    import matplotlib

    before = write_figure(one_of_each()["curves"], tmp_path, "before").svg.read_bytes()
    with matplotlib.rc_context({"xtick.major.size": 9, "svg.hashsalt": "x", "font.size": 20}):
        figure = one_of_each()["curves"]
        after = write_figure(figure, tmp_path, "after").svg.read_bytes()
        assert matplotlib.rcParams["xtick.major.size"] == 9
    assert after == before


@needs_matplotlib
def test_signs_of_mathematics_in_names_are_only_signs():
    figure = draw_bars(["$x$", r"\frac"], {"a $b$": [1, 2]}, title="$t$", value_label="v")
    (ax,) = figure.axes
    texts = [ax.title, *ax.get_yticklabels(), *figure.legends[0].get_texts()]
    assert not any(text.get_parse_math() for text in texts)


@needs_matplotlib
def test_a_folder_that_cannot_be_written_to_ends_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x cannot be written to .*choose another folder"):
        write_figure(one_of_each()["bars"], tmp_path / "file" / "x", "bars")


def test_matplotlib_is_imported_only_when_drawing():
    program = (
        "import sys\n"
        "from aadml_jax.reports import figures, page\n"
        "assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"  # as if it were not installed
        "try:\n"
        "    figures.draw_curves([figures.Panel('t', 'x', 'y', [figures.Curve('a', [1], [1])])])\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    root = Path(aadml_jax.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        "UserError figures need Matplotlib, which is not installed; "
        "run `pip install -e '.[plots]'`\n"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Curve("a", [1, 2], [1]), r"curve 'a', y has shape \(1,\); .*, 2 of them"),
        (lambda: Curve("a", [], []), r"curve 'a', x has shape \(0,\)"),
        (lambda: Curve("a", [1], [np.nan]), "curve 'a', y holds nan"),
        (lambda: Curve("a", [1], ["x"]), "curve 'a', y must be numbers"),
        (lambda: Curve("a", [1], [1], low=[1]), "curve 'a': a band needs low and high"),
        (lambda: Curve("a", [1], [1], style="bold"), "style 'bold' is unknown"),
        (lambda: Panel("p", "x", "y", []), "panel 'p' has no curves"),
        (lambda: Panel("p", "x", "y", [Curve("a", [0], [1])], log_x=True), "every x above 0"),
        (lambda: draw_curves([]), "one panel at least"),
        (lambda: Embedding("e", [[1, 2]], [[1, 2]], [0, 1]), r"audio has shape \(1, 2\)"),
        (lambda: Embedding("e", [[1, 2]], [[1, 2]], [-1]), "indices from 0"),
        (lambda: Embedding("e", [[1, 2]], [[1, 2]], [0.5]), "indices from 0"),
        (lambda: draw_heat_map([[1]], ["r"], [], title="h"), "1 row labels and 0 column labels"),
        (lambda: draw_heat_map([[np.nan]], ["r"], ["c"], title="h"), "holds no number"),
        (lambda: draw_heat_map([[np.inf]], ["r"], ["c"], title="h"), "'h' holds inf"),
        (lambda: draw_bars(["a"], {}, title="b", value_label="v"), "0 series; give 1 to 4"),
        (lambda: draw_bars(["a"], {"s": [1, 2]}, title="b", value_label="v"), "shape .2,."),
        (lambda: draw_scatter([], class_names=["c"] * 17), "17 classes .* at most 16"),
        (
            lambda: draw_scatter([Embedding("e", [[1, 2]], [[1, 2]], [1])], class_names=["c"]),
            "label 1, and class_names only 1 names",
        ),
        (lambda: write_figure(None, ".", "a/b"), "figure name 'a/b'"),
        (lambda: write_figure(None, ".", ".."), "figure name '..'"),
    ],
)
def test_wrong_input_is_named(wrong, message):
    if wrong.__code__.co_names[0].startswith("draw"):
        pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=message):
        wrong()


@needs_matplotlib
def test_a_folder_or_class_whose_name_legends_would_leave_out_is_refused():
    with pytest.raises(UserError, match="label '_a' begins with _"):
        draw_curves([Panel("p", "x", "y", [Curve("_a", [1], [1])])])


def test_all_public_names_exist():
    assert all(getattr(figures, name).__doc__ for name in figures.__all__)
