"""Parts of `benchmarks.accelerator` that time single programs: steps, retrieval, products."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import aadml_jax
from aadml_jax.errors import one_line
from aadml_jax.reports.tables import Cell, Table
from aadml_jax.training import hlo_text
from aadml_jax.training.ahead_of_time import seconds_of
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.step import Batch
from benchmarks import side_by_side, step_subjects
from benchmarks.accelerator_bench import Bench, Findings
from benchmarks.clips import make_clips

_TRIPLET = "AA triplet"
_TOLERANCE = 1e-5
_BESIDE_PRODUCT = "× matrix product"
_COST_COLUMNS = (
    *("launches", "GFLOP", "MiB moved", "scratch MiB"),
    *("at least ms", "by", "share of roofline"),
)


def measure_losses(bench: Bench) -> Findings:
    """The step of every named loss, its cost as compiled, and its share of the roofline."""
    sizes = bench.sizes
    data = step_subjects.make_data(sizes.batch_size * sizes.steps)
    (product,), failures = bench.measure([_product_subject(sizes.product)])
    product_rate = None if product.reason else _rate(product, sizes.product)
    rows, times, left_out = [], {}, []

    def attempt(what: str, function: Callable[[], Any]) -> Any:
        """The function's value; None, and a line among the failures, where it raises."""
        try:
            return function()
        except Exception as error:  # one loss's failure is not the end of the others
            failures.append(f"{what}: {type(error).__name__}: {one_line(error)}")

    for loss in bench.in_time(sizes.losses, left_out):
        timed = attempt(loss, functools.partial(_timed_step, bench, loss, data))
        if timed is None:
            continue
        recipe, executable, result = timed
        times[loss] = result.wall
        speed = step_subjects.dense_flops(recipe, sizes.batch_size) / result.wall
        cost = functools.partial(_cost_of_step, bench, recipe, executable, result.wall)
        rows.append(
            [
                loss,
                *_milliseconds(result),
                round(sizes.batch_size / result.wall),
                None if product_rate is None else speed / product_rate,
                *(attempt(f"cost of {loss}", cost) or [None] * len(_COST_COLUMNS)),
            ]
        )
    notes = [
        f"`{_BESIDE_PRODUCT}`: arithmetic of the towers' products a second, in parts of that of "
        f"one product of {sizes.product} × {sizes.product} in float32 on this device.",
        "`at least ms` is the largest of the lower bounds by arithmetic, by memory traffic and, on "
        "a GPU, by launches of 2 µs (on a TPU, by the compiler's cycles); the share of the "
        "roofline is that bound in parts of the measured time. A GPU's bound by arithmetic is that "
        "of TF32, which products at HIGHEST, as the towers' are, cannot reach. Loops of unknown "
        "turns count as one turn.",
    ]
    if bench.accelerator is None:
        notes.append(f"No peaks are known of a {bench.device.device_kind}: there is no roofline.")
    if left_out:
        notes.append(f"Left out for want of time: {', '.join(left_out)}.")
    columns = ["loss", "ms a step", "min", "max", "samples/s", _BESIDE_PRODUCT, *_COST_COLUMNS]
    words = f"{_range(times)} a step at batch {sizes.batch_size}"
    if shares := [row[-1] for row in rows if row[-1] is not None]:
        words += f", {min(shares):.0%} to {max(shares):.0%} of the roofline"
    return Findings(
        words,
        {"seconds_per_step": times, "left_out": left_out},
        [Table(f"step at batch {sizes.batch_size}, by loss", columns, rows)],
        notes,
        failures,
    )


def _timed_step(
    bench: Bench, loss: str, data: Batch
) -> tuple[RecipeConfig, jax.stages.Compiled, side_by_side.Result]:
    """The default recipe with a loss, its steps as compiled, and their times."""
    size, steps = bench.sizes.batch_size, bench.sizes.steps
    recipe = RecipeConfig(
        loss=loss, hidden_sizes=bench.sizes.hidden_sizes, deterministic=bench.deterministic
    )
    run = step_subjects.OurSteps(recipe, data, size, steps)
    subject = side_by_side.Subject(loss, lambda: run, units=steps, compiles=True)
    (result,), failures = bench.measure([subject])
    if failures:
        raise RuntimeError(result.reason)
    return recipe, run.executable, result


def _cost_of_step(
    bench: Bench, recipe: RecipeConfig, executable: jax.stages.Compiled, seconds: float
) -> list[Cell]:
    """The cells of `_COST_COLUMNS` of a step that takes so many seconds."""
    module = hlo_text.parse(executable.as_text())
    loop = hlo_text.main_loop(module)
    cost = hlo_text.cost(module, None if loop is None else loop.called)
    bound = limit = share = None
    if bench.accelerator is not None:
        limits = seconds_of(cost, bench.accelerator, recipe.precision)._asdict()
        limit = max(limits, key=lambda name: limits[name])
        bound, share = 1e3 * limits[limit], limits[limit] / seconds
    return [
        cost.launches,
        (cost.matrix_flop + cost.other_flop) / 1e9,
        cost.bytes / 2**20,
        executable.memory_analysis().temp_size_in_bytes / 2**20,
        bound,
        limit,
        share,
    ]


def measure_peers(bench: Bench) -> Findings:
    """Our steps beside PyTorch's, by loss."""
    sizes = bench.sizes
    return _beside_pytorch(bench, [sizes.batch_size], tuple(step_subjects.OURS))


def measure_batches(bench: Bench) -> Findings:
    """The step of the triplet loss beside PyTorch's, by batch size."""
    return _beside_pytorch(bench, bench.sizes.batch_sizes, (_TRIPLET,))


def _beside_pytorch(bench: Bench, batch_sizes: Sequence[int], losses: Sequence[str]) -> Findings:
    sizes = bench.sizes
    peers, device, words = bench.peers
    differences: dict[str, float] = {}
    rows, times, failures, left_out, notes = [], {}, [], [], [words]
    for size in bench.in_time(batch_sizes, left_out):
        subjects = step_subjects.subjects_of_steps(
            peers,
            size,
            sizes.steps,
            sizes.steps * size,
            differences,
            losses=losses,
            device=device,
            hidden_sizes=sizes.hidden_sizes,
        )
        results, failed = bench.measure(subjects)
        failures += failed
        ours = next((one for one in results if not one.reason), None)
        for result in results:
            name, remark = result.subject.name, result.remark
            if result.reason:
                rows.append([size, name, None, None, None, None, None, None, remark])
                continue
            times[f"{name}, batch {size}"] = result.wall
            factor = None if ours is None else result.wall / ours.wall
            off = differences.get(name)
            cells = [*_milliseconds(result), round(size / result.wall), factor, off]
            rows.append([size, name, *cells, remark])
    if left_out:
        notes.append(f"Left out for want of time: batch sizes {', '.join(left_out)}.")
    columns = ["batch", "step", "ms a step", "min", "max", "samples/s", "× the first row"]
    ours_times = {name: wall for name, wall in times.items() if name.startswith("aadml_jax")}
    theirs = {name: wall for name, wall in times.items() if name not in ours_times}
    answer = f"ours {_range(ours_times)} a step"
    answer += f", PyTorch's {_range(theirs)}" if theirs else "; PyTorch not measured"
    return Findings(
        answer,
        {"seconds_per_step": times, "left_out": left_out},
        [
            Table(
                "training steps",
                [*columns, "off by", "note"],
                rows,
                note="`× the first row` is the time in parts of that of the first row of the same "
                "batch size; `off by` the relative difference of the objectives at step 0.",
            )
        ],
        notes,
        failures,
    )


def measure_evaluation(bench: Bench) -> Findings:
    """All metrics of both directions on many clips, and the same ranking on the CPU."""
    size = bench.sizes.clips
    audio, visual, labels = make_clips(size)
    on_device = jax.device_put((audio, visual, labels), bench.device)

    def report() -> dict[str, Any]:
        return jax.block_until_ready(aadml_jax.cross_modal_report(*on_device))

    first_seconds, _, result = side_by_side.timed(report)
    seconds = None if bench.is_late() else side_by_side.timed(report)[0]
    maps = {direction: float(values["map"]) for direction, values in result.items()}
    checked = min(bench.sizes.checked_queries, size)
    scores = aadml_jax.cosine_similarity(on_device[0][:checked], on_device[1])
    relevance = aadml_jax.same_label(on_device[2][:checked], on_device[2])
    there = aadml_jax.average_precision(scores, relevance, reduce_fn=None)
    here = _average_precision(np.asarray(scores), np.asarray(relevance))
    off = float(np.max(np.abs(np.asarray(there) - here)))
    failures = []
    if not off <= _TOLERANCE:  # nor is a NaN
        failures.append(f"average precision is {off:.1e} from that of NumPy")
    shown = first_seconds if seconds is None else seconds
    rows = [[direction, value] for direction, value in maps.items()]
    return Findings(
        f"{shown:.2f} s for {size:,} clips, MAP {maps['mean']:.4f}",
        {
            "clips": size,
            "first_seconds": first_seconds,
            "seconds": seconds,
            "map": maps,
            "off_by": off,
        },
        [Table(f"MAP of {size:,} clips, each a query of both directions", ["", "MAP"], rows)],
        [
            f"{first_seconds:.2f} s at first, with compilation"
            + (f", and {seconds:.2f} s again" if seconds is not None else "")
            + "; prefix MAP, precision, recall and ties come with it.",
            f"The average precision of {checked} of the queries is {off:.0e} at most from NumPy's "
            "on the same scores.",
        ],
        failures,
    )


def _average_precision(scores: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """By a stable sort in float64, [Q]."""
    order = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")
    hits = np.take_along_axis(relevance, order, axis=1)
    precisions = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.sum(precisions * hits, axis=1) / np.maximum(hits.sum(axis=1), 1)


def check_ties(bench: Bench) -> Findings:
    """Whether `jax.lax.top_k` takes the lower index first where values are equal."""
    rows, all_by_index = [], True
    for num_rows, columns, k in bench.sizes.tied:
        for dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
            # Ten values, so that nearly every one taken is tied.
            values = np.random.default_rng(0).integers(0, 10, (num_rows, columns))
            expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
            given = jax.device_put(jnp.asarray(values, dtype), bench.device)
            _, found = jax.jit(functools.partial(jax.lax.top_k, k=k))(given)
            differing = int(np.sum(np.any(np.asarray(found) != expected, axis=1)))
            all_by_index = all_by_index and not differing
            shape = f"{num_rows:,} × {columns:,}"
            rows.append([shape, k, jnp.dtype(dtype).name, "no" if differing else "yes", differing])
    return Findings(
        "yes: the lower index comes first" if all_by_index else "NO: not always by the lower index",
        {"by_index": all_by_index},
        [
            Table(
                "top_k of values of which many are equal",
                ["values", "k", "type", "by index", "rows of another order"],
                rows,
            )
        ],
    )


def measure_products(bench: Bench) -> Findings:
    """Speed and error of a float32 matrix product by the precision that JAX is asked for."""
    size = bench.sizes.product
    left, right = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    checked = left[: min(400, size)]
    exact = checked.astype(np.float64) @ right.astype(np.float64)
    names = ("DEFAULT", "HIGH", "HIGHEST")
    precisions = {name: getattr(jax.lax.Precision, name) for name in names}
    results, failures = bench.measure(
        [_product_subject(size, name, precision) for name, precision in precisions.items()]
    )
    rows, errors = [], {}
    for result, (name, precision) in zip(results, precisions.items(), strict=True):
        product = jax.jit(functools.partial(jnp.matmul, precision=precision))
        found = np.asarray(product(*jax.device_put((checked, right), bench.device)), np.float64)
        errors[name] = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
        times = [None, None] if result.reason else [1e3 * result.wall, _rate(result, size) / 1e12]
        rows.append([name, errors[name], *times])
    notes = ["The towers' products ask for HIGHEST."]
    if bench.is_on_cpu:
        notes.append("A CPU computes all three alike: nothing is to be seen here of HIGH.")
    return Findings(
        f"relative error of HIGH {errors['HIGH']:.1e}, of HIGHEST {errors['HIGHEST']:.1e}",
        {"relative_error": errors},
        [
            Table(
                f"float32 matrix product of {size:,} × {size:,}",
                ["precision", "relative error", "ms", "TFLOP/s"],
                rows,
                note="The error is norm-wise, from NumPy's product in float64, of "
                f"{len(checked)} rows.",
            )
        ],
        notes,
        failures,
    )


def read_memory(bench: Bench) -> Findings:
    """The most memory that the device held during all parts."""
    statistics = bench.device.memory_stats()
    if not statistics:
        raise side_by_side.NotRunError(
            f"JAX keeps no memory statistics of a {bench.device.device_kind}"
        )
    rows = [[name, value / 2**20] for name, value in statistics.items() if "bytes" in name]
    peak = statistics.get("peak_bytes_in_use")
    words = "no peak among the statistics" if peak is None else side_by_side.format_bytes(peak)
    return Findings(
        f"at most {words}" if peak is not None else words,
        {"statistics": {name: int(value) for name, value in statistics.items()}},
        [Table("memory of the device, all parts so far", ["", "MiB"], rows)],
    )


def _product_subject(
    size: int, name: str = "matrix product", precision: Any = jax.lax.Precision.HIGHEST
) -> side_by_side.Subject:
    make: Callable[[], Callable[[], object]] = functools.partial(
        step_subjects.make_product, size, precision
    )
    return side_by_side.Subject(name, make, compiles=True)


def _rate(result: side_by_side.Result, size: int) -> float:
    return 2 * size**3 / result.wall


def _milliseconds(result: side_by_side.Result) -> tuple[float, float, float]:
    """Median, least and most of a unit."""
    return 1e3 * result.wall, 1e3 * min(result.walls), 1e3 * max(result.walls)


def _range(seconds: dict[str, float]) -> str:
    if not seconds:
        return "nothing measured"
    low, high = 1e3 * min(seconds.values()), 1e3 * max(seconds.values())
    return f"{low:.3g} to {high:.3g} ms" if len(seconds) > 1 else f"{low:.3g} ms"
