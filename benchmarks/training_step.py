"""Speed of the training step and of a whole epoch, beside PyTorch doing the same.

    python -m benchmarks.training_step

Measures, in turn and in one process, at the default configuration (batch 400, VEGAS dimensions,
towers of 3 × 1,024 units): the compiled training step of several losses, the same steps in PyTorch
with plain vectorised code and with pytorch-metric-learning (PML), and a large float32 matrix
product in both libraries. The faster of the two products is the peak of what the machine can do, of
which the towers' matrix products reach a share. The last row is a call of no steps: all that the
host does for a call, and the shuffling. A second table does the same with epochs of 22,482 rows.

How both sides are made comparable, see `benchmarks.step_subjects`.
"""

import dataclasses
import functools
from collections.abc import Sequence

from absl import flags

from aadml_jax.errors import UserError
from aadml_jax.training.config import RecipeConfig
from benchmarks import side_by_side
from benchmarks.step_subjects import (
    OURS,
    OurSteps,
    dense_flops,
    make_data,
    make_peer_product,
    make_product,
    subjects_of_steps,
)
from experiments import command_line

side_by_side.define_flags(rounds=9)
flags.adopt_module_key_flags(side_by_side)  # so that --help lists them
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 400, "rows per step", lower_bound=2)
_EPOCH_ROWS = flags.DEFINE_integer("epoch_rows", 22_482, "training rows of the epoch")
_EPOCH_ROUNDS = flags.DEFINE_integer(
    "epoch_rounds", 3, "rounds of whole epochs; 0 leaves them out", lower_bound=0
)
_TORCH_COMPILE = flags.DEFINE_bool(
    "torch_compile",
    False,
    "measure torch.compile as well (a minute of compilation, a C++ compiler)",
)
_STEPS = 10
_PEAK_SIZE = 2048
_PRODUCTS = ("matrix product", "PyTorch: matrix product")
_NO_STEPS = "aadml_jax: a call of no steps"


def _print_steps(
    title: str, results: Sequence[side_by_side.Result], peak: float, batch_size: int
) -> None:
    table = side_by_side.Table(
        (title, -42),
        ("ms a step: median (min–max)", 27),
        ("CPU ms", 7),
        ("rounds", 6),
        ("GFLOP/s", 7),
        ("of peak", 7),
        ("samples/s", 9),
        ("note", -1),
    )
    for result in results:
        flops = dense_flops(RecipeConfig(), batch_size)
        is_product = result.subject.name in _PRODUCTS
        rate = samples = share = "–"
        if not result.reason and result.subject.name != _NO_STEPS:
            speed = (2.0 * _PEAK_SIZE**3 if is_product else flops) / result.wall
            rate, share = f"{speed / 1e9:.1f}", f"{speed / peak:.0%}"
            samples = "–" if is_product else f"{batch_size / result.wall:,.0f}"
        table.row(result.subject.name, *result.cells(), rate, share, samples, result.remark)


def main() -> None:
    """Measures and prints."""
    batch_size = _BATCH_SIZE.value
    if _EPOCH_ROUNDS.value and _EPOCH_ROWS.value < batch_size:
        raise UserError(f"--epoch_rows={_EPOCH_ROWS.value} must hold a batch of {batch_size}")
    peers = side_by_side.load_peers("torch_peers")
    with side_by_side.session(peers):
        differences: dict[str, float] = {}
        makers = (make_product, make_peer_product) if peers else (make_product,)
        subjects = [
            side_by_side.Subject(name, functools.partial(make, _PEAK_SIZE))
            for name, make in zip(_PRODUCTS, makers, strict=False)
        ]
        of_steps = functools.partial(
            subjects_of_steps,
            peers,
            batch_size,
            differences=differences,
            with_torch_compile=_TORCH_COMPILE.value,
        )
        subjects += of_steps(_STEPS, _STEPS * batch_size)
        data = make_data(_EPOCH_ROWS.value)
        no_steps = functools.partial(OurSteps, next(iter(OURS.values())), data, batch_size, 0)
        subjects.append(side_by_side.Subject(_NO_STEPS, no_steps, compiles=True))
        results = side_by_side.measure(subjects)
        print()
        for name, off in differences.items():
            print(f"agreement checked: {name}: loss at step 0, dropout off, {off:.0e} from ours")
        peak = max(
            2.0 * _PEAK_SIZE**3 / result.wall
            for result in results
            if result.subject.name in _PRODUCTS and not result.reason
        )
        _print_steps(f"step at batch {batch_size}", results, peak, batch_size)
        if not _EPOCH_ROUNDS.value:
            return
        steps = _EPOCH_ROWS.value // batch_size
        subjects = of_steps(steps, _EPOCH_ROWS.value)
        results = side_by_side.measure(subjects, rounds=_EPOCH_ROUNDS.value)
        table = side_by_side.Table(
            (f"epoch of {steps} steps", -42),
            ("s: median (min–max)", 22),
            ("CPU s", 7),
            ("rounds", 6),
            ("of peak", 7),
            ("samples/s", 9),
            ("note", -1),
        )
        for result in results:
            share = samples = "–"
            cells = dataclasses.replace(
                result,
                walls=[steps * wall for wall in result.walls],
                processors=[steps * seconds for seconds in result.processors],
            ).cells(scale=1, digits=2)
            if not result.reason:
                share = f"{dense_flops(RecipeConfig(), batch_size) / result.wall / peak:.0%}"
                samples = f"{batch_size / result.wall:,.0f}"
            table.row(result.subject.name, *cells, share, samples, result.remark)


if __name__ == "__main__":
    command_line.run(main)
