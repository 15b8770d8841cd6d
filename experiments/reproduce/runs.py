"""The paper's evaluation as a function: trains what its figures take and writes the page."""

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Sequence, Set

import jax

from aadml_jax.data.splits import rows_with_class_counts_of
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import require_plots
from aadml_jax.training.config import LaunchConfig, TrainConfig
from aadml_jax.training.evaluation import DIRECTIONS, bayes_reference, chance_map
from aadml_jax.training.local_data import LocalData, load_local_data
from aadml_jax.training.loop import Interrupted
from aadml_jax.training.run_folder import RunFolder, versions
from aadml_jax.training.settings import COUNT, check_settings, setting
from aadml_jax.training.setup import default_workdir, set_up, split_in_words
from aadml_jax.training.stacked_runs import Probe
from aadml_jax.training.step import Batch
from aadml_jax.training.sweep import run_program
from experiments import command_line
from experiments.reproduce.reproductions import REPRODUCTIONS, SCOPES, TEST, TRAIN, References
from experiments.variants import (
    TrainedVariants,
    WrittenReport,
    configs_by_seed,
    train_variants,
    write_report,
)

_DEFAULT_SEEDS, _SMOKE_SEEDS = 10, 2
_LAUNCH = {field.name for field in dataclasses.fields(LaunchConfig)}
# What belongs to a single run, to how its steps are spread, or to what is compared here.
_NOT_HERE = _LAUNCH - {"workdir", "epochs", "eval_every", "compilation_cache"} | {"anchor_aware"}
_TIMED_EPOCHS = 10


@dataclasses.dataclass(frozen=True)
class Options:
    """What is reproduced; flags of `experiments.reproduce` beside those of the configuration."""

    what: str = setting("all", "what to reproduce", choices=(*REPRODUCTIONS, "all"))
    seeds: int | None = setting(
        None, "number of seeds, from --seed on; default 10, with --smoke 2", bounds=COUNT
    )
    runs_at_a_time: int = setting(
        20,
        "most runs that one program trains in step; its memory grows with them",
        bounds=COUNT,
    )


def check(config: TrainConfig, options: Options, explicit: Set[str]) -> None:
    """Checks what a reproduction asks for beyond the checks of its runs.

    Raises:
      UserError: if a setting does not go with reproductions, or has a bad value.
    """
    check_settings(options)
    for name in sorted(explicit & _NOT_HERE):
        raise UserError(f"--{name} is not for reproductions, which set it themselves; leave it out")
    if config.recipe.attention == "neighbor" and config.recipe.num_neighbors == 1:
        raise UserError(
            "--num_neighbors=1 is the method without proxies, with which they are compared here; "
            "choose 2 or more"
        )


def probes_of(config: TrainConfig, data: LocalData) -> dict[str, Probe]:
    """What is measured of every run: the test rows, and training rows in the same class shares."""
    num_test = len(data.test_labels)
    ks = tuple(k for k in SCOPES if k <= num_test) or (num_test,)
    every = {
        "similarity": config.recipe.similarity,
        "every": config.launch.eval_every,
        "with_loss": True,
    }
    chosen = rows_with_class_counts_of(data.train.labels, data.test_labels)
    rows = Batch(*(array[chosen] for array in data.train))
    return {TEST: Probe(data.test, ks=ks, **every), TRAIN: Probe(rows, **every)}


def references_of(data: LocalData) -> References:
    """Chance, and the best ranking where it is known."""
    bayes = None
    if data.test_posteriors is not None:
        reference = bayes_reference(*data.test_posteriors, data.test_labels)
        bayes = {direction: reference[direction]["map"] for direction in DIRECTIONS}
    return References(chance_map(data.test_labels), bayes)


def seconds_per_epoch(configs: Sequence[TrainConfig], data: LocalData) -> float:
    """Median time of an epoch of these runs in one program, on one device, once compiled."""
    ends = []
    run_program(
        [config.replace(epochs=_TIMED_EPOCHS) for config in configs],
        data,
        {},
        devices=jax.local_devices()[:1],
        on_epoch=lambda _: ends.append(time.monotonic()),
    )
    return statistics.median(later - end for end, later in itertools.pairwise(ends))


def add_speed(report: Report, configs: Sequence[TrainConfig], data: LocalData) -> None:
    """Adds what training several runs in step gains over one after the other."""
    together, alone = seconds_per_epoch(configs, data), seconds_per_epoch(configs[:1], data)
    count = len(configs)
    device = jax.local_devices()[0].platform
    report.section(
        "How the runs were trained",
        "Runs that differ in numbers alone (seed, margin, k, weights, rates) are axes of one "
        f"compiled program. On one {device}, {count} runs in one program took {together:.3g} s an "
        f"epoch, one run by itself {alone:.3g} s: {count * alone / together:.2f} times the speed "
        f"of one after the other (medians of {_TIMED_EPOCHS - 1} epochs each, measured with "
        f"whatever else the machine did; compilation, once for all {count}, is left out). Several "
        "devices share the runs of a program; here there "
        f"{'is' if len(jax.local_devices()) == 1 else 'are'} {len(jax.local_devices())}.",
    )


def run(
    config: TrainConfig, options: Options = Options(), explicit: Set[str] = frozenset()
) -> WrittenReport:
    """Trains what the figures take and writes the page.

    Args:
      config: what a run is made of.
      options: what to reproduce.
      explicit: names of the settings that were asked for; presets leave them as they are.

    Raises:
      UserError: if a setting cannot be, or the data or the folder cannot be used.
      Interrupted: after a signal; the same call goes on from there.
      TrainingDiverged: if a run stopped being finite.
    """
    check(config, options, explicit)
    require_plots()  # before hours of training
    folder_name = default_workdir(config).replace("/", "/reproduce-", 1)
    resolved, dataset = set_up(
        config.replace(workdir=config.launch.workdir or folder_name), explicit
    )
    data = load_local_data(dataset, standardized=resolved.recipe.standardize)
    count = options.seeds or (_SMOKE_SEEDS if config.data.smoke else _DEFAULT_SEEDS)
    seeds = range(config.recipe.seed, config.recipe.seed + count)
    in_words = f"{count} seed{'s' * (count != 1)}"
    names = list(REPRODUCTIONS) if options.what == "all" else [options.what]
    of_figure = {name: REPRODUCTIONS[name].variants(config.recipe) for name in names}
    # Of all figures together, so that their runs share programs.
    variants = {(name, *key): variant for name in names for key, variant in of_figure[name].items()}
    with RunFolder(resolved.launch.workdir) as folder:
        print(
            f"{dataset.name}{split_in_words(resolved.data)}: {data.num_train} training and "
            f"{len(data.test_labels)} test pairs; {', '.join(names)}: {len(variants) * count} "
            f"runs, {in_words}; folder {folder.path}",
            flush=True,
        )
        command_line.warn_of_shared_rows(data.description["shared_rows"], len(data.test_labels))
        with command_line.progress_of_runs() as on_progress:
            histories = train_variants(
                variants,
                config,
                [(seeds, data)],
                functools.partial(probes_of, resolved),
                explicit=explicit,
                folder=folder.path / "sweep",
                most_runs=options.runs_at_a_time,
                on_progress=on_progress,
            ).histories
        report = Report(
            f"Anchor-aware deep metric learning on {dataset.name}",
            f"{data.num_train} training and {len(data.test_labels)} test pairs of "
            f"{data.num_classes} classes. Mean ± standard deviation over {in_words}, from "
            f"{seeds[0]} on. MAP is of the state after the last epoch; retrieval ranks by "
            f"{resolved.recipe.similarity}. The method is that of Zeng et al., ICMR 2024, "
            "arXiv:2404.13789; where the paper is silent, the choices are this library's.",
        )
        references = references_of(data)
        for name in names:
            trained = TrainedVariants(
                of_figure[name], {key: histories[name, *key] for key in of_figure[name]}
            )
            section = report.section(REPRODUCTIONS[name].title)
            REPRODUCTIONS[name].add_to(section, trained, references, resolved)
        report.configuration(
            {
                "what": names,
                "seeds": count,
                **{
                    name: value
                    for name, value in resolved.flat().items()
                    if name not in _NOT_HERE | {"seed"}
                },
                "data": data.description,
            }
        )
        report.versions(versions())
        written = write_report(report, folder.path)
        together = min(count, options.runs_at_a_time)
        if together > 1:  # measured last, so that the page is there whatever it needs
            first = dict([next(iter(variants.items()))])
            configs = configs_by_seed(
                first, config, seeds[:together], data.num_train, explicit=explicit
            )
            try:
                add_speed(report, list(configs.values()), data)
            except Interrupted as stop:
                raise Interrupted(f"{stop}; the page is there without its last section") from stop
            written = write_report(report, folder.path)
    return written
