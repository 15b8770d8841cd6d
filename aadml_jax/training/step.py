"""One training step, and many of them in one compiled call."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from aadml_jax._arrays import Array
from aadml_jax.models import TwoTowers
from aadml_jax.objective import ObjectiveOptions, aadml_objective
from aadml_jax.training.state import RunKeys, TrainState


class Batch(NamedTuple):
    """Rows of both modalities: audio [B, Da], visual [B, Dv], labels int32 [B]."""

    audio: Array
    visual: Array
    labels: Array


TrainStep = Callable[[TrainState, Batch, Array], TrainState]


def make_train_step(
    model: TwoTowers,
    optimizer: optax.GradientTransformation,
    options: ObjectiveOptions,
) -> TrainStep:
    """A pure function `train_step(state, batch, dropout_key)` that returns the next state.

    The dropout masks depend on the key, the state's step and the row's place in the batch.

    Args:
      model: the towers.
      optimizer: applied to the objective's gradient.
      options: of the objective.
    """

    def train_step(state: TrainState, batch: Batch, dropout_key: Array) -> TrainState:
        def objective(params: dict) -> tuple[Array, dict[str, Array]]:
            audio, visual = model.apply(
                {"params": params},
                batch.audio,
                batch.visual,
                train=True,
                rngs={"dropout": jax.random.fold_in(dropout_key, state.step)},
            )
            return aadml_objective(
                audio,
                visual,
                batch.labels,
                class_proxies=params.get("class_proxies"),
                options=options,
            )

        (_, parts), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            epoch_sums={name: state.epoch_sums[name] + parts[name] for name in state.epoch_sums},
        )

    return train_step


def make_run_steps(
    train_step: TrainStep, data: Batch, *, batch_size: int, keys: RunKeys
) -> Callable[[TrainState, int], TrainState]:
    """A compiled function `run_steps(state, num_steps)` that stays within one epoch.

    The rows of epoch e are ordered by a permutation drawn from (seed, e) and cut into batches; what
    does not fill a batch is left out. The number of steps is an argument of the compiled loop, not
    part of it: however an epoch is cut into calls, the same program computes the same bytes.

    Args:
      train_step: from `make_train_step`.
      data: all training rows, on the device.
      batch_size: rows per step.
      keys: of the run.

    Returns:
      The function; the state passed to it must not be used afterwards (its memory is reused).
    """
    num_rows = data.labels.shape[0]
    steps_per_epoch = num_rows // batch_size

    def run_steps(data: Batch, keys: RunKeys, state: TrainState, num_steps: Array) -> TrainState:
        epoch = state.step // steps_per_epoch
        order = jax.random.permutation(jax.random.fold_in(keys.shuffle, epoch), num_rows)

        def body(_: Array, state: TrainState) -> TrainState:
            first = (state.step % steps_per_epoch) * batch_size
            rows = jax.lax.dynamic_slice_in_dim(order, first, batch_size)
            return train_step(state, Batch(*(array[rows] for array in data)), keys.dropout)

        is_new_epoch = state.step % steps_per_epoch == 0
        sums = jax.tree.map(lambda total: jnp.where(is_new_epoch, 0, total), state.epoch_sums)
        return jax.lax.fori_loop(0, num_steps, body, state._replace(epoch_sums=sums))

    # Data and keys are arguments, not constants: the cached program then serves every seed.
    compiled = jax.jit(run_steps, donate_argnums=2)
    return lambda state, num_steps: compiled(data, keys, state, jnp.asarray(num_steps, jnp.int32))
