"""Tables: what people, spreadsheets and programs get of the same cells."""

import csv
import json

import numpy as np
import pytest

from aadml_jax.reports.statistics import MeanAndSpread, PairedDifference
from aadml_jax.reports.tables import Table, cell_text, sort_value

THIRD = 1 / 3  # has no short decimal, so that lost digits show
TABLE = Table(
    "MAP | all",
    ["method", "MAP", "gain", "epochs"],
    [
        ["plain", MeanAndSpread(THIRD, 0.0041, 5), None, 60],
        ["a|b", 0.925, PairedDifference(0.0031, -0.0012, 2 * THIRD, 5), None],
    ],
    note="Five seeds.",
)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        ("x", "x"),
        (-3, "−3"),
        (0.7268, ".727"),
        (-0.7268, "−.727"),
        (1.0, "1.000"),
        (0.9996, "1.000"),
        (10.5, "10.500"),
        (0.0, ".000"),
        (1e-4, "0.0001"),
        (1e-7, "1e−07"),
        (MeanAndSpread(0.727, 0.004, 5), ".727 ± .004"),
        (MeanAndSpread(0.727, None, 1), ".727"),
        (MeanAndSpread(-0.0001, 0.0, 2), ".000 ± .000"),
        (PairedDifference(0.003, -0.001, 0.007, 5), "+.003 [−.001, +.007]"),
        (PairedDifference(-1.25, -2.0, 0.0001, 5), "−1.250 [−2.000, .000]"),
        (PairedDifference(0.003, None, None, 1), "+.003"),
    ],
)
def test_text_of_a_cell(cell, text):
    assert cell_text(cell) == text


def test_markdown():
    assert TABLE.markdown() == (
        "**MAP \\| all**\n"
        "\n"
        "| method | MAP | gain | epochs |\n"
        "|---|---:|---:|---:|\n"
        "| plain | .333 ± .004 | – | 60 |\n"
        "| a\\|b | .925 | +.003 [−.001, +.667] | – |\n"
        "\n"
        "Five seeds.\n"
    )


def test_csv_splits_cells_of_several_numbers_and_rounds_none():
    header, first, second = csv.reader(TABLE.csv().splitlines())
    assert header == [
        *("method", "MAP mean", "MAP std", "MAP n"),
        *("gain mean", "gain low", "gain high", "gain n", "epochs"),
    ]
    assert first == ["plain", repr(THIRD), "0.0041", "5", "", "", "", "", "60"]
    assert "\r" not in TABLE.csv()
    assert second == ["a|b", "0.925", "", "", "0.0031", "-0.0012", repr(2 * THIRD), "5", ""]


def test_records_survive_json_unchanged():
    records = json.loads(json.dumps(TABLE.records(), allow_nan=False))
    assert records == [
        {"method": "plain", "MAP": {"mean": THIRD, "std": 0.0041, "n": 5}, "gain": None}
        | {"epochs": 60},
        {"method": "a|b", "MAP": 0.925, "epochs": None}
        | {"gain": {"mean": 0.0031, "low": -0.0012, "high": 2 * THIRD, "n": 5}},
    ]


def test_scalars_of_numpy_become_those_of_python():
    spread = MeanAndSpread(np.float32(0.1), np.float64(0.2), np.int64(3))
    table = Table("t", ["a", "b"], np.array([[1, 2]]))
    assert [type(cell) for cell in table.rows[0]] == [int, int]
    (cell,) = Table("t", ["a"], [[spread]]).rows[0]
    assert [type(part) for part in cell] == [float, float, int]
    assert cell.mean == np.float32(0.1)


def test_columns_of_numbers_may_miss_some_and_hold_no_text():
    table = Table("t", list("abcd"), [[1, "x", None, "–"], [None, 2, None, 0.5]])
    assert table.numeric_columns() == [True, False, False, True]


def test_what_cells_are_sorted_by():
    cells = [MeanAndSpread(0.7, 0.1, 2), PairedDifference(-0.1, None, None, 1), "–", None, "x", 3]
    assert [sort_value(cell) for cell in cells] == [0.7, -0.1, None, None, "x", 3]


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ([], [], "no columns"),
        (["a", "b"], [1], "row 1: 1 cells for 2 columns"),
        (["a", "a"], [1, 2], "column 'a' stands twice"),
        (["a", "a n"], [MeanAndSpread(1.0, None, 1), 2], "column 'a n' stands twice"),
        (["a"], [True], "column 'a': True is a bool"),
        (["a"], [[1]], r"\[1\] is a list; give a text or a number"),
        (["a"], [float("nan")], "nan is not a finite number; give None or a text"),
        (["a"], [MeanAndSpread(0.5, float("inf"), 2)], "inf is not a finite number"),
        (["a"], [MeanAndSpread(None, None, 0)], "has no number"),
        (["a"], [MeanAndSpread("x", None, 1)], "has no number"),
    ],
)
def test_bad_cells_are_named(columns, row, message):
    with pytest.raises(ValueError, match=message):
        Table("t", columns, [row])
