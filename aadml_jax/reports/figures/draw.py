"""Figures in one style: curves, intervals, heat maps, embeddings in the plane, bars per class.

Needs Matplotlib (`pip install -e '.[plots]'`), which is imported when a figure is drawn. No figure
depends on the display, on `matplotlibrc` or on the state of `pyplot`, and the same input gives the
same bytes with the same version of Matplotlib.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines differ in
marker and stroke besides, classes in filled and hollow markers, bars in hatching. The background of
the files is white; a page (`page.Report`) shows its figures in its own colours, light or dark.

    >>> panel = Panel("VEGAS", "epoch", "MAP", [Curve("plain", [1, 2, 3], [0.2, 0.4, 0.5])])
    >>> figure = draw_curves([panel])  # doctest: +SKIP
    >>> write_figure(figure, "figures", "map")  # doctest: +SKIP
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aadml_jax.reports.figures import style
from aadml_jax.reports.figures.content import Curve, Embedding, Panel, Reference
from aadml_jax.reports.figures.style import MUTED, PALETTE, PAPER
from aadml_jax.reports.statistics import PairedDifference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_STROKES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))


def draw_curves(panels: Sequence[Panel], *, share_y: bool = False) -> "Figure":
    """Panels side by side, three in a row, with one legend below them.

    Args:
      panels: one or more.
      share_y: whether all have one range of y.

    Raises:
      ValueError: if there is no panel.
      UserError: if Matplotlib is not installed, or a label begins with _.
    """
    curve_styles = _curve_styles([curve for panel in panels for curve in panel.curves])
    reference_styles = _reference_styles(
        [reference for panel in panels for reference in panel.references]
    )
    with style.own_style():
        size = (5.8, 3.4) if len(panels) == 1 else (4.3, 3.2)
        figure, axes = style.grid(len(panels), share_y=share_y, panel_size=size)
        handles: dict[str, Any] = {}
        for panel, ax in zip(panels, axes, strict=True):
            style.label(ax, panel.title, panel.x_label, panel.y_label)
            ax.grid(True)
            if panel.log_x:
                ax.set_xscale("log")
            for curve in panel.curves:
                curve_style = curve_styles[curve.label]
                if curve.low is not None and curve.high is not None:
                    ax.fill_between(
                        curve.x, curve.low, curve.high, color=curve_style["color"], alpha=0.18, lw=0
                    )
                every = max(1, len(curve.x) // 12)
                (line,) = ax.plot(curve.x, curve.y, markevery=every, **curve_style)
                handles.setdefault(curve.label, line)
            for reference in panel.references:
                line = ax.axhline(reference.value, zorder=1, **reference_styles[reference.label])
                handles.setdefault(reference.label, line)
            values = sorted({float(x) for curve in panel.curves for x in curve.x})
            style.tick_few_values(ax, values, log=panel.log_x)
        style.legend(figure, handles)
        return style.freeze_layout(figure)


def draw_heat_map(
    matrix: Any,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    value_label: str = "",
    low: float | None = None,
    high: float | None = None,
    decimals: int = 2,
) -> "Figure":
    """A matrix as coloured cells with their numbers.

    Args:
      matrix: [R, C]; NaN is a missing value, whose cell is left blank with a dash.
      row_labels: R texts, the first on top.
      column_labels: C texts.
      title: above the axes.
      x_label: what the columns are.
      y_label: what the rows are.
      value_label: what the numbers are, beside the scale of colours.
      low: value of the darkest colour; default the least of the matrix.
      high: value of the lightest; default the largest.
      decimals: of the numbers in the cells.

    Raises:
      ValueError: if labels do not fit the matrix, or it holds no number or an infinite one.
      UserError: if Matplotlib is not installed.
    """
    values = style.check_array(matrix, f"heat map {title!r}", nan_allowed=True)
    if values.shape != (len(row_labels), len(column_labels)):
        raise ValueError(
            f"heat map {title!r} has shape {values.shape}, "
            f"with {len(row_labels)} row labels and {len(column_labels)} column labels; "
            "give one for each"
        )
    if np.isnan(values).all():
        raise ValueError(f"heat map {title!r} holds no number; leave it out")
    low = float(np.nanmin(values)) if low is None else low
    high = float(np.nanmax(values)) if high is None else high
    rows, columns = values.shape
    with style.own_style():
        from matplotlib.colors import Normalize

        size = (min(14, 2.6 + 0.52 * columns), min(14, 1.5 + 0.42 * rows))
        figure, (ax,) = style.grid(1, panel_size=size)
        # Equal ends would leave nothing to divide by.
        norm = Normalize(low, high if high > low else low + 1)
        mesh = ax.pcolormesh(
            np.ma.masked_invalid(values), cmap="cividis", norm=norm, edgecolors="face", lw=0.3
        )
        for (row, column), value in np.ndenumerate(values):
            missing = math.isnan(value)
            # Written on the cell's own colour, so in no colour of the page.
            ink = MUTED if missing else ("#010101" if norm(value) > 0.55 else "#fefefe")
            text = "–" if missing else style.format_decimal(f"{value:.{decimals}f}")
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, size=8)
        style.label(ax, title, x_label, y_label)
        ax.set_yticks(np.arange(rows) + 0.5, row_labels)
        slanted = max(map(len, column_labels)) > 4
        ax.set_xticks(
            np.arange(columns) + 0.5,
            column_labels,
            rotation=40 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else "default",
        )
        ax.invert_yaxis()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        bar = figure.colorbar(mesh, ax=ax, label=value_label)
        bar.outline.set_visible(False)
        return style.freeze_layout(figure)


def draw_scatter(panels: Sequence[Embedding], *, class_names: Sequence[str]) -> "Figure":
    """Embeddings: classes by colour (filled, then hollow), audio as circles, visual as triangles.

    Args:
      panels: one or more, drawn side by side, three in a row; each has its own scale.
      class_names: name of each class, at most 16, for more cannot be told apart.

    Raises:
      ValueError: if there is no panel, there are too many classes, or a label has no name.
      UserError: if Matplotlib is not installed, or a class's name begins with _.
    """
    most = 2 * len(PALETTE)
    if len(class_names) > most:
        raise ValueError(
            f"{len(class_names)} classes cannot be told apart by colour; choose at most {most}"
        )
    for panel in panels:
        if (largest := max(panel.labels, default=0)) >= len(class_names):
            raise ValueError(
                f"embedding {panel.title!r} has label {largest}, and class_names only "
                f"{len(class_names)} names; name every class"
            )
    with style.own_style():
        from matplotlib.lines import Line2D

        figure, axes = style.grid(len(panels))
        for panel, ax in zip(panels, axes, strict=True):
            labels = np.asarray(panel.labels)
            for index in range(len(class_names)):
                for points, marker in ((panel.audio, "o"), (panel.visual, "^")):
                    x, y = np.asarray(points, np.float64)[labels == index].T
                    ax.plot(x, y, ls="", ms=4.5, alpha=0.8, **_point_style(index, marker))
            style.label(ax, panel.title, "", "")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(True)
        handles = {
            "audio": Line2D([], [], ls="", marker="o", color=MUTED),
            "visual": Line2D([], [], ls="", marker="^", color=MUTED),
        }
        for index, name in enumerate(class_names):
            key = name if name not in handles else f"{name} (class)"
            handles[key] = Line2D([], [], ls="", **_point_style(index, "s"))
        style.legend(figure, handles)
        return style.freeze_layout(figure)


def draw_bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    value_label: str,
    references: Sequence[Reference] = (),
) -> "Figure":
    """Horizontal bars in groups: a group for each class, a bar in it for each direction.

    Args:
      labels: [C] names of the groups, the first on top.
      series: by name, [C] values each; one to four of them.
      title: above the axes.
      value_label: what the values are.
      references: vertical lines.

    Raises:
      ValueError: if lengths differ, a value is not finite, or there are too many series or none.
      UserError: if Matplotlib is not installed, or a label begins with _.
    """
    hatches = ("", "////", "....", "xxxx")
    if not 1 <= len(series) <= len(hatches):
        raise ValueError(f"bars {title!r}: {len(series)} series; give 1 to {len(hatches)}")
    for name, values in series.items():
        style.check_vector(values, f"bars {title!r}, {name!r}", len(labels))
    height = 0.8 / len(series)
    with style.own_style():
        size = (6.4, min(14, 1.4 + len(labels) * (0.14 + 0.17 * len(series))))
        figure, (ax,) = style.grid(1, panel_size=size)
        style.label(ax, title, value_label, "")
        ax.grid(True, axis="x")
        handles = {}
        for index, (name, values) in enumerate(series.items()):
            handles[name] = ax.barh(
                np.arange(len(labels)) + (index - (len(series) - 1) / 2) * height,
                values,
                height=height * 0.92,
                color=PALETTE[index],
                hatch=hatches[index],
                edgecolor=PAPER,
                lw=0,
            )
        reference_styles = _reference_styles(references)
        for reference in references:
            handles[reference.label] = ax.axvline(
                reference.value, **reference_styles[reference.label]
            )
        ax.set_yticks(np.arange(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        style.legend(figure, handles)
        return style.freeze_layout(figure)


def draw_intervals(
    labels: Sequence[str],
    panels: Mapping[str, Sequence[PairedDifference | None]],
    *,
    value_label: str,
) -> "Figure":
    """Differences with their confidence intervals, a row for each label, about a line at 0.

    A point is filled where its interval leaves 0 out, hollow where it holds 0 or there is none.

    Args:
      labels: [n] names of the rows, the first on top; n ≥ 1.
      panels: by title, [n] differences each; None leaves the row of that panel empty. Panels stand
        side by side on one scale.
      value_label: what the differences are.

    Raises:
      ValueError: if lengths differ, there is no panel or no label, or a number is not finite.
      UserError: if Matplotlib is not installed.
    """
    if not panels or not labels:
        raise ValueError("intervals without a panel or a label; leave the figure out")
    for title, differences in panels.items():
        if len(differences) != len(labels):
            raise ValueError(
                f"intervals {title!r}: {len(differences)} differences for {len(labels)} labels; "
                "give one for each"
            )
        for name, difference in zip(labels, differences, strict=True):
            given = [value for value in difference or () if value is not None]
            style.check_array(given, f"intervals {title!r}, {name!r}")
    with style.own_style():
        names = 0.075 * max(map(len, labels))  # inches, before the first panel alone
        size = (2.9 + names / len(panels), min(14, 1.0 + 0.27 * len(labels)))
        figure, axes = style.grid(len(panels), panel_size=size)
        for (title, differences), ax in zip(panels.items(), axes, strict=True):
            style.label(ax, title, value_label, "")
            ax.grid(True, axis="x")
            ax.axvline(0, color=MUTED, lw=1.3, zorder=1)
            for row, difference in enumerate(differences):
                if difference is None:
                    continue
                mean, low, high, _ = difference
                fill = PAPER
                if low is not None and high is not None:
                    ax.plot([low, high], [row, row], color=PALETTE[0], lw=1.7)
                    if low > 0 or high < 0:
                        fill = PALETTE[0]
                ax.plot(mean, row, ls="", marker="o", mec=PALETTE[0], mfc=fill)
            ax.set_yticks(np.arange(len(labels)), labels if ax is axes[0] else [])
            ax.set_ylim(len(labels) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
        ends = [end for ax in axes for end in ax.get_xlim()]
        for ax in axes:
            ax.set_xlim(min(ends), max(ends))
        return style.freeze_layout(figure)


def _curve_styles(curves: Sequence[Curve]) -> dict[str, dict[str, Any]]:
    """How the curves of each label are drawn; the first of a label decides."""
    styles: dict[str, dict[str, Any]] = {}
    taken = {curve.color for curve in curves}
    free = (index for index in itertools.count() if index not in taken)
    for curve in curves:
        if curve.label in styles:
            continue
        index = next(free) if curve.color is None else curve.color
        color = PALETTE[index % len(PALETTE)]
        strokes = {"plain": "--", "aware": "-", "auto": _STROKES[index % len(_STROKES)]}
        styles[curve.label] = {
            "color": color,
            "marker": _MARKERS[index % len(_MARKERS)],
            "ls": strokes[curve.style],
            "mfc": PAPER if curve.style == "plain" else color,
        }
    return styles


def _reference_styles(references: Sequence[Reference]) -> dict[str, dict[str, Any]]:
    """How the references of each label are drawn."""
    labels = dict.fromkeys(reference.label for reference in references)
    return {
        name: {"color": MUTED, "lw": 1.3, "ls": (":", "-.", "--")[index % 3]}
        for index, name in enumerate(labels)
    }


def _point_style(index: int, marker: str) -> dict[str, Any]:
    color = PALETTE[index % len(PALETTE)]
    hollow = index >= len(PALETTE)
    return {"marker": marker, "mfc": PAPER if hollow else color, "mec": color, "mew": 1.1}
