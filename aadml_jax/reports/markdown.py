"""Plain text as Markdown (GitHub's dialect) that shows exactly that text."""

import re

_CODE_SPAN = re.compile("`([^`]+)`")
# An underscore inside a word, a bracket that opens no link and the like mean nothing to Markdown,
# and are left readable.
_SIGN = re.compile(r"[\\`*<|~$]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|&(?=#?\w+;)")
_BLOCK_START = re.compile(r"[-+#=>]|\d+(?=[.)](?: |$))")


def pieces(text: str) -> list[tuple[bool, str]]:
    """Text on one line, split into (whether it stood `in backticks`, piece)."""
    split = _CODE_SPAN.split(" ".join(text.split()))
    return [(bool(index % 2), piece) for index, piece in enumerate(split) if piece]


def plain(text: str) -> str:
    """Text on one line in which `words in backticks` stand without them."""
    return "".join(piece for _, piece in pieces(text))


def escape(text: str) -> str:
    """Text within a line: what Markdown would read as a sign is escaped."""
    return _SIGN.sub(r"\\\g<0>", " ".join(text.split()))


def paragraph(text: str) -> str:
    """A paragraph in which `words in backticks` stay code."""
    line = "".join(
        f"`{piece}`" if is_code else _SIGN.sub(r"\\\g<0>", piece) for is_code, piece in pieces(text)
    )
    start = _BLOCK_START.match(line)
    if not start:
        return line
    at = start.end() if start[0].isdigit() else 0  # of a number, it is the stop that opens a list
    return f"{line[:at]}\\{line[at:]}"
