"""One training step, and many of them in one compiled call."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aadml_jax._arrays import Array, ArrayLike, check_count, global_row_numbers
from aadml_jax._random import fixed_generator
from aadml_jax.models import TwoTowers, paired_outputs
from aadml_jax.objective import Objective
from aadml_jax.row_blocks import rows_at_once
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.paired_state import add_parts, pair_state, part_state
from aadml_jax.training.parallel import Placement, one_device
from aadml_jax.training.settings import resolved
from aadml_jax.training.state import RunKeys, TrainState, build_model, build_optimizer


class Batch(NamedTuple):
    """Rows of both modalities: audio [B, Da], visual [B, Dv], labels int32 [B] or bool [B, C]."""

    audio: Array
    visual: Array
    labels: Array


def _as_it_is(state: TrainState) -> TrainState:
    return state


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A pure function `train_step(state, batch, dropout_key)` that returns the next state.

    Several steps are taken in the form of the state that suits the device:
    `unpack(take(take(pack(state), …), …))`.

    Attributes:
      take: (state in that form, batch, dropout key) to the next state in that form.
      pack: a state in that form.
      unpack: the inverse of `pack`.
    """

    take: Callable[[Any, Batch, Array], Any]
    pack: Callable[[TrainState], Any] = _as_it_is
    unpack: Callable[[Any], TrainState] = _as_it_is

    def __call__(self, state: TrainState, batch: Batch, dropout_key: Array) -> TrainState:
        """The state after one step."""
        return self.unpack(self.take(self.pack(state), batch, dropout_key))


def build_train_step(
    recipe: RecipeConfig, num_classes: int, placement: Placement | None = None
) -> TrainStep:
    """The step that a resolved configuration names, in the form that suits the devices."""
    placement = placement or one_device()
    objective = recipe.objective(
        stacked=placement.is_on_gpus, block_size=rows_at_once(resolved(recipe.batch_size))
    )
    model, optimizer = build_model(recipe, num_classes), build_optimizer(recipe)
    return make_train_step(model, optimizer, objective, placement)


def make_train_step(
    model: TwoTowers,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    placement: Placement | None = None,
    *,
    paired: bool | None = None,
) -> TrainStep:
    """The step of a run.

    The dropout masks depend on the key, the state's step and the row's place in the global batch.

    Args:
      model: the towers.
      optimizer: applied to the objective's gradient.
      objective: of the outputs, see `Objective`.
      placement: over the devices; default one. Where it has an `axis_name`, the step takes a
        device's shard of the batch, in order, and returns the next state of the whole batch.
      paired: whether like layers of both towers are one operation, see `paired_state`; it changes
        no number beyond rounding. Default on GPUs.
    """
    placement = placement or one_device()
    paired = placement.is_on_gpus if paired is None else paired

    def objective_of_outputs(
        outputs: Batch, class_proxies: Array | None, *, axis_name: str | None
    ) -> tuple[Array, dict[str, Array]]:
        learned = {} if class_proxies is None else {"class_proxies": class_proxies}
        return objective(*outputs, axis_name=axis_name, **learned)

    def outputs_of(params: Any, batch: Batch, key: Array) -> tuple[Array, Array]:
        rows = global_row_numbers(batch.labels.shape[0], placement.axis_name)
        if paired:
            audio, visual = paired_outputs(
                model, params, batch.audio, batch.visual, rows=rows, dropout_key=key
            )
            return audio, visual
        outputs: Any = model.apply(
            {"params": params},
            batch.audio,
            batch.visual,
            train=True,
            rows=rows,
            rngs={"dropout": key},
        )
        return outputs

    def gradient_and_parts(
        state: TrainState, batch: Batch, dropout_key: Array
    ) -> tuple[Any, dict[str, Array]]:
        def objective_of_params(params: dict) -> tuple[Array, dict[str, Array]]:
            key = jax.random.fold_in(dropout_key, state.step)
            audio, visual = outputs_of(params, batch, key)
            return placement.map_shards(
                objective_of_outputs,
                Batch(audio, visual, batch.labels),
                params.get("class_proxies"),
            )

        (_, parts), gradient = jax.value_and_grad(objective_of_params, has_aux=True)(state.params)
        if placement.axis_name is not None:
            gradient = jax.lax.pmean(gradient, placement.axis_name)
        return gradient, parts

    def take(state: TrainState, batch: Batch, dropout_key: Array) -> TrainState:
        gradient, parts = gradient_and_parts(state, batch, dropout_key)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        return state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            epoch_sums=add_parts(state.epoch_sums, parts),
        )

    if not paired:
        return TrainStep(take)
    return TrainStep(take, pair_state, part_state)


def make_run_steps(
    train_step: TrainStep,
    data: Batch,
    num_rows: int | None = None,
    *,
    batch_size: int,
    keys: RunKeys,
    placement: Placement | None = None,
) -> Callable[[TrainState, int], TrainState]:
    """A compiled function `run_steps(state, num_steps)` that stays within one epoch.

    The rows of epoch e are ordered by a permutation drawn from (seed, e) and cut into batches; what
    does not fill a batch is left out. The number of steps is an argument of the compiled loop, not
    part of it: however an epoch is cut into calls, the same program computes the same bytes.

    Args:
      train_step: from `make_train_step`, with the same placement.
      data: the training rows that this process holds, on the host.
      num_rows: training rows of all processes; default those of `data`.
      batch_size: rows per step, a multiple of the devices.
      keys: of the run.
      placement: over the devices; default one.

    Returns:
      The function; the state passed to it must not be used afterwards (its memory is reused). It
      raises ValueError for more steps than the epoch has left.

    Raises:
      ValueError: if there are fewer rows than a batch.
    """
    placement = placement or one_device()
    num_rows = len(data.labels) if num_rows is None else num_rows
    steps_per_epoch = steps_in_epoch(num_rows, batch_size)
    compiled = compile_run_steps(train_step, num_rows, batch_size=batch_size, placement=placement)
    data, keys = placement.shard(data, num_rows), placement.replicate(keys)

    def run_within_epoch(state: TrainState, num_steps: int) -> TrainState:
        num_steps = check_steps(int(state.step), num_steps, steps_per_epoch)
        return compiled(data, keys, state, np.int32(num_steps))

    return run_within_epoch


def compile_run_steps(
    train_step: TrainStep, num_rows: int, *, batch_size: int, placement: Placement
) -> Any:
    """The jitted `run_steps(data, keys, state, num_steps)` that `make_run_steps` calls.

    Data and keys are arguments, not constants: the cached program then serves every seed.

    Args:
      train_step: from `make_train_step`, with the same placement.
      num_rows: training rows of all processes.
      batch_size: rows per step, a multiple of the devices.
      placement: over the devices.

    Raises:
      ValueError: if there are fewer rows than a batch.
    """
    steps_per_epoch = steps_in_epoch(num_rows, batch_size)
    placement.check_batch_size(batch_size)

    def run_steps(data: Batch, keys: RunKeys, state: TrainState, num_steps: Array) -> TrainState:
        epoch = state.step // steps_per_epoch
        order = epoch_order(keys, epoch, num_rows)

        def batch_at(step: Array) -> Batch:
            first = (step % steps_per_epoch) * batch_size
            return placement.take(data, jax.lax.dynamic_slice_in_dim(order, first, batch_size))

        state = begin_epoch(state, steps_per_epoch)
        return repeat_step(train_step, batch_at, keys, state, num_steps)

    return placement.compile(run_steps)


def steps_in_epoch(num_rows: int, batch_size: int) -> int:
    """How many whole batches the rows give.

    Raises:
      ValueError: if none.
    """
    steps = num_rows // check_count(batch_size, "batch_size")
    if steps < 1:
        raise ValueError(f"batch_size={batch_size} exceeds the {num_rows} training rows")
    return steps


def check_steps(step: int, num_steps: int, steps_per_epoch: int) -> int:
    """Checks that an epoch has so many steps left.

    Args:
      step: steps taken so far.
      num_steps: to be taken.
      steps_per_epoch: of every epoch.

    Raises:
      ValueError: if not.
    """
    num_steps = check_count(num_steps, "num_steps", least=0)
    left = steps_per_epoch - step % steps_per_epoch
    if num_steps > left:
        raise ValueError(
            f"num_steps={num_steps} from step {step} on goes beyond the epoch of "
            f"{steps_per_epoch} steps; at most {left} are left"
        )
    return num_steps


def epoch_order(keys: RunKeys, epoch: ArrayLike, num_rows: int) -> Array:
    """The order of an epoch's rows, int32 [N]: a permutation drawn from (seed, epoch)."""
    with fixed_generator():
        return jax.random.permutation(jax.random.fold_in(keys.shuffle, epoch), num_rows)


def begin_epoch(state: TrainState, steps_per_epoch: int) -> TrainState:
    """The state with sums that begin anew where an epoch does."""
    is_new_epoch = state.step % steps_per_epoch == 0
    sums = jax.tree.map(lambda total: jnp.where(is_new_epoch, 0, total), state.epoch_sums)
    return state._replace(epoch_sums=sums)


def repeat_step(
    train_step: TrainStep,
    batch_at: Callable[[Array], Batch],
    keys: RunKeys,
    state: TrainState,
    num_steps: ArrayLike,
) -> TrainState:
    """Within a compiled program: the state after some steps, each with the batch of its number."""
    packed = jax.lax.fori_loop(
        0,
        num_steps,
        lambda _, state: train_step.take(state, batch_at(state.step), keys.dropout),
        train_step.pack(state),
    )
    return train_step.unpack(packed)
