"""What a retrieval looks like: in numbers, on a plane, and as sections of a report."""

from aadml_jax.reports.retrieval.projection import Projection, joint_projection
from aadml_jax.reports.retrieval.sections import add_retrieval_sections, require_plots

__all__ = ["Projection", "add_retrieval_sections", "joint_projection", "require_plots"]
