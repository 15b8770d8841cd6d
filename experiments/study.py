"""When do anchor-aware proxies help? `python -m experiments.study --features_file=FILE.h5`.

--stage=screen compares many settings on validation rows, which no test row is among.
--stage=confirm reports those that were chosen from that, by hand (`studied_settings.CONFIRMED`), on
the test rows.

FILE.h5 needs the keys GROUP_train and GROUP_test (of --group, such as speaker): whole groups are
held out, for testing the last one, for validation the one before it. Without --features_file the
study is on generated data, whose best ranking is known.

Run again after an interruption, it goes on where it was. docs/study.md tells what came of it.
"""

import dataclasses
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from absl import flags
from tqdm import tqdm

from aadml_jax.data import (
    NUM_FOLDS,
    RetrievalDataset,
    load_dataset,
    stratified_folds,
    with_test_group,
    with_train_fraction,
)
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.reports.statistics import mean_and_spread, paired_difference
from aadml_jax.reports.tables import Table
from aadml_jax.training import config as configuration
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.evaluation import DIRECTIONS, bayes_reference, chance_map
from aadml_jax.training.held_data import hold
from aadml_jax.training.run_folder import RunFolder, versions
from aadml_jax.training.stacked_runs import Probe
from aadml_jax.training.sweep import RunHistory, run_sweep
from experiments import command_line
from experiments.studied_settings import CONFIRMED, SCREENED, Comparison


def _is_fraction(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


_FEATURES_FILE = flags.DEFINE_string(
    "features_file", None, "HDF5 feature file with groups; default generated data"
)
_GROUP = flags.DEFINE_string("group", "speaker", "key of the groups in the feature file")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the study; default runs/study-<data>")
_STAGE = flags.DEFINE_enum(
    "stage",
    "screen",
    ["screen", "confirm"],
    "screen: many settings on validation rows; confirm: a few of them on the test rows",
)
_COMPARISONS = flags.DEFINE_list(
    "comparisons", None, "names of some of the comparisons; default all"
)
_FRACTIONS = flags.DEFINE_list(
    "fractions", None, "parts of the training rows; default those of each comparison"
)
_SEEDS = flags.DEFINE_integer(
    "seeds", None, "seeds of each setting; default 3, to confirm 10", lower_bound=2
)
_STEPS = flags.DEFINE_integer("steps", 300, "training steps of each run, about", lower_bound=1)
flags.register_validator(
    "fractions",
    lambda items: all(_is_fraction(item) for item in items or ()),
    message="must be numbers above 0, at most 1, separated by commas",
)
_HIDDEN_SIZES = flags.DEFINE_list("hidden_sizes", "256,256,256", "units of the towers' layers")
flags.register_validator(
    "hidden_sizes",
    lambda items: all(item.isdecimal() and int(item) for item in items),
    message="must be whole numbers separated by commas, such as 256,256",
)
_RUNS_AT_A_TIME = flags.DEFINE_integer(
    "runs_at_a_time", 20, "most runs that one program trains in step", lower_bound=1
)
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "auto", "folder of compiled programs; 'auto' or 'off'"
)
_LEARNING_RATE = 1e-3
_SIMILARITIES = ("cosine", "posterior")


def grouped_data(path: str, key: str, *, for_test: bool) -> RetrievalDataset:
    """The rows of a feature file, whole groups held out.

    Raises:
      UserError: The file has no such groups, or fewer than three.
    """
    dataset = load_dataset("features", features_file=path)
    try:
        with h5py.File(os.path.expanduser(path)) as file:
            groups = np.concatenate([file[f"{key}_{split}"][:] for split in ("train", "test")])
    except KeyError as error:
        raise UserError(
            f"{path} has no keys {key}_train and {key}_test; name others with --group"
        ) from error
    if groups.shape != (len(dataset.train) + len(dataset.test),):
        raise UserError(
            f"{path}: {key}_train and {key}_test must hold a group a row, together shape "
            f"{(len(dataset.train) + len(dataset.test),)}, not {groups.shape}; store them so"
        )
    names = np.unique(groups).tolist()
    if len(names) < 3:
        raise UserError(
            f"{path} has the {key}s {names}; three are needed, to train, to validate and to test"
        )
    validation, test = names[-2:]
    if for_test:
        return with_test_group(dataset, groups, test_group=test)
    return with_test_group(dataset, groups, test_group=validation, left_out=(test,))


def generated_data(*, for_test: bool) -> RetrievalDataset:
    """Synthetic data; for validation a fold of the training rows stands for the test rows."""
    dataset = load_dataset("synthetic")
    if for_test:
        return dataset
    is_validation = stratified_folds(dataset.train.labels, NUM_FOLDS) == 0
    train, test = (
        dataset.train.take(np.flatnonzero(chosen)) for chosen in (~is_validation, is_validation)
    )
    return dataclasses.replace(dataset, train=train, test=test, test_posteriors=None)


def run_comparison(
    comparison: Comparison,
    dataset: RetrievalDataset,
    *,
    fraction: float,
    seeds: int,
    steps: int,
    most_runs: int,
    base: Mapping[str, Any],
    folder: pathlib.Path,
    on_progress: Callable[[int, int], None],
) -> dict[str, list[RunHistory]]:
    """The histories of each variant, seed by seed."""
    data = hold(with_train_fraction(dataset, fraction))
    probes = {name: Probe(data.test, similarity=name) for name in _SIMILARITIES}
    configs = {}
    for name, changes in comparison.variants.items():
        for seed in range(seeds):
            config = TrainConfig(**{**base, **changes, "seed": seed})
            batch_size = min(config.batch_size or configuration.DEFAULT_BATCH_SIZE, data.num_train)
            config = dataclasses.replace(
                config,
                batch_size=batch_size,
                epochs=math.ceil(steps / (data.num_train // batch_size)),
            )
            configuration.check(config)
            configs[name, seed] = configuration.resolve(config, data.num_train)
    histories = run_sweep(
        list(configs.values()),
        data,
        probes,
        folder=folder,
        most_runs=most_runs,
        on_progress=on_progress,
    )
    of_run = dict(zip(configs, histories, strict=True))
    return {name: [of_run[name, seed] for seed in range(seeds)] for name in comparison.variants}


def mean_maps(histories: Sequence[RunHistory], similarity: str) -> list[float]:
    """Mean MAP of both directions after the last epoch, seed by seed."""
    return [history.reports[similarity]["reports"][-1]["mean"]["map"] for history in histories]


def table_of(
    comparison: Comparison, title: str, histories: Mapping[str, Sequence[RunHistory]]
) -> Table:
    """A comparison's mean MAP by both similarities, and what each variant gains."""
    rows = []
    for name, of_seeds in histories.items():
        row = [name]
        for similarity in _SIMILARITIES:
            maps = mean_maps(of_seeds, similarity)
            baseline = comparison.baseline_of(name)
            row.append(mean_and_spread(maps))
            row.append(
                None
                if baseline is None
                else paired_difference(maps, mean_maps(histories[baseline], similarity))
            )
        rows.append([*row, comparison.baseline_of(name) or ""])
    return Table(
        title,
        ["variant", "cosine", "cosine, gain", "posterior", "posterior, gain", "gain over"],
        rows,
        note="Mean MAP of both directions. Gains are paired by seed, with the 95 % interval of "
        "Student's t: over seeds of training alone, for one choice of rows and of held-out rows, "
        "and not widened for the number of comparisons.",
    )


def main() -> None:
    """Wires data, comparisons and report together."""
    command_line.set_up_compilation_cache(_COMPILATION_CACHE.value)
    for_test = _STAGE.value == "confirm"
    known = CONFIRMED if for_test else SCREENED
    names = _COMPARISONS.value or list(known)
    for name in names:
        if name not in known:
            raise UserError(f"--comparisons={name} is none of {', '.join(known)}")
    is_generated = _FEATURES_FILE.value is None
    if is_generated:
        dataset = generated_data(for_test=for_test)
    else:
        dataset = grouped_data(_FEATURES_FILE.value, _GROUP.value, for_test=for_test)
    seeds = _SEEDS.value or (10 if for_test else 3)
    base = {
        "dataset": "synthetic" if is_generated else "features",
        "features_file": _FEATURES_FILE.value,
        "hidden_sizes": tuple(map(int, _HIDDEN_SIZES.value)),
        "learning_rate": _LEARNING_RATE,
        # Said outright, so that other defaults leave the study as it is.
        "label_loss": "squared",
        "similarity": "cosine",
    }
    workdir = _WORKDIR.value or f"runs/study-{base['dataset']}"
    report = Report(
        f"When anchor-aware proxies help: {'generated data' if is_generated else 'grouped data'}",
        f"Stage {_STAGE.value}: {len(dataset.test)} "
        f"{'test' if for_test else 'validation'} rows, {seeds} seeds, about {_STEPS.value} steps a "
        f"run, towers of {', '.join(_HIDDEN_SIZES.value)} units, Adam {_LEARNING_RATE:g}. The "
        "state after the last epoch is measured. Chance: "
        f"{chance_map(dataset.test.labels):.3f}.",
    )
    with RunFolder(workdir) as folder:
        for name in names:
            comparison = known[name]
            section = report.section(name, comparison.question)
            for fraction in map(float, _FRACTIONS.value or comparison.fractions):
                with tqdm(
                    desc=f"{name}, {fraction:g}",
                    unit="epoch",
                    disable=not sys.stderr.isatty(),
                    dynamic_ncols=True,
                ) as bar:

                    def on_progress(done: int, total: int, bar: tqdm = bar) -> None:
                        bar.total, bar.n = total, done
                        bar.refresh()

                    histories = run_comparison(
                        comparison,
                        dataset,
                        fraction=fraction,
                        seeds=seeds,
                        steps=_STEPS.value,
                        most_runs=_RUNS_AT_A_TIME.value,
                        base=base,
                        folder=folder.path / "sweep",
                        on_progress=on_progress,
                    )
                table = table_of(
                    comparison, f"{name}, {100 * fraction:g} % of the training rows", histories
                )
                section.table(table)
                print(table.markdown(), flush=True)
        if dataset.test_posteriors is not None:
            reference = bayes_reference(*dataset.test_posteriors, dataset.test.labels)
            values = ", ".join(f"{reference[direction]['map']:.3f}" for direction in DIRECTIONS)
            report.section("Bayes reference", f"MAP in both directions and their mean: {values}.")
        report.configuration(
            {
                **base,
                "stage": _STAGE.value,
                "comparisons": names,
                "seeds": seeds,
                "steps": _STEPS.value,
                "training rows": dataset.train.name,
                "measured rows": dataset.test.name,
                "fingerprint": dataset.fingerprint(),
            }
        )
        report.versions(versions())
        page = report.write(folder.path / "-".join([_STAGE.value, *(_COMPARISONS.value or [])]))
    print(f"written to {page}")


if __name__ == "__main__":
    command_line.run(main)
