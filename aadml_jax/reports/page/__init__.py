"""A report as one HTML page without external parts, with Markdown and numbers beside it."""

from aadml_jax.reports.page.cards import Card, SideBySide
from aadml_jax.reports.page.report import Report, Section

__all__ = ["Card", "Report", "Section", "SideBySide"]
