"""Parts of `benchmarks.accelerator` that train whole runs."""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from aadml_jax.reports.tables import Table
from aadml_jax.training.epochs import is_due
from aadml_jax.training.evaluation import make_evaluate
from aadml_jax.training.run_folder import CONFIG_FILE, METRICS_FILE, read_run_json
from aadml_jax.training.settings import resolved
from aadml_jax.training.stacked_runs import StackedRuns
from aadml_jax.training.state import build_model, init_state, run_keys
from aadml_jax.training.step import build_train_step, make_run_steps
from aadml_jax.training.stored_runs import restore_for_evaluation
from benchmarks import side_by_side
from benchmarks.accelerator_bench import Bench, Findings, Run

_GOAL_SECONDS = 10.0
_GOAL_IN_WORDS = {
    True: ", the published size in under ten seconds",
    False: ", the published size, not in under ten seconds",
    None: "",
}
_GOAL_FACTOR = 2.0


def time_whole_run(bench: Bench) -> Findings:
    """A run of the published size, from reading its rows to result.json."""
    sizes, dataset = bench.sizes, bench.whole_run
    first = bench.train("whole-first", dataset, epochs=sizes.eval_every)
    run = bench.train("whole", dataset, epochs=sizes.whole_epochs)
    compiled = None if bench.is_late() else _time_programs(bench)
    steps = sizes.whole_epochs * (len(dataset.train) // sizes.batch_size)
    is_within = run.seconds < _GOAL_SECONDS if sizes.has_published_run else None
    rows = [
        [f"{sizes.eval_every} epochs, the first run of all", sizes.eval_every, first.seconds],
        [f"{sizes.whole_epochs} epochs, a run after it", sizes.whole_epochs, run.seconds],
        ["its steps and evaluations alone, compiled", sizes.whole_epochs, compiled],
    ]
    mean_map = run.result["map"]["mean"]
    return Findings(
        f"{run.seconds:.2f} s for {steps:,} steps{_GOAL_IN_WORDS[is_within]}"
        + (f"; {compiled:.2f} s without compiling and files" if compiled is not None else ""),
        {
            "train_rows": len(dataset.train),
            "test_rows": len(dataset.test),
            "epochs": sizes.whole_epochs,
            "steps": steps,
            "first_run_seconds": first.seconds,
            "seconds": run.seconds,
            "compiled_seconds": compiled,
            "under_ten_seconds": is_within,
            "map": mean_map,
        },
        [
            Table(
                f"{len(dataset.train):,} training and {len(dataset.test):,} test rows, batch "
                f"{sizes.batch_size}, MAP every {sizes.eval_every} epochs",
                ["", "epochs", "s"],
                rows,
            )
        ],
        [
            "A run reads and standardises rows, compiles (or, after the first run, loads compiled "
            "programs where JAX keeps them), trains, evaluates, and writes log and checkpoints.",
            f"MAP after the last epoch, mean of both directions: {mean_map:.4f} (generated data).",
        ],
    )


def _time_programs(bench: Bench) -> float:
    """Seconds of the steps and evaluations of the whole run, all compiled before."""
    config, data = bench.config(bench.whole_run), bench.whole_data
    recipe = config.recipe
    placement, batch_size = bench.placement, resolved(recipe.batch_size)
    run_steps = make_run_steps(
        build_train_step(recipe, data.num_classes, placement),
        data.train,
        batch_size=batch_size,
        keys=run_keys(recipe.seed),
        placement=placement,
    )
    evaluate = make_evaluate(
        build_model(recipe, data.num_classes),
        data.test,
        len(data.test_labels),
        placement,
        similarity=recipe.similarity,
    )
    new_state = functools.partial(
        init_state, recipe, num_classes=data.num_classes, standardization=data.standardization
    )
    evaluate(run_steps(new_state(), 1).params)
    state = jax.block_until_ready(new_state())
    began = time.perf_counter()
    for epoch in range(1, bench.sizes.whole_epochs + 1):
        state = run_steps(state, data.num_train // batch_size)
        if is_due(epoch, bench.sizes.eval_every, bench.sizes.whole_epochs):
            evaluate(state.params)
    jax.block_until_ready(state)
    return time.perf_counter() - began


def time_stacked_seeds(bench: Bench) -> Findings:
    """Runs of several seeds in one program, beside one."""
    recipe = bench.config(bench.whole_run).recipe
    counts = (1, bench.sizes.seeds)

    def prepare(count: int) -> Any:
        recipes = [dataclasses.replace(recipe, seed=seed) for seed in range(count)]
        program = StackedRuns(recipes, bench.whole_data, (bench.device,))
        state = [program.placed(program.first_state())]

        def run() -> None:
            state[0] = program.run_steps(state[0], program.steps_per_epoch)

        return run

    steps = len(bench.whole_run.train) // bench.sizes.batch_size
    results, failures = bench.measure(
        [
            side_by_side.Subject(
                f"{count} in one program", functools.partial(prepare, count), steps, compiles=True
            )
            for count in counts
        ]
    )
    if failures:
        return Findings("not measured", {}, failures=failures)
    one, many = results
    factor = many.wall / one.wall
    return Findings(
        f"{counts[1]} seeds take {factor:.2f} times as long as one, "
        f"{'' if factor < _GOAL_FACTOR else 'not '}less than twice",
        {"seeds": counts[1], "factor": factor, "less_than_twice": factor < _GOAL_FACTOR},
        [
            Table(
                "training of several seeds",
                ["runs", "ms a step of all", "ms a step of each", "s an epoch"],
                [
                    [count, 1e3 * result.wall, 1e3 * result.wall / count, steps * result.wall]
                    for count, result in zip(counts, results, strict=True)
                ],
            )
        ],
    )


def check_determinism(bench: Bench) -> Findings:
    """Whether the same seed gives the same bytes twice."""
    runs = [
        bench.train(f"same-{number}", bench.short_run, epochs=bench.sizes.short_epochs)
        for number in (1, 2)
    ]
    logs = [(run.folder / METRICS_FILE).read_bytes() for run in runs]
    one, other = map(_parameters, runs)
    differing = sum(int(np.sum(one[name] != other[name])) for name in one)
    off = _distance(one, other)
    same_log, same_parameters = logs[0] == logs[1], not differing
    is_same = same_log and same_parameters
    failures = []
    if not is_same and (bench.is_on_cpu or bench.deterministic):
        failures.append(f"the bytes differ ({differing} parameters), though they must not here")
    return Findings(
        "the same bytes" if is_same else f"other bytes, parameters {off:.1e} apart",
        {
            "same_log": same_log,
            "same_parameters": same_parameters,
            "differing_parameters": differing,
            "distance": off,
            "deterministic_operations": bench.deterministic,
        },
        notes=[
            f"Two runs of {bench.sizes.short_epochs} epochs from one seed, in one process: "
            f"metrics.jsonl is {'' if same_log else 'not '}the same, {differing:,} of "
            f"{sum(map(np.size, one.values())):,} parameters differ. XLA was "
            f"{'' if bench.deterministic else 'not '}asked for deterministic operations.",
        ],
        failures=failures,
    )


def check_crossing(bench: Bench) -> Findings:
    """Checkpoints taken from the CPU to the device, and the other way."""
    here, there = bench.cpu, bench.device
    half, whole = bench.sizes.short_epochs // 2, bench.sizes.short_epochs
    courses = {
        "CPU throughout": (here, here),
        "device throughout": (there, there),
        "CPU, then device": (here, there),
        "device, then CPU": (there, here),
    }
    runs = {}
    for number, (name, (first, second)) in enumerate(courses.items()):
        folder = f"crossing-{number}"
        if first != second:
            bench.train(folder, bench.short_run, first, epochs=half)
        runs[name] = bench.train(folder, bench.short_run, second, epochs=whole)
    parameters = {name: _parameters(run) for name, run in runs.items()}
    reference = runs["CPU throughout"]
    rows, distances = [], {}
    for name, run in runs.items():
        distances[name] = _distance(parameters["CPU throughout"], parameters[name])
        mean_map = run.result["map"]["mean"]
        rows.append([name, distances[name], mean_map, mean_map - reference.result["map"]["mean"]])
    notes = [
        f"{half} epochs before the checkpoint and {whole - half} after it. Parameters: largest "
        "norm-wise relative distance of an array from that of the run that stayed on the CPU."
    ]
    if bench.is_on_cpu:
        notes.append("The device is a CPU: nothing was taken anywhere, and all must be equal.")
    return Findings(
        f"parameters at most {max(distances.values()):.1e} from those of the CPU",
        {"distances": distances, "map": {row[0]: row[2] for row in rows}},
        [
            Table(
                "one run, on two devices in turn",
                ["where", "parameters off by", "MAP", "MAP − that of the CPU"],
                rows,
            )
        ],
        notes,
    )


def compare_precisions(bench: Bench) -> Findings:
    """MAP after training with the towers in float32 and in bfloat16."""
    maps = {}
    rows = []
    for precision in ("float32", "bfloat16"):
        run = bench.train(
            precision, bench.short_run, precision=precision, epochs=bench.sizes.map_epochs
        )
        maps[precision] = run.result["map"]
        rows.append([precision, *maps[precision].values(), run.seconds])
    difference = maps["bfloat16"]["mean"] - maps["float32"]["mean"]
    return Findings(
        f"float32 {maps['float32']['mean']:.4f}, bfloat16 {maps['bfloat16']['mean']:.4f} "
        f"({difference:+.4f})".replace("-", "−"),
        {"map": maps, "difference": difference},
        [
            Table(
                f"MAP after {bench.sizes.map_epochs} epochs, by the type of the towers' products",
                ["type", *maps["float32"], "s"],
                rows,
                note="One seed: over seeds, MAP on these data spreads by some thousandths.",
            )
        ],
    )


def _parameters(run: Run) -> dict[str, np.ndarray]:
    """The model's parameters at the last checkpoint, by name."""
    stored = read_run_json(run.folder, CONFIG_FILE)
    _, state, _ = restore_for_evaluation(run.folder, stored, "latest")
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(state.params)
    }


def _distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Largest norm-wise relative difference of an array from the first."""
    return max(
        float(np.linalg.norm(other[name] - array) / max(float(np.linalg.norm(array)), 1e-30))
        for name, array in one.items()
    )
