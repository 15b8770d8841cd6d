"""Reproduces the paper's evaluation: `python -m experiments.reproduce --what=all --smoke`.

Trains what each figure takes, several seeds each, as few compiled programs, and writes numbers,
tables, figures and one page, `report.html`, into --workdir. Takes the flags of `experiments.train`
that say what a run is made of. Run again after an interruption, it goes on where it was; what
several figures need is trained once.
"""

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Set

import jax
from absl import flags

from aadml_jax.data import RetrievalDataset, open_dataset
from aadml_jax.data.splits import rows_in_shares_of
from aadml_jax.errors import UserError
from aadml_jax.reports.page import Report
from aadml_jax.reports.retrieval import require_plots
from aadml_jax.training import config as configuration
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.evaluation import DIRECTIONS, bayes_reference, chance_map
from aadml_jax.training.held_data import HeldData, hold
from aadml_jax.training.loop import Interrupted, TrainingDiverged
from aadml_jax.training.run_folder import RunFolder, versions
from aadml_jax.training.stacked_runs import Probe
from aadml_jax.training.step import Batch
from aadml_jax.training.sweep import run_program, run_sweep
from experiments import command_line
from experiments.reproduction_runs import Key, resolved_by_seed
from experiments.reproductions import REPRODUCTIONS, SCOPES, TEST, TRAIN, References

command_line.define_flags(TrainConfig)
flags.adopt_module_key_flags(command_line)  # so that --help lists them
_WHAT = flags.DEFINE_enum("what", "all", [*REPRODUCTIONS, "all"], "what to reproduce")
_SEEDS = flags.DEFINE_integer(
    "seeds", None, "number of seeds, from --seed on; default 10, with --smoke 2", lower_bound=1
)
_RUNS_AT_A_TIME = flags.DEFINE_integer(
    "runs_at_a_time",
    20,
    "most runs that one program trains in step; its memory grows with them",
    lower_bound=1,
)
_DEFAULT_SEEDS, _SMOKE_SEEDS = 10, 2
# What belongs to a single run, to how its steps are spread, or to what is compared here.
_NOT_HERE = frozenset(
    {
        "anchor_aware",
        "checkpoint_every",
        "coordinator_address",
        "distributed",
        "input",
        "num_processes",
        "parallel",
        "process_id",
        "profile",
        "steps_per_call",
        "tensorboard",
    }
)
_TIMED_EPOCHS = 10


def opened(config: TrainConfig) -> RetrievalDataset:
    """The rows that the flags name."""
    dataset = open_dataset(
        config.dataset,
        data_dir=config.data_dir,
        features_file=config.features_file,
        multi_label=config.multi_label,
    )
    return configuration.apply_splits(config, dataset)


def probes_of(config: TrainConfig, data: HeldData) -> dict[str, Probe]:
    """What is measured of every run: the test rows, and training rows in the same class shares."""
    num_test = len(data.test_labels)
    ks = tuple(k for k in SCOPES if k <= num_test) or (num_test,)
    every = {"similarity": config.similarity, "every": config.eval_every, "with_loss": True}
    chosen = rows_in_shares_of(data.train.labels, data.test_labels)
    rows = Batch(*(array[chosen] for array in data.train))
    return {TEST: Probe(data.test, ks=ks, **every), TRAIN: Probe(rows, **every)}


def seconds_per_epoch(configs: list[TrainConfig], data: HeldData) -> float:
    """Median time of an epoch of these runs in one program, on one device, once compiled."""
    ends = []
    configs = [dataclasses.replace(config, epochs=_TIMED_EPOCHS) for config in configs]
    run_program(
        configs,
        data,
        {},
        devices=jax.local_devices()[:1],
        on_epoch=lambda _: ends.append(time.monotonic()),
    )
    return statistics.median(later - end for end, later in itertools.pairwise(ends))


def add_speed(report: Report, configs: list[TrainConfig], data: HeldData) -> None:
    """Says what training several runs in step gains over one after the other."""
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


def checked_config() -> tuple[TrainConfig, Set[str]]:
    """The configuration that the flags give, and which of its fields they give.

    Raises:
      UserError: A flag does not go with reproductions, or has a bad value.
    """
    config, explicit = command_line.config_from_flags(TrainConfig)
    for name in sorted(explicit & _NOT_HERE):
        raise UserError(f"--{name} is not for reproductions, which set it themselves; leave it out")
    configuration.check(config)
    if config.attention == "neighbor" and config.num_neighbors == 1:
        raise UserError(
            "--num_neighbors=1 is the method without proxies, with which they are compared here; "
            "choose 2 or more"
        )
    return config, explicit


def main() -> int:
    """Wires flags, sweep and report together."""
    config, explicit = checked_config()
    base = configuration.apply_presets(config, explicit)
    if base.deterministic:
        command_line.set_up_determinism()
    command_line.set_up_compilation_cache(base.compilation_cache)
    require_plots()  # before hours of training
    dataset = opened(base)
    data = hold(dataset, standardized=base.standardize)
    probes = probes_of(base, data)
    count = _SEEDS.value or (_SMOKE_SEEDS if base.smoke else _DEFAULT_SEEDS)
    names = list(REPRODUCTIONS) if _WHAT.value == "all" else [_WHAT.value]
    workdir = base.workdir or configuration.default_workdir(base).replace("/", "/reproduce-", 1)

    wanted: dict[tuple[str, Key, int], TrainConfig] = {}
    for name in names:
        runs = REPRODUCTIONS[name].runs(config)
        of_seeds = resolved_by_seed(runs, explicit, count=count, num_train=data.num_train)
        wanted |= {(name, *key_and_seed): run for key_and_seed, run in of_seeds.items()}
    resolved = configuration.resolve(base, data.num_train)
    with RunFolder(workdir) as folder:
        print(
            f"{dataset.name}{configuration.split_in_words(base)}: {data.num_train} training and "
            f"{len(data.test_labels)} test pairs; {', '.join(names)}: {len(wanted)} runs, "
            f"{count} seed{'s' * (count != 1)}; folder {folder.path}",
            flush=True,
        )
        command_line.warn_of_shared_rows(data.description["shared_rows"], len(data.test_labels))
        with command_line.progress_of_runs() as on_progress:
            try:
                histories = run_sweep(
                    list(wanted.values()),
                    data,
                    probes,
                    folder=folder.path / "sweep",
                    most_runs=_RUNS_AT_A_TIME.value,
                    on_progress=on_progress,
                )
            except (Interrupted, TrainingDiverged) as stop:
                print(stop, file=sys.stderr)
                return 1
        bayes = None
        if data.test_posteriors is not None:
            reference = bayes_reference(*data.test_posteriors, data.test_labels)
            bayes = {direction: reference[direction]["map"] for direction in DIRECTIONS}
        references = References(chance_map(data.test_labels), bayes)
        report = Report(
            f"Anchor-aware deep metric learning on {dataset.name}",
            f"{data.num_train} training and {len(data.test_labels)} test pairs of "
            f"{data.num_classes} classes. Mean ± standard deviation over {count} "
            f"seed{'s' * (count != 1)}, from {base.seed} on. MAP is of the state after the last "
            f"epoch; retrieval ranks by {resolved.similarity}. The method is that of Zeng et al., "
            "ICMR 2024, arXiv:2404.13789; where the paper is silent, the choices are this "
            "library's.",
        )
        of_run = dict(zip(wanted, histories, strict=True))
        for name in names:
            keys = list(dict.fromkeys(key for what, key, _ in wanted if what == name))
            REPRODUCTIONS[name].add_to(
                report,
                REPRODUCTIONS[name].title,
                {key: [of_run[name, key, seed] for seed in range(count)] for key in keys},
                references,
                resolved,
            )
        report.configuration(
            {
                "what": names,
                "seeds": count,
                **{
                    field.name: getattr(resolved, field.name)
                    for field in dataclasses.fields(resolved)
                    if field.name not in _NOT_HERE | {"seed"}
                },
                "data": data.description,
            }
        )
        report.versions(versions())
        page = report.write(folder.path)
        together = min(count, _RUNS_AT_A_TIME.value)
        if together > 1:  # measured last, so that the page is there whatever it needs
            first = next(iter(wanted))[:2]
            try:
                add_speed(report, [wanted[*first, seed] for seed in range(together)], data)
            except Interrupted as stop:
                print(f"{stop}; the page is there without its last section", file=sys.stderr)
                return 1
            report.write(folder.path)
    print(f"written to {page}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
