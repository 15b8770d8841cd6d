"""A run's state with the like arrays of both towers in one, so that one operation serves both.

A step at the usual size does little arithmetic, and on a GPU the number of its operations is what
takes the time. Checkpoints and evaluation have the towers apart; the loop over steps pairs the
arrays before its first step and parts them after its last one:

    {"audio": {"hidden_0": [128, 1024], "hidden_1": [1024, 1024]},
     "visual": {"hidden_0": [1024, 1024], "hidden_1": [1024, 1024]}}
    ⇄ {"audio": {"hidden_0": [128, 1024]}, "visual": {"hidden_0": [1024, 1024]},
       "both": {"hidden_1": [2, 1024, 1024]}}
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from aadml_jax._arrays import Array
from aadml_jax.models import TOWERS
from aadml_jax.training.state import TrainState

BOTH = "both"


def pair_state(state: TrainState) -> TrainState:
    """The state with like layers stacked, audio first, and the sums of an epoch in one vector.

    The vector stands under the tuple of the sums' names.
    """
    names = tuple(sorted(state.epoch_sums))
    sums: Any = {names: _in_order(state.epoch_sums, names)}
    return state._replace(
        params=pair_params(state.params),
        opt_state=_map_params(pair_params, state.opt_state),
        epoch_sums=sums,
    )


def part_state(state: TrainState) -> TrainState:
    """The inverse of `pair_state`."""
    ((names, sums),) = state.epoch_sums.items()
    return state._replace(
        params=_part_params(state.params),
        opt_state=_map_params(_part_params, state.opt_state),
        epoch_sums={name: sums[place] for place, name in enumerate(names)},
    )


def add_parts(sums: dict[Any, Array], parts: dict[str, Array]) -> dict[Any, Array]:
    """The sums of an epoch, in the form of a state or of a paired one, with those of a step."""
    return {
        name: total + (parts[name] if isinstance(name, str) else _in_order(parts, name))
        for name, total in sums.items()
    }


def _in_order(values: dict[str, Array], names: tuple[str, ...]) -> Array:
    return jnp.stack([values[name] for name in names])


def pair_params(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters by tower with the layers of equal shapes stacked under "both"."""
    audio, visual = (params[name] for name in TOWERS)
    alike = [name for name in audio if _shapes(audio[name]) == _shapes(visual[name])]
    return {
        **{name: value for name, value in params.items() if name not in TOWERS},
        "audio": {name: layer for name, layer in audio.items() if name not in alike},
        "visual": {name: layer for name, layer in visual.items() if name not in alike},
        BOTH: {
            name: jax.tree.map(lambda *leaves: jnp.stack(leaves), audio[name], visual[name])
            for name in alike
        },
    }


def _part_params(params: dict[str, Any]) -> dict[str, Any]:
    both = params[BOTH]
    return {
        **{name: value for name, value in params.items() if name != BOTH},
        **{
            tower: {**params[tower], **jax.tree.map(lambda leaf, row=row: leaf[row], both)}
            for row, tower in enumerate(TOWERS)
        },
    }


def _shapes(layer: Any) -> Any:
    return jax.tree.map(jnp.shape, layer)


def _map_params(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree of an optimizer with `function` of each part that has the form of parameters."""

    def has_form(node: Any) -> bool:
        return isinstance(node, dict) and node.keys() >= set(TOWERS)

    return jax.tree.map(
        lambda node: function(node) if has_form(node) else node, tree, is_leaf=has_form
    )
