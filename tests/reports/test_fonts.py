"""Texts in scripts that the figures' own font does not have."""

import pathlib

import pytest

from aadml_jax.reports.figures import draw_bars, fonts, write_figure

font_manager = pytest.importorskip("matplotlib.font_manager")


def write_font(path, name, characters):
    """A font with a triangle for each of some characters."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    pen.lineTo((900, 0))
    pen.lineTo((500, 700))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "triangle"])
    builder.setupCharacterMap({ord(one): "triangle" for one in characters})
    builder.setupGlyf({glyph: pen.glyph() for glyph in (".notdef", "triangle")})
    builder.setupHorizontalMetrics({glyph: (1000, 100) for glyph in (".notdef", "triangle")})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    names = {"familyName": name, "styleName": "Regular", "psName": f"{name.replace(' ', '')}"}
    builder.setupNameTable({**names, "fullName": name, "uniqueFontIdentifier": name})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture(autouse=True)
def only_own_fonts(monkeypatch):
    """No font is installed but those of Matplotlib, and nothing has been told."""
    manager = font_manager.fontManager
    own = pathlib.Path(font_manager.findfont("DejaVu Sans")).parent
    entries = [entry for entry in manager.ttflist if pathlib.Path(entry.fname).parent == own]
    monkeypatch.setattr(manager, "ttflist", entries)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(fonts, "_reported", set())
    fonts._families_with.cache_clear()
    yield manager
    fonts._families_with.cache_clear()


def bars(*names):
    return draw_bars(names, {"x": [0.1] * len(names)}, title="classes", value_label="MAP")


def svg_of(figure, folder):
    return write_figure(figure, folder, "bars").svg.read_text()


def test_a_font_that_has_the_characters_draws_them(tmp_path, only_own_fonts):
    only_own_fonts.addfont(write_font(tmp_path / "dogs.ttf", "Dogs Sans", "狗"))
    only_own_fonts.addfont(write_font(tmp_path / "cats.ttf", "Cats Sans", "猫"))
    svg = svg_of(bars("猫 Füße", "cat"), tmp_path)
    assert "CatsSans" in svg
    assert "DogsSans" not in svg
    assert "DejaVuSans" in svg


def test_characters_of_several_scripts_come_from_several_fonts(tmp_path, only_own_fonts):
    only_own_fonts.addfont(write_font(tmp_path / "dogs.ttf", "Dogs Sans", "狗"))
    only_own_fonts.addfont(write_font(tmp_path / "cats.ttf", "Cats Sans", "猫"))
    svg = svg_of(bars("猫狗"), tmp_path)
    assert "CatsSans" in svg
    assert "DogsSans" in svg


def test_a_font_that_was_installed_since_the_list_was_made_is_found(tmp_path, monkeypatch):
    path = write_font(tmp_path / "cats.ttf", "Cats Sans", "猫")
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    found = [str(tmp_path / "damaged.ttf"), str(path)]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    assert "CatsSans" in svg_of(bars("猫"), tmp_path)


def test_a_font_whose_file_is_gone_is_passed_over(tmp_path, only_own_fonts):
    only_own_fonts.addfont(write_font(tmp_path / "a.ttf", "A Sans", "猫"))
    only_own_fonts.addfont(write_font(tmp_path / "cats.ttf", "Cats Sans", "猫"))
    (tmp_path / "a.ttf").unlink()
    assert "CatsSans" in svg_of(bars("猫"), tmp_path)


def test_characters_that_no_font_has_are_told_once_and_drawn_all_the_same(tmp_path):
    with pytest.warns(
        UserWarning, match="has the characters 狗 猫, which.* fonts-noto-cjk"
    ) as told:
        figure = bars("猫", "狗", "cat")
    assert len(told) == 1
    # All warnings are errors here: neither another figure nor the files say it again.
    write_figure(figure, tmp_path, "bars")
    bars("猫猫", "狗")
    with pytest.warns(UserWarning, match="has the characters 鳥, which"):
        bars("猫鳥")


def test_figures_of_other_makers_get_the_fonts_when_they_are_written(tmp_path, only_own_fonts):
    from matplotlib.figure import Figure

    only_own_fonts.addfont(write_font(tmp_path / "cats.ttf", "Cats Sans", "猫"))
    figure = Figure()
    # Labels of ticks that a function makes, which are not there before the axes are drawn.
    figure.subplots().xaxis.set_major_formatter(lambda *_: "猫")
    assert "CatsSans" in svg_of(figure, tmp_path)


def test_wide_characters_take_two_places_of_the_legend():
    assert fonts.drawn_width("cat") == 3
    assert fonts.drawn_width("猫 cat") == 6
