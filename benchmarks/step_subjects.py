"""Training steps to be timed: ours, and the same ones in PyTorch.

Both sides take the same random rows in the same order. Before a peer is timed, its objective at our
initial parameters, with dropout off, must equal ours.
"""

import dataclasses
import functools
import itertools
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aadml_jax.data import identity_standardization
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.parallel import one_device
from aadml_jax.training.state import TrainState, build_model, init_state, run_keys
from aadml_jax.training.step import Batch, build_train_step, compile_run_steps, epoch_order
from benchmarks import our_losses, side_by_side

_AUDIO_DIM, _VISUAL_DIM, _CLASSES = 128, 1024, 10
_TOLERANCE = 1e-4

# Losses and their parameters are fixed here: the peers' are, and defaults may move.
_TRIPLET = RecipeConfig(loss="triplet", margin=1.0, label_loss="squared")
_PLAIN = dataclasses.replace(_TRIPLET, anchor_aware=False)
OURS = {
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
    identity = identity_standardization(_AUDIO_DIM, _VISUAL_DIM)
    return init_state(config, num_classes=_CLASSES, standardization=identity)


class OurSteps:
    """A function that trains some steps, at most an epoch, from where the call before ended.

    Attributes:
      executable: what is called.
    """

    executable: jax.stages.Compiled

    def __init__(self, config: RecipeConfig, data: Batch, batch_size: int, steps: int) -> None:
        """Compiles the steps, on the first device."""
        placement = one_device()
        run_steps = compile_run_steps(
            build_train_step(
                dataclasses.replace(config, batch_size=batch_size), _CLASSES, placement
            ),
            len(data.labels),
            batch_size=batch_size,
            placement=placement,
        )
        self._rows = placement.shard(data, len(data.labels)), run_keys(config.seed)
        self._state, self._steps = make_state(config), np.int32(steps)
        self.executable = run_steps.lower(*self._rows, self._state, self._steps).compile()

    def __call__(self) -> None:
        """Trains, and waits for the end."""
        self._state = self.executable(*self._rows, self._state, self._steps)
        jax.block_until_ready(self._state)


def make_product(size: int, precision: Any = jax.lax.Precision.HIGHEST) -> Callable[[], object]:
    """A function that multiplies two large matrices."""
    random = np.random.default_rng(0)
    a, b = jax.device_put(random.normal(size=(2, size, size)).astype(np.float32))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return lambda: jax.block_until_ready(product(a, b))


def make_peer_product(size: int) -> Callable[[], object]:
    """The same in PyTorch."""
    import torch

    a, b = torch.randn(2, size, size)
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
    device: str = "cpu",
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
      device: of PyTorch.
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
        tower.copy_from(params[side]).to(device)
    tensors = tuple(
        torch.from_numpy(array).to(device) for array in (*data[:2], data.labels.astype(np.int64))
    )
    orders = _orders(len(data.labels), config.seed)

    first = orders[0][:batch_size]
    with torch_training.without_dropout(towers):
        outputs = [tower(array[first]) for tower, array in zip(towers, tensors, strict=False)]
        theirs = float(objective(*outputs, tensors[2][first]))
    ours = _our_loss(params, Batch(*(array[first] for array in data)), config, loss.reduction)
    off = abs(theirs - ours) / abs(ours)
    if off > _TOLERANCE:
        raise ValueError(f"its loss at step 0 is {theirs:.6g}, ours {ours:.6g}")
    checked(off)
    return torch_training.make_steps(
        towers,
        objective,
        tensors,
        [torch.from_numpy(order).to(device) for order in orders],
        batch_size=batch_size,
        learning_rate=config.learning_rate,
        is_compiled=is_compiled,
    )


def our_subject(
    name: str, config: RecipeConfig, data: Batch, batch_size: int, steps: int
) -> side_by_side.Subject:
    """Our training, `steps` steps a call."""
    return side_by_side.Subject(
        f"aadml_jax: {name}",
        functools.partial(OurSteps, config, data, batch_size, steps),
        units=steps,
        compiles=True,
    )


def subjects_of_steps(
    peers: types.ModuleType | None,
    batch_size: int,
    steps: int,
    rows: int,
    differences: dict[str, float],
    *,
    losses: Collection[str] = tuple(OURS),
    with_torch_compile: bool = False,
    device: str = "cpu",
    **changes: Any,
) -> list[side_by_side.Subject]:
    """Our training and the peers', `steps` steps a call on `rows` rows.

    Args:
      peers: the module `torch_peers`, or None.
      batch_size: rows per step.
      steps: of a call, an epoch's.
      rows: of the data.
      differences: gets each peer's relative difference at step 0.
      losses: keys of `OURS`.
      with_torch_compile: whether one peer goes through `torch.compile`, too.
      device: of PyTorch.
      **changes: settings of all recipes.
    """
    data = make_data(rows)
    configs = {name: dataclasses.replace(OURS[name], **changes) for name in losses}
    subjects = [
        our_subject(name, config, data, batch_size, steps) for name, config in configs.items()
    ]
    entries = (*_PEERS, _COMPILED_PEER) if with_torch_compile else _PEERS
    for name, ours, place in entries if peers else ():
        if ours not in configs:
            continue
        config = configs[ours]
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
                    device=device,
                ),
                units=steps,
                compiles=name == _COMPILED_PEER[0],
                # Both directions are held until the backward pass.
                needs_bytes=2 * peers.LOSSES[config.loss][place].bytes_built(counts),
                note=peers.LOSSES[config.loss][place].note,
            )
        )
    return subjects
