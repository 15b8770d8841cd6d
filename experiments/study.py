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
import pathlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags

from aadml_jax.data import RetrievalDataset, with_train_fraction
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import require_plots
from aadml_jax.training import config as configuration
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.evaluation import bayes_reference, chance_map
from aadml_jax.training.held_data import hold
from aadml_jax.training.loop import Interrupted, TrainingDiverged
from aadml_jax.training.run_folder import RunFolder, versions
from aadml_jax.training.stacked_runs import Probe
from aadml_jax.training.sweep import RunHistory, run_sweep
from experiments import command_line
from experiments.studied_data import generated_data, grouped_data, with_label_noise
from experiments.studied_settings import CONFIRMED, SCREENED, Comparison
from experiments.study_sections import SIMILARITIES, add_gains, add_learning_curves, table_of


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
_DATA_BY_SEED = flags.DEFINE_bool(
    "data_by_seed",
    False,
    "each seed has its own choice of rows and, in --stage=screen, its own group to validate on; of "
    "generated data, its own problem",
)
_LABEL_NOISE = flags.DEFINE_float(
    "label_noise", 0.0, "part of the training rows that get a wrong class", 0.0, 0.9
)
_STEPS = flags.DEFINE_integer("steps", 300, "training steps of each run, about", lower_bound=1)
flags.register_validator(
    "fractions",
    lambda items: all(_is_fraction(item) for item in items or ()),
    message="must be numbers above 0, at most 1, separated by commas",
)
flags.register_validator(
    "fractions",
    lambda items: len({f"{float(item):g}" for item in items or ()}) == len(items or ()),
    message="must be different numbers",
)
flags.register_validator(
    "comparisons",
    lambda items: len(set(items or ())) == len(items or ()),
    message="must be different names",
)
flags.register_validator("label_noise", math.isfinite, message="must be a number")
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
# By whether data are generated and measured for the test: what a seed has of its own.
_OWN_DATA = {
    (False, False): "a group of its own to validate on (most training rows are shared)",
    (False, True): "its own choice of training rows, where not all are taken, and one test group",
    (True, False): "a problem of its own",
    (True, True): "a problem of its own",
}
# Flags that change what a page says, in the order in which its folder is named by them.
_NAMED = (
    "comparisons",
    "fractions",
    "seeds",
    "steps",
    "hidden_sizes",
    "group",
    "data_by_seed",
    "label_noise",
)


def run_comparison(
    comparison: Comparison,
    datasets: Sequence[RetrievalDataset],
    *,
    seeds: int,
    steps: int,
    most_runs: int,
    base: Mapping[str, Any],
    folder: pathlib.Path,
    on_progress: Callable[[int, int], None],
) -> dict[str, list[RunHistory]]:
    """The histories of each variant, seed by seed.

    Args:
      comparison: what is compared.
      datasets: seed s has that of turn s, or all seeds the only one. As many as seeds, or one.
      seeds: of each variant.
      steps: of each run, about.
      most_runs: in one program.
      base: what all variants have in common, as `TrainConfig` calls it.
      folder: of the sweeps.
      on_progress: called with the epochs done and to do of one turn.

    Raises:
      ValueError: There are neither as many data sets as seeds nor one.
      UserError: see `run_sweep`.
      TrainingDiverged: see `run_sweep`.
    """
    if len(datasets) not in (1, seeds):
        raise ValueError(f"{len(datasets)} data sets for {seeds} seeds; give one, or one for each")
    of_run = {}
    for turn, dataset in enumerate(datasets):
        data = hold(dataset)
        probes = {name: Probe(data.test, similarity=name) for name in SIMILARITIES}
        configs = {}
        for name, changes in comparison.variants.items():
            for seed in range(seeds) if len(datasets) == 1 else (turn,):
                config = TrainConfig(**{**base, **changes, "seed": seed})
                batch_size = min(
                    config.batch_size or configuration.DEFAULT_BATCH_SIZE, data.num_train
                )
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
        of_run |= zip(configs, histories, strict=True)
    return {name: [of_run[name, seed] for seed in range(seeds)] for name in comparison.variants}


def datasets_from_flags(seeds: int, *, for_test: bool) -> list[RetrievalDataset]:
    """One data set for all seeds, or one for each."""
    turns = range(seeds) if _DATA_BY_SEED.value else (0,)
    path = _FEATURES_FILE.value
    if path is None:
        return [generated_data(for_test=for_test, turn=turn) for turn in turns]
    return [grouped_data(path, _GROUP.value, for_test=for_test, turn=turn) for turn in turns]


def mean_bayes_map(datasets: Sequence[RetrievalDataset]) -> float | None:
    """Of the best ranking, mean of both directions; None where it is unknown."""
    if any(dataset.test_posteriors is None for dataset in datasets):
        return None
    return statistics.fmean(
        bayes_reference(*dataset.test_posteriors, dataset.test.labels)["mean"]["map"]
        for dataset in datasets
    )


def page_name() -> str:
    """The page's folder: the stage, and the flags that were given."""
    words = [_STAGE.value]
    for name in _NAMED:
        if not flags.FLAGS[name].present:
            continue
        value = flags.FLAGS[name].value
        text = "-".join(value) if isinstance(value, list) else str(value)
        words.append(text if isinstance(value, list) else f"{name}-{text}")
    return "-".join(words).replace("/", "_")


def names_from_flags(known: Mapping[str, Comparison]) -> list[str]:
    """Which comparisons to run: those asked for, or all that the flags allow.

    Raises:
      UserError: A name is unknown, or its comparison is meant for data by seed.
    """
    names = _COMPARISONS.value or [
        name
        for name, comparison in known.items()
        if _DATA_BY_SEED.value or not comparison.data_by_seed
    ]
    for name in names:
        if name not in known:
            raise UserError(
                f"--comparisons={name} is none of --stage={_STAGE.value}: {', '.join(known)}"
            )
        if known[name].data_by_seed and not _DATA_BY_SEED.value:
            raise UserError(f"--comparisons={name} needs data for each seed; add --data_by_seed")
    return names


def part_of(datasets: Sequence[RetrievalDataset], fraction: float) -> list[RetrievalDataset]:
    """A part of the training rows of each turn, with the label noise that is asked for."""
    return [
        with_label_noise(
            with_train_fraction(dataset, fraction, seed=turn), _LABEL_NOISE.value, seed=turn
        )
        for turn, dataset in enumerate(datasets)
    ]


def described(dataset: RetrievalDataset) -> dict[str, Any]:
    """What was trained on and measured, for the report."""
    return {
        "training": f"{len(dataset.train)} rows, {dataset.train.name}",
        "measured": f"{len(dataset.test)} rows, {dataset.test.name}",
        "fingerprint": dataset.fingerprint(),
    }


def main() -> int:
    """Wires data, comparisons and report together."""
    require_plots()  # before hours of training
    command_line.set_up_compilation_cache(_COMPILATION_CACHE.value)
    jax.devices()  # a missing device is told before a folder is made
    for_test = _STAGE.value == "confirm"
    known = CONFIRMED if for_test else SCREENED
    names = names_from_flags(known)
    is_generated = _FEATURES_FILE.value is None
    seeds = _SEEDS.value or (10 if for_test else 3)
    datasets = datasets_from_flags(seeds, for_test=for_test)
    bayes = mean_bayes_map(datasets)
    base = {
        "dataset": "synthetic" if is_generated else "features",
        "features_file": _FEATURES_FILE.value,
        "hidden_sizes": tuple(map(int, _HIDDEN_SIZES.value)),
        "learning_rate": _LEARNING_RATE,
        # Said outright, so that other defaults leave the study as it is.
        "label_loss": "squared",
        "similarity": "cosine",
    }
    over = (
        f"seeds, each with {_OWN_DATA[is_generated, for_test]}"
        if _DATA_BY_SEED.value
        else "seeds of training alone, for one choice of rows and of held-out rows"
    )
    chance = statistics.fmean(chance_map(dataset.test.labels) for dataset in datasets)
    workdir = _WORKDIR.value or f"runs/study-{base['dataset']}"
    report = Report(
        f"When anchor-aware proxies help: {'generated data' if is_generated else 'grouped data'}",
        f"Stage {_STAGE.value}: {'test' if for_test else 'validation'} rows of "
        f"{datasets[0].source}, {seeds} seeds, about {_STEPS.value} steps a "
        f"run, towers of {', '.join(_HIDDEN_SIZES.value)} units, Adam {_LEARNING_RATE:g}. The "
        f"state after the last epoch is measured. Chance: {chance:.3f}"
        f"{'' if bayes is None else f'; Bayes reference: {bayes:.3f}'}.",
    )
    rows: dict[str, list[dict[str, Any]]] = {}
    with RunFolder(workdir) as folder:
        for name in names:
            comparison = known[name]
            section = report.section(name, comparison.question)
            of_fraction = {}
            for fraction in map(float, _FRACTIONS.value or comparison.fractions):
                parts = part_of(datasets, fraction)
                print(
                    f"{name}, {fraction:g} of the training rows: "
                    f"{len(comparison.variants) * seeds} runs; folder {folder.path}",
                    file=sys.stderr,
                    flush=True,
                )
                try:
                    with command_line.progress_of_runs(name) as on_progress:
                        histories = run_comparison(
                            comparison,
                            parts,
                            seeds=seeds,
                            steps=_STEPS.value,
                            most_runs=_RUNS_AT_A_TIME.value,
                            base=base,
                            folder=folder.path / "sweep",
                            on_progress=on_progress,
                        )
                except (Interrupted, TrainingDiverged) as stop:
                    print(stop, file=sys.stderr)
                    return 1
                of_fraction[fraction] = histories
                part = f"{100 * fraction:g} % of the training rows"
                if _LABEL_NOISE.value:
                    part += f", {100 * _LABEL_NOISE.value:g} % of them with a wrong class"
                table = table_of(comparison, f"{name}, {part}", histories, over)
                section.table(table)
                print(table.markdown(), flush=True)
                figure = f"{name}-{100 * fraction:g}".replace(".", "_")
                add_gains(section, figure, comparison, histories, part, over)
                rows[f"{fraction:g}"] = [described(dataset) for dataset in parts]
            if len(of_fraction) > 2:
                add_learning_curves(section, f"{name}-by-share", comparison, of_fraction, bayes)
        report.configuration(
            {
                **base,
                "stage": _STAGE.value,
                "comparisons": names,
                "seeds": seeds,
                "steps": _STEPS.value,
                "data by seed": _DATA_BY_SEED.value,
                "label noise": _LABEL_NOISE.value,
                "rows, by fraction and seed": rows,
            }
        )
        report.versions(versions())
        page = report.write(folder.path / page_name())
    print(f"written to {page}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
