"""What a single run and a sweep do alike at every epoch: how far a call goes, and what stops."""

import math
from collections.abc import Mapping
from typing import Any

from aadml_jax.errors import RunStopped

# A signal is answered between calls, so none may last long: 64 steps take about 8 s at batch 400 on
# two CPU cores. On an accelerator an epoch takes less, unless its rows have to be read.
_STEPS_PER_SLOW_CALL = 64


class TrainingDiverged(RunStopped):
    """The objective or the state became NaN or infinite."""


def steps_per_call(steps_per_epoch: int, *, is_slow: bool, num_runs: int = 1) -> int:
    """The largest number of steps between two looks at signals.

    Args:
      steps_per_epoch: of every run.
      is_slow: whether steps run on a CPU, or wait for rows to be read.
      num_runs: that take each step together.
    """
    return max(1, _STEPS_PER_SLOW_CALL // num_runs) if is_slow else steps_per_epoch


def is_due(epoch: int, every: int | None, last: int) -> bool:
    """Whether what happens every few epochs, and after the last one, happens after this one."""
    return epoch == last or (every is not None and epoch % every == 0)


def mean_losses(epoch_sums: Mapping[str, Any], steps_per_epoch: int) -> dict[str, float]:
    """Each part of the objective, on the host: its mean over the steps of an epoch."""
    return {name: float(total) / steps_per_epoch for name, total in epoch_sums.items()}


def require_finite(name: str, value: float, where: str) -> None:
    """Stops before anything of a broken run is logged or saved.

    Args:
      name: of the value.
      value: a loss or a measurement.
      where: the end of the message, with epoch and remedy.

    Raises:
      TrainingDiverged: if the value is infinite or NaN.
    """
    if not math.isfinite(value):
        raise TrainingDiverged(f"the {name} became {value} {where}")


def require_finite_parts(finite: Mapping[str, Any], where: str, *, of: str = "") -> None:
    """Stops before a broken state is saved.

    Args:
      finite: what `finite_parts` found, on the host.
      where: the end of the message, with epoch and remedy.
      of: whose state it is, such as " of a run".

    Raises:
      TrainingDiverged: if a part of the state is not finite; the first one is named.
    """
    for name, is_finite in finite.items():
        if not is_finite:
            raise TrainingDiverged(f"the {name}{of} became infinite or not a number {where}")
