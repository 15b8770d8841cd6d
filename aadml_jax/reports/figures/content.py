"""What figures are drawn from: checked when it is stated, so that drawing finds no mistakes."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from aadml_jax.reports.figures import style


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of points.

    Attributes:
      label: what the legend calls it; curves of one label look alike in all panels.
      x: [n] where the points stand, n ≥ 1.
      y: [n] their values.
      low: [n] lower edge of a band about the curve, of ± a standard deviation, say; or None.
      high: [n] its upper edge; given together with `low`.
      style: "plain" is a dashed line with hollow markers, "aware" a solid one with filled markers;
        "auto" takes strokes in turn.
      color: number of the colour and marker, from 0, modulo their number; None takes the next. A
        plain and an aware curve of one colour read as a pair.

    Raises:
      ValueError: if lengths differ, a number is not finite, or the style is unknown.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    style: Literal["auto", "plain", "aware"] = "auto"
    color: int | None = None

    def __post_init__(self) -> None:
        where = f"curve {self.label!r}"
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{where}: a band needs low and high; give both or none")
        for name in ("x", "y", "low", "high"):
            values = getattr(self, name)
            if values is not None:
                style.check_vector(values, f"{where}, {name}", len(self.x))
        if self.style not in ("auto", "plain", "aware"):
            raise ValueError(f"{where}: style {self.style!r} is unknown; take auto, plain or aware")


class Reference(NamedTuple):
    """A level to read curves or bars against, such as chance: what it is called and its value."""

    label: str
    value: float


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
      title: above the axes.
      x_label: what x is, with its unit.
      y_label: what y is, with its unit.
      curves: one or more.
      log_x: whether x is logarithmic; all x must be above 0 then.
      references: horizontal lines.

    Raises:
      ValueError: if there is no curve, or an x has no logarithm.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = False
    references: Sequence[Reference] = ()

    def __post_init__(self) -> None:
        if not self.curves:
            raise ValueError(f"panel {self.title!r} has no curves; give one at least")
        if self.log_x and min(min(curve.x) for curve in self.curves) <= 0:
            raise ValueError(f"panel {self.title!r}: log_x needs every x above 0")


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Points of two modalities in the plane, by a projection of the caller's choice.

    Attributes:
      title: above the axes.
      audio: [N, 2] coordinates.
      visual: [N, 2] coordinates.
      labels: [N] class of each pair, an index from 0.

    Raises:
      ValueError: if shapes disagree, or a number is not finite.
    """

    title: str
    audio: Any
    visual: Any
    labels: Any

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
            raise ValueError(f"embedding {self.title!r}: labels must be a list of indices from 0")
        for name in ("audio", "visual"):
            shape = style.check_array(
                getattr(self, name), f"embedding {self.title!r}, {name}"
            ).shape
            if shape != (labels.size, 2):
                raise ValueError(
                    f"embedding {self.title!r}: {name} has shape {shape}; "
                    f"{labels.size} labels need ({labels.size}, 2)"
                )
