"""Figures by Matplotlib (the extra `plots`), which is imported only when one is drawn."""

from aadml_jax.reports.figures.content import Curve, Embedding, Panel, Reference
from aadml_jax.reports.figures.draw import (
    draw_bars,
    draw_curves,
    draw_heat_map,
    draw_intervals,
    draw_scatter,
)
from aadml_jax.reports.figures.files import FigureFiles, write_figure

__all__ = [
    "Curve",
    "Embedding",
    "FigureFiles",
    "Panel",
    "Reference",
    "draw_bars",
    "draw_curves",
    "draw_heat_map",
    "draw_intervals",
    "draw_scatter",
    "write_figure",
]
