"""Variants of a configuration, each trained from several seeds and compared with its baseline.

>>> variants = {
...     "plain": Variant({"num_neighbors": 1}),
...     "k=3": Variant({"num_neighbors": 3}, baseline="plain"),
... }

`train_variants` trains both from every seed; of what it returns, `gain("k=3", probe)` is the paired
difference of their mean MAP.
"""

import functools
import json
import math
import operator
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from aadml_jax.reports.page import Report
from aadml_jax.reports.statistics import (
    MeanAndSpread,
    PairedDifference,
    mean_and_spread,
    paired_difference,
)
from aadml_jax.training.config import DEFAULT_BATCH_SIZE, TrainConfig
from aadml_jax.training.local_data import LocalData
from aadml_jax.training.setup import resolve, with_presets
from aadml_jax.training.stacked_runs import Probe
from aadml_jax.training.sweep import RunHistory, run_sweep

Name = str | tuple[str, ...]
"""Name of a variant: one word, or several such as the loss and k."""


class Variant(NamedTuple):
    """A setting among others.

    Attributes:
      changes: settings that differ from the base configuration, by name.
      baseline: name of the variant that this one's gain is counted from; None if there is none.
    """

    changes: Mapping[str, Any]
    baseline: Name | None = None


class TrainedVariants(NamedTuple):
    """Variants and what became of their runs.

    Attributes:
      variants: by name.
      histories: by name of the variant, one for each seed; all variants have the same seeds in the
        same order.
    """

    variants: Mapping[Name, Variant]
    histories: Mapping[Name, Sequence[RunHistory]]

    def last(self, name: Name, probe: str, *path: str) -> list[float]:
        """A number of the report after the last epoch, seed by seed.

        Args:
          name: of the variant.
          probe: name of the probe.
          path: keys that lead to the number, such as "mean", "map".
        """
        return [of_epochs[-1] for of_epochs in self.by_epoch(name, probe, *path)]

    def by_epoch(self, name: Name, probe: str, *path: str) -> list[list[float]]:
        """A number of the reports, for each seed after each of the epochs that were measured."""
        return [
            [
                functools.reduce(operator.getitem, path, report)
                for report in history.reports[probe]["reports"]
            ]
            for history in self.histories[name]
        ]

    def spread(self, name: Name, probe: str, *path: str) -> MeanAndSpread:
        """Mean and standard deviation over seeds of what `last` gives."""
        return mean_and_spread(self.last(name, probe, *path))

    def gain(self, name: Name, probe: str) -> PairedDifference | None:
        """Gain in mean MAP over the baseline, paired by seed; None for a variant without one."""
        baseline = self.variants[name].baseline
        if baseline is None:
            return None
        return paired_difference(
            self.last(name, probe, "mean", "map"), self.last(baseline, probe, "mean", "map")
        )


def configs_by_seed(
    variants: Mapping[Name, Variant],
    base: TrainConfig,
    seeds: Iterable[int],
    num_train: int,
    *,
    explicit: Set[str] = frozenset(),
    steps: int | None = None,
) -> dict[tuple[Name, int], TrainConfig]:
    """The configurations that are trained, by variant and seed.

    Args:
      variants: by name.
      base: what they have in common; its seed is not used.
      seeds: of each variant.
      num_train: training rows at hand.
      explicit: names of the settings that presets leave as they are.
      steps: of each run, about, in place of epochs; no batch is then above all rows.

    Raises:
      UserError: if a configuration cannot be.
    """
    configs = {}
    for name, variant in variants.items():
        # Presets depend on the loss, so they are filled in for each variant.
        config = with_presets(base.replace(**variant.changes), explicit)
        if steps is not None:
            batch_size = min(config.recipe.batch_size or DEFAULT_BATCH_SIZE, num_train)
            epochs = math.ceil(steps / (num_train // batch_size))
            config = config.replace(batch_size=batch_size, epochs=epochs)
        config = resolve(config, num_train)
        configs |= {(name, seed): config.replace(seed=seed) for seed in seeds}
    return configs


def train_variants(
    variants: Mapping[Name, Variant],
    base: TrainConfig,
    draws: Iterable[tuple[Sequence[int], LocalData]],
    probes_of: Callable[[LocalData], Mapping[str, Probe]],
    *,
    explicit: Set[str] = frozenset(),
    steps: int | None = None,
    **sweep: Any,
) -> TrainedVariants:
    """Trains each variant from each seed, as few compiled programs.

    Args:
      variants: see `configs_by_seed`.
      base: see `configs_by_seed`.
      draws: seeds, and the data that they are trained on.
      probes_of: what is measured, from the data.
      explicit: see `configs_by_seed`.
      steps: see `configs_by_seed`.
      sweep: options of `run_sweep`, such as the folder whose runs are not trained again.

    Raises:
      UserError, Interrupted, TrainingDiverged: see `run_sweep`.
    """
    histories: dict[Name, list[RunHistory]] = {name: [] for name in variants}
    for seeds, data in draws:
        configs = configs_by_seed(
            variants, base, seeds, data.num_train, explicit=explicit, steps=steps
        )
        runs = run_sweep(list(configs.values()), data, probes_of(data), **sweep)
        for (name, _), history in zip(configs, runs, strict=True):
            histories[name].append(history)
    return TrainedVariants(variants, histories)


class WrittenReport(NamedTuple):
    """What a command of variants leaves: the path of its page, and what numbers.json holds."""

    page: pathlib.Path
    numbers: dict[str, Any]


def write_report(report: Report, folder: pathlib.Path) -> WrittenReport:
    """Writes a report; raises UserError if the folder cannot be written to."""
    page = report.write(folder)
    return WrittenReport(page, json.loads((page.parent / "numbers.json").read_text()))
