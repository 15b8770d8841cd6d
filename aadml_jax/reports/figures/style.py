"""What the figures share: style, colours, axes, legend and checks."""

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from aadml_jax.errors import UserError, require_extra
from aadml_jax.reports.figures.fonts import add_missing_fonts, drawn_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of the page rather than of the data; a page puts its own in their place, light or dark.
PAPER, INK, MUTED, GRID = "#ffffff", "#1f2328", "#6e7781", "#d8dee4"
# Okabe and Ito's, those that stand out most on white first, and the page's ink for their black.
PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    INK,
    "#f0e442",
)
_MOST_COLUMNS = 3
_STYLE = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.markersize": 5.5,
    "savefig.facecolor": PAPER,
    # A constant in place of a random number, so that identifiers are the same every time.
    "svg.hashsalt": "aadml_jax",
    "text.color": INK,
    # A dollar in a name is a dollar.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """The house style, on Matplotlib's own defaults rather than those of a `matplotlibrc`.

    Raises:
      UserError: if Matplotlib is not installed.
    """
    require_extra(
        "matplotlib",
        "figures need Matplotlib, which is not installed; run `pip install -e '.[plots]'`",
    )
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # Told once for all figures by `add_missing_fonts`.
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        matplotlib.rcdefaults()
        # Matplotlib's stubs take no other texts than the known keys, one by one.
        matplotlib.rcParams.update(_STYLE)  # pyright: ignore[reportArgumentType, reportCallIssue]
        yield


def grid(
    count: int, *, share_y: bool = False, panel_size: tuple[float, float] = (4.3, 3.2)
) -> "tuple[Figure, list[Axes]]":
    """A figure with `count` axes, three in a row; the size in inches is one panel's."""
    if not count:
        raise ValueError("a figure needs one panel at least; leave it out where there is none")
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(count, _MOST_COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(
        figsize=(panel_size[0] * columns, panel_size[1] * rows + 0.4),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06),
    )
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def label(ax: "Axes", title: str, x_label: str, y_label: str) -> None:
    """Title and axis labels."""
    ax.set_title(title, loc="left")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)


def tick_few_values(ax: "Axes", values: Iterable[float], *, log: bool) -> None:
    """Puts the ticks of x at the values themselves where they are few, and plain numbers there."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    values = list(values)
    steps = {round(b - a, 9) for a, b in itertools.pairwise(values)}
    if len(values) <= 10 and (log or len(steps) <= 1):
        ax.xaxis.set_major_locator(FixedLocator(values))
        ax.xaxis.set_minor_locator(NullLocator())
    if log or len(values) <= 10:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def legend(figure: "Figure", handles: Mapping[str, Any]) -> None:
    """One legend below all axes.

    Raises:
      UserError: if a label, which may be the name of a folder or of a class, begins with _.
    """
    for name in handles:
        if name.startswith("_"):
            raise UserError(f"label {name!r} begins with _, which legends leave out; rename it")
    # As many columns as the labels leave room for; about a tenth of an inch a character.
    widest = 0.09 * max(map(drawn_width, handles)) + 0.6
    columns = max(1, min(len(handles), int(figure.get_figwidth() / widest)))
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


def freeze_layout(figure: "Figure") -> "Figure":
    """Fixes the layout, which would otherwise move a little each time the figure is written."""
    add_missing_fonts(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def format_decimal(number: str) -> str:
    """A decimal as the tables write it: .5 for 0.5, with a real minus."""
    if number.lstrip("-").startswith("0."):
        number = number.replace("0.", ".", 1)
    return number.replace("-", "−")


def check_vector(values: Any, where: str, length: int) -> None:
    """Checks that values are `length` finite numbers; `where` opens the message.

    Raises:
      ValueError: if they are not.
    """
    shape = check_array(values, where).shape
    if shape != (length,) or not length:
        raise ValueError(f"{where} has shape {shape}; give one or more numbers, {length} of them")


def check_array(values: Any, where: str, *, nan_allowed: bool = False) -> np.ndarray:
    """Values as an array, once they are known to be finite numbers.

    Raises:
      ValueError: if they are not; NaN passes where `nan_allowed` says so.
    """
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{where} must be numbers; {values!r:.80} are not") from None
    bad = np.isinf(array) if nan_allowed else ~np.isfinite(array)
    if bad.any():
        raise ValueError(f"{where} holds {array[bad][0]}; only finite numbers can be drawn")
    return array
