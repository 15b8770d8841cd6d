"""Speed of the training step: samples per second, and share of this machine's matrix-product peak.

    python -m benchmarks.training_step

Measures, in turn and in one process, the compiled training step at the default configuration
(batch 400, VEGAS dimensions, towers of 3 × 1,024 units) with and without anchor awareness, and a
large float32 matrix product as the peak of what the machine can do. Prints medians with minimum and
maximum over the rounds; the machine's other load shows in that spread.
"""

import itertools
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from aadml_jax.data import FeatureStandardization
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.run_folder import versions
from aadml_jax.training.state import build_model, build_optimizer, init_state, run_keys
from aadml_jax.training.step import Batch, make_run_steps, make_train_step
from experiments import command_line

_ROUNDS = flags.DEFINE_integer("rounds", 9, "rounds, each measuring everything once")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 400, "rows per step")
_STEPS = 10
_AUDIO_DIM, _VISUAL_DIM, _CLASSES = 128, 1024, 10
_PEAK_SIZE = 2048


def dense_flops(config: TrainConfig, batch_size: int) -> float:
    """Floating-point operations of the towers' matrix products in one step.

    Each layer multiplies once forward and twice backward, except that the first needs no derivative
    by its input.
    """
    flops = 0.0
    for features in (_AUDIO_DIM, _VISUAL_DIM):
        sizes = (features, *config.hidden_sizes, _CLASSES)
        for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
            flops += (2 if layer == 0 else 3) * 2.0 * batch_size * rows * columns
    return flops


def make_steps(config: TrainConfig, batch_size: int) -> Callable[[], None]:
    """A function that runs `_STEPS` steps on random rows."""
    rng = np.random.default_rng(0)
    rows = _STEPS * batch_size
    data = Batch(
        jnp.asarray(rng.standard_normal((rows, _AUDIO_DIM)), jnp.float32),
        jnp.asarray(rng.standard_normal((rows, _VISUAL_DIM)), jnp.float32),
        jnp.asarray(rng.integers(0, _CLASSES, rows), jnp.int32),
    )
    identity = FeatureStandardization(
        np.zeros(_AUDIO_DIM), np.ones(_AUDIO_DIM), np.zeros(_VISUAL_DIM), np.ones(_VISUAL_DIM)
    )
    state = [init_state(config, num_classes=_CLASSES, standardization=identity)]
    step = make_train_step(
        build_model(config, _CLASSES), build_optimizer(config), config.objective_options()
    )
    run_steps = make_run_steps(step, data, batch_size=batch_size, keys=run_keys(0))

    def run() -> None:
        state[0] = run_steps(state[0], _STEPS)
        jax.block_until_ready(state[0])

    return run


def make_product() -> Callable[[], None]:
    """A function that multiplies two large matrices."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (_PEAK_SIZE, _PEAK_SIZE)) for key in keys)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))
    return lambda: jax.block_until_ready(product(a, b))


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Measures and prints."""
    batch_size = _BATCH_SIZE.value
    subjects = {
        "matrix product": (make_product(), 2.0 * _PEAK_SIZE**3, 1),
        "step, plain triplet": (
            make_steps(TrainConfig(anchor_aware=False), batch_size),
            dense_flops(TrainConfig(), batch_size),
            _STEPS,
        ),
        "step, AA triplet": (
            make_steps(TrainConfig(), batch_size),
            dense_flops(TrainConfig(), batch_size),
            _STEPS,
        ),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for run, _, _ in subjects.values():
        run()
    for _ in range(_ROUNDS.value):
        for name, (run, _, _) in subjects.items():
            times[name].append(timed(run))

    device = jax.devices()[0]
    print(f"{platform.machine()}, {device.device_kind}, {jax.device_count()} device(s)")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    peak = subjects["matrix product"][1] / statistics.median(
        wall for wall, _ in times["matrix product"]
    )
    columns = f"{'CPU ms':>9}{'GFLOP/s':>9}{'of peak':>9}{'samples/s':>11}"
    print(f"\n{'':22}{'ms (median, min–max)':>26}{columns}")
    for name, (_, flops, repeats) in subjects.items():
        walls = sorted(wall / repeats for wall, _ in times[name])
        median = statistics.median(walls)
        processor = statistics.median(cpu for _, cpu in times[name]) / repeats
        rate = flops / median
        spread = f"{1e3 * median:.1f} ({1e3 * walls[0]:.1f}–{1e3 * walls[-1]:.1f})"
        samples = f"{batch_size / median:>11.0f}" if name != "matrix product" else f"{'':>11}"
        print(
            f"{name:22}{spread:>26}{1e3 * processor:>9.1f}{rate / 1e9:>9.1f}{rate / peak:>9.0%}"
            f"{samples}"
        )


if __name__ == "__main__":
    command_line.run(main)
