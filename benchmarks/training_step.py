"""Speed of the training step and of a whole epoch, beside PyTorch doing the same.

    python -m benchmarks.training_step

Measures, in turn and in one process, at the default configuration (batch 400, VEGAS dimensions,
towers of 3 × 1,024 units): the compiled training step of several losses, the same steps in PyTorch
with plain vectorised code and with pytorch-metric-learning (PML), and a large float32 matrix
product in both libraries. The faster of the two products is the peak of what the machine can do, of
which the towers' matrix products reach a share. The last row is a call of no steps: all that the
host does for a call, and the shuffling. A second table does the same with epochs of 22,482 rows.

Both sides take the same data in the same order. Before a peer is timed, its objective at our
initial parameters, with dropout off, must equal ours.
"""

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from aadml_jax.data import FeatureStandardization
from aadml_jax.errors import UserError
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.state import (
    TrainState,
    build_model,
    init_state,
    run_keys,
)
from aadml_jax.training.step import Batch, build_train_step, epoch_order, make_run_steps
from benchmarks import our_losses, side_by_side
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
_AUDIO_DIM, _VISUAL_DIM, _CLASSES = 128, 1024, 10
_PEAK_SIZE = 2048
_TOLERANCE = 1e-4
_PRODUCTS = ("matrix product", "PyTorch: matrix product")
_NO_STEPS = "aadml_jax: a call of no steps"

# The losses' parameters are fixed here: the peers' are, and defaults may move.
_TRIPLET = RecipeConfig(loss="triplet", margin=1.0)
_PLAIN = dataclasses.replace(_TRIPLET, anchor_aware=False)
_OURS = {
    "AA triplet": _TRIPLET,
    "plain triplet": _PLAIN,
    "plain contrastive": dataclasses.replace(_PLAIN, loss="contrastive"),
    "plain multi-similarity": dataclasses.replace(
        _PLAIN,
        loss="multi_similarity",
        margin=None,
        loss_parameters={"alpha": 2.0, "beta": 50.0, "base": 0.5},
    ),
}
# Row, what of ours it equals, and its place in `torch_peers.LOSSES` of that loss.
_PEERS = (
    ("PyTorch: AA triplet, sorted positives", "AA triplet", 0),
    ("PyTorch: AA triplet, one argsort", "AA triplet", 1),
    ("PyTorch: plain triplet, sorted positives", "plain triplet", 0),
    ("PyTorch: plain triplet, one argsort", "plain triplet", 1),
    ("PyTorch: plain triplet, PML", "plain triplet", 2),
    ("PyTorch: plain contrastive", "plain contrastive", 0),
    ("PyTorch: plain contrastive, PML", "plain contrastive", 1),
    ("PyTorch: plain multi-similarity, PML", "plain multi-similarity", 0),
)
_COMPILED_PEER = ("PyTorch: AA triplet, one argsort, compiled", "AA triplet", 1)


def dense_flops(config: RecipeConfig, batch_size: int) -> float:
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


def make_data(rows: int) -> Batch:
    """Random rows, in NumPy: JAX and PyTorch take them from there."""
    rng = np.random.default_rng(0)
    return Batch(
        rng.standard_normal((rows, _AUDIO_DIM)).astype(np.float32),
        rng.standard_normal((rows, _VISUAL_DIM)).astype(np.float32),
        rng.integers(0, _CLASSES, rows, dtype=np.int32),
    )


def make_state(config: RecipeConfig) -> TrainState:
    """The state before the first step."""
    identity = FeatureStandardization(
        np.zeros(_AUDIO_DIM), np.ones(_AUDIO_DIM), np.zeros(_VISUAL_DIM), np.ones(_VISUAL_DIM)
    )
    return init_state(config, num_classes=_CLASSES, standardization=identity)


def make_steps(config: RecipeConfig, data: Batch, batch_size: int, steps: int) -> Callable:
    """A function that trains `steps` steps, at most an epoch."""
    state = [make_state(config)]
    step = build_train_step(config, _CLASSES)
    data = Batch(*map(jnp.asarray, data))
    run_steps = make_run_steps(step, data, batch_size=batch_size, keys=run_keys(config.seed))

    def run() -> None:
        state[0] = run_steps(state[0], steps)
        jax.block_until_ready(state[0])

    return run


def make_product() -> Callable[[], object]:
    """A function that multiplies two large matrices."""
    random = np.random.default_rng(0)
    a, b = jax.device_put(random.normal(size=(2, _PEAK_SIZE, _PEAK_SIZE)).astype(np.float32))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))
    return lambda: jax.block_until_ready(product(a, b))


def make_peer_product() -> Callable[[], object]:
    """The same in PyTorch."""
    import torch

    a, b = torch.randn(2, _PEAK_SIZE, _PEAK_SIZE)
    return lambda: torch.mm(a, b)


def _our_loss(params: dict, batch: Batch, config: RecipeConfig, reduction: str) -> float:
    """The objective without dropout, its metric loss reduced as a peer does it."""
    outputs = build_model(config, _CLASSES).apply({"params": params}, batch.audio, batch.visual)
    loss, parts = config.objective()(*outputs, batch.labels)
    if reduction == "anchors":
        return float(loss)
    metric_loss = our_losses.both_directions(config.loss, reduction=reduction)
    return float(parts["label_loss"] + metric_loss(*outputs, jnp.asarray(batch.labels)))


def _orders(rows: int, seed: int, epochs: int = 4) -> list[np.ndarray]:
    """The order of the rows in our first epochs."""
    keys = run_keys(seed)
    return [np.array(epoch_order(keys, jnp.int32(epoch), rows)) for epoch in range(epochs)]


def make_peer_steps(
    losses: Mapping[str, Sequence],
    config: RecipeConfig,
    place: int,
    data: Batch,
    batch_size: int,
    checked: Callable[[float], None],
    *,
    is_compiled: bool = False,
) -> Callable[[], None]:
    """A function that trains an epoch in PyTorch, once its objective has been checked.

    Args:
      losses: `torch_peers.LOSSES`.
      config: what of ours it equals.
      place: of the loss in `losses[config.loss]`.
      data: training rows.
      batch_size: rows per step.
      checked: is called with the relative difference of the objectives at step 0.
      is_compiled: whether towers and objective go through `torch.compile`.
    """
    import torch

    from benchmarks import torch_training

    params = make_state(config).params
    loss = losses[config.loss][place]
    objective = torch_training.Objective(loss, config.anchor_aware)
    towers = tuple(
        torch_training.Tower(features, config.hidden_sizes, _CLASSES, config.dropout)
        for features in (_AUDIO_DIM, _VISUAL_DIM)
    )
    for tower, side in zip(towers, ("audio", "visual"), strict=True):
        tower.copy_from(params[side])
    tensors = tuple(map(torch.from_numpy, (*data[:2], data.labels.astype(np.int64))))
    orders = _orders(len(data.labels), config.seed)

    first = orders[0][:batch_size]
    with torch_training.without_dropout(towers):
        outputs = [tower(array[first]) for tower, array in zip(towers, tensors, strict=False)]
        theirs = float(objective(*outputs, tensors[2][first]))
    ours = _our_loss(params, Batch(*(array[first] for array in data)), config, loss.reduction)
    off = abs(theirs - ours) / abs(ours)
    if off > _TOLERANCE:
        raise side_by_side.NotRunError(f"its loss at step 0 is {theirs:.6g}, ours {ours:.6g}")
    checked(off)
    return torch_training.make_steps(
        towers,
        objective,
        tensors,
        [torch.from_numpy(order) for order in orders],
        batch_size=batch_size,
        learning_rate=config.learning_rate,
        is_compiled=is_compiled,
    )


def subjects_of_steps(
    peers: types.ModuleType | None, batch_size: int, steps: int, rows: int, differences: dict
) -> list[side_by_side.Subject]:
    """Our training and the peers', `steps` steps a call on `rows` rows.

    Args:
      peers: the module `torch_peers`, or None.
      batch_size: rows per step.
      steps: of a call, an epoch's.
      rows: of the data.
      differences: gets each peer's relative difference at step 0.
    """
    data = make_data(rows)
    subjects = [
        side_by_side.Subject(
            f"aadml_jax: {name}",
            functools.partial(make_steps, config, data, batch_size, steps),
            units=steps,
            compiles=True,
        )
        for name, config in _OURS.items()
    ]
    entries = (*_PEERS, _COMPILED_PEER) if _TORCH_COMPILE.value else _PEERS
    for name, ours, place in entries if peers else ():
        config = _OURS[ours]
        counts = np.bincount(data.labels[:batch_size], minlength=_CLASSES)
        subjects.append(
            side_by_side.Subject(
                name,
                functools.partial(
                    make_peer_steps,
                    peers.LOSSES,
                    config,
                    place,
                    data,
                    batch_size,
                    functools.partial(differences.__setitem__, name),
                    is_compiled=name == _COMPILED_PEER[0],
                ),
                units=steps,
                compiles=name == _COMPILED_PEER[0],
                # Both directions are held until the backward pass.
                needs_bytes=2 * peers.LOSSES[config.loss][place].bytes_built(counts),
                note=peers.LOSSES[config.loss][place].note,
            )
        )
    return subjects


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
        subjects = [side_by_side.Subject(_PRODUCTS[0], make_product)]
        if peers:
            subjects.append(side_by_side.Subject(_PRODUCTS[1], make_peer_product))
        subjects += subjects_of_steps(peers, batch_size, _STEPS, _STEPS * batch_size, differences)
        data = make_data(_EPOCH_ROWS.value)
        no_steps = functools.partial(make_steps, next(iter(_OURS.values())), data, batch_size, 0)
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
        subjects = subjects_of_steps(peers, batch_size, steps, _EPOCH_ROWS.value, differences)
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
