"""What changes while training, as one pytree."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from aadml_jax._arrays import Array
from aadml_jax._random import fixed_generator, seed_key
from aadml_jax.data import FeatureStandardization, identity_standardization
from aadml_jax.models import PRECISIONS, TwoTowers, fixed_draws
from aadml_jax.training.config import RecipeConfig


class RunKeys(NamedTuple):
    """Independent random keys, all derived from the seed.

    Nothing random is carried along in the state: a step draws from (seed, step), an epoch's order
    from (seed, epoch). A resumed run therefore draws what the uninterrupted one would have.
    """

    init: Array
    shuffle: Array
    dropout: Array


class TrainState(NamedTuple):
    """The state of a run after `step` steps.

    Attributes:
      step: int32 scalar.
      params: of the towers, "audio" and "visual", and the "class_proxies" if they are learned.
      opt_state: of the optimizer.
      epoch_sums: sum of each part of the objective over the steps of the current epoch, so that a
        run that stops within an epoch reports the same mean as one that does not.
      standardization: training statistics that all features are standardised with, never changed;
        mean 0 and scale 1 without standardisation. With it a checkpoint is all that evaluation
        needs.
    """

    step: Array
    params: Any
    opt_state: Any
    epoch_sums: dict[str, Array]
    standardization: FeatureStandardization


class TrainedTowers(NamedTuple):
    """What the towers' outputs depend on: the part of a `TrainState` that is kept after training.

    Attributes:
      params: see `TrainState`.
      standardization: see `TrainState`.
    """

    params: Any
    standardization: FeatureStandardization


def run_keys(seed: int) -> RunKeys:
    """The keys of a run."""
    with fixed_generator():
        return RunKeys(*jax.random.split(seed_key(seed), 3))


def build_model(recipe: RecipeConfig, num_classes: int) -> TwoTowers:
    """The towers that a configuration asks for."""
    return TwoTowers(
        num_classes=num_classes,
        hidden_sizes=recipe.hidden_sizes,
        dropout_rate=recipe.dropout,
        **PRECISIONS[recipe.precision],
    )


def build_optimizer(recipe: RecipeConfig) -> optax.GradientTransformation:
    """The optimizer that a configuration asks for."""
    return adam(recipe.learning_rate, recipe.weight_decay)


def adam(learning_rate: float | Array, weight_decay: float | Array) -> optax.GradientTransformation:
    """Adam; with decoupled decay (AdamW) of the towers' weight matrices unless `weight_decay` is 0.

    Traced values are always those of AdamW, of which a decay of 0 is Adam to the last bit.
    """
    if isinstance(weight_decay, float) and weight_decay == 0:
        return optax.adam(learning_rate)

    def is_decayed(params: Any) -> Any:
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=is_decayed)


@jax.jit
def finite_parts(state: TrainState) -> dict[str, Array]:
    """Whether all numbers of a state are finite: a bool scalar for each part that steps change."""

    def is_finite(tree: Any) -> Array:
        # Of whole numbers, isfinite is true.
        finite = (jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))
        return functools.reduce(jnp.logical_and, finite, jnp.bool_(True))

    return {
        "sums of the objective": is_finite(state.epoch_sums),
        "parameters": is_finite(state.params),
        "state of the optimizer": is_finite(state.opt_state),
    }


@functools.partial(jax.jit, static_argnums=0)
def _init_params(model: TwoTowers, key: Array, audio: Array, visual: Array) -> Any:
    with fixed_draws():
        return model.init(key, audio, visual)["params"]


def init_state(
    recipe: RecipeConfig,
    *,
    num_classes: int,
    standardization: FeatureStandardization,
) -> TrainState:
    """The state before the first step.

    Args:
      recipe: of a resolved configuration.
      num_classes: C.
      standardization: of the features; its lengths are the numbers of features.
    """
    model = build_model(recipe, num_classes)
    audio, visual = (
        jnp.zeros((1, len(mean)))
        for mean in (standardization.audio_mean, standardization.visual_mean)
    )
    params = _init_params(model, run_keys(recipe.seed).init, audio, visual)
    if recipe.class_proxies == "learned":
        params = {**params, "class_proxies": jnp.eye(num_classes)}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=build_optimizer(recipe).init(params),
        epoch_sums=_zero_parts(recipe, num_classes),
        standardization=standardization,
    )


def towers_template(
    recipe: RecipeConfig, *, num_classes: int, audio_dim: int, visual_dim: int
) -> TrainedTowers:
    """Shapes and dtypes of what a run's towers depend on; nothing is computed.

    Args:
      recipe: of a resolved configuration.
      num_classes: C.
      audio_dim: number of audio features, Da.
      visual_dim: number of visual features, Dv.
    """
    state = jax.eval_shape(
        lambda: init_state(
            recipe,
            num_classes=num_classes,
            standardization=identity_standardization(audio_dim, visual_dim),
        )
    )
    return TrainedTowers(state.params, state.standardization)


def _zero_parts(recipe: RecipeConfig, num_classes: int) -> dict[str, Array]:
    """A zero for each part of the objective."""
    outputs = jax.ShapeDtypeStruct((2, num_classes), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)
    _, parts = jax.eval_shape(recipe.objective(), outputs, outputs, labels)
    return {name: jnp.zeros(part.shape, part.dtype) for name, part in parts.items()}
