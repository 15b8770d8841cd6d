"""Text that Markdown must show as it is."""

import pytest

from aadml_jax.reports import markdown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("anchor_aware 1 < 2", "anchor_aware 1 \\< 2"),
        ("_x_ *y* `z` a|b", "\\_x\\_ \\*y\\* \\`z\\` a\\|b"),
        ("[x](y) [−.001, +.007]", "[x\\](y) [−.001, +.007]"),
        ("R&D &lt; $5", "R&D \\&lt; \\$5"),
        ("two\n lines", "two lines"),
        ("back\\slash", "back\\\\slash"),
    ],
)
def test_signs_within_a_line(text, escaped):
    assert markdown.escape(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("# no heading", "\\# no heading"),
        ("- no list", "\\- no list"),
        ("1. no list", "1\\. no list"),
        ("1.5 times", "1.5 times"),
        ("with `a|b_*` in *it*", "with `a|b_*` in \\*it\\*"),
        ("`--flag` first", "`--flag` first"),
        ("one ` alone", "one \\` alone"),
    ],
)
def test_paragraphs_keep_code_and_open_no_block(text, escaped):
    assert markdown.paragraph(text) == escaped
