"""The quoted figures are copied without slips, as far as they can check each other."""

import pytest

from aadml_jax.reports.literature import MAP_AS_QUOTED, literature_table


def test_each_mean_is_that_of_its_directions():
    # All three are rounded to .001: half of that for the mean, half for the directions.
    wrong = [
        name
        for name, quoted in MAP_AS_QUOTED.items()
        if abs((quoted.audio_to_visual + quoted.visual_to_audio) / 2 - quoted.mean) > 0.001 + 1e-9
    ]
    assert wrong == []


def test_figures_are_shares():
    assert all(0 < score < 1 for quoted in MAP_AS_QUOTED.values() for score in quoted)


@pytest.mark.parametrize(("dataset", "points"), [("VEGAS", 3.0), ("AVE", 45.6)])
def test_lead_over_the_best_other_method_is_the_one_that_was_claimed(dataset, points):
    means = {m: quoted.mean for (m, where), quoted in MAP_AS_QUOTED.items() if where == dataset}
    lead = means.pop("AADML") - max(means.values())
    assert lead * 100 == pytest.approx(points)


@pytest.mark.parametrize(("dataset", "count"), [("vegas", 19), ("AVE", 18)])
def test_table_says_that_nothing_was_measured(dataset, count):
    table = literature_table(dataset)
    assert len(table.rows) == count
    assert "unverified" in table.title
    assert "not measured" in table.note
    assert ("prefix MAP" in table.note) == (dataset == "AVE")


def test_figures_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        MAP_AS_QUOTED["AADML", "VEGAS"] = (1.0, 1.0, 1.0)


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="no quoted figures for data set 'digits'"):
        literature_table("digits")
