"""Items side by side on a page: a query, and in order what was found for it, with media files.

The files are referred to by their paths relative to the page, and not copied.
"""

import dataclasses
import html
import os
import pathlib
import urllib.parse
from collections.abc import Sequence

from aadml_jax.reports import markdown

_IMAGES = frozenset((".apng", ".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp"))
_SOUNDS = frozenset((".aac", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav"))
_VIDEOS = frozenset((".m4v", ".mov", ".mp4", ".ogv", ".webm"))


@dataclasses.dataclass(frozen=True)
class Card:
    """One item.

    Attributes:
      title: its name.
      facts: lines of text about it.
      media: paths of its files, absolute: pictures, sounds and videos by their endings; for others
        there is a link.
    """

    title: str
    facts: Sequence[str] = ()
    media: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """A query, and in order what was found for it.

    Attributes:
      query: its card.
      results: theirs, best first.
    """

    query: Card
    results: Sequence[Card]

    @property
    def has_media(self) -> bool:
        """Whether any of the items has files."""
        return any(card.media for card in (self.query, *self.results))

    def html(self, folder: pathlib.Path) -> str:
        """The query on the left, the results in a grid on its right.

        Args:
          folder: of the page, absolute.
        """
        results = "\n".join(f"<li>{_html(card, folder)}</li>" for card in self.results)
        return (
            f'<div class="side-by-side">\n<div class="query">{_html(self.query, folder)}</div>\n'
            f'<ol class="results">\n{results}\n</ol>\n</div>'
        )

    def markdown(self, folder: pathlib.Path) -> str:
        """The query as a line, the results as a numbered list.

        Args:
          folder: of the page, absolute.
        """
        results = (
            f"{rank}. {_markdown(card, folder)}" for rank, card in enumerate(self.results, start=1)
        )
        return f"{_markdown(self.query, folder)}\n\n" + "\n".join(results)


def _html(card: Card, folder: pathlib.Path) -> str:
    facts = "".join(f'<p class="fact">{html.escape(fact)}</p>' for fact in card.facts)
    media = "".join(_player(path, folder, card.title) for path in card.media)
    return f'<p class="card-title">{html.escape(card.title)}</p>{facts}{media}'


def _player(path: str, folder: pathlib.Path, title: str) -> str:
    address, ending = html.escape(_address(path, folder)), pathlib.Path(path).suffix.lower()
    description = html.escape(title)
    if ending in _IMAGES:
        return f'<img src="{address}" alt="{description}" loading="lazy">'
    if ending in _SOUNDS:
        return f'<audio src="{address}" aria-label="{description}" controls preload="none"></audio>'
    if ending in _VIDEOS:
        # Of its metadata a browser shows the first frame.
        return (
            f'<video src="{address}" aria-label="{description}" controls preload="metadata">'
            "</video>"
        )
    return f'<p><a href="{address}">{html.escape(pathlib.Path(path).name)}</a></p>'


def _markdown(card: Card, folder: pathlib.Path) -> str:
    links = (
        f"[{_link_text(pathlib.Path(path).name)}]({_address(path, folder)})" for path in card.media
    )
    return ", ".join([markdown.paragraph(card.title), *map(markdown.escape, card.facts), *links])


def _link_text(text: str) -> str:
    # A bracket would end the text of the link before its time.
    return markdown.escape(text).replace("[", "\\[").replace("]", "\\]")


def _address(path: str, folder: pathlib.Path) -> str:
    """The URL of a file relative to the page; signs that mean something in URLs are encoded."""
    return urllib.parse.quote(os.fsencode(os.path.relpath(path, folder)))
