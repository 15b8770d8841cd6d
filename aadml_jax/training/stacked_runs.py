"""Runs stacked along an axis of one compiled program.

Runs that differ only in numbers (`VARYING`) are trained in step by `vmap`, each with the keys,
batches and dropout masks that it would have alone: a run of a program has the metrics of the same
run by itself, up to rounding. The runs are divided among several devices.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aadml_jax._arrays import Array
from aadml_jax._random import fixed_generator, seed_key
from aadml_jax.cross_modal import cross_modal_report
from aadml_jax.objective import Objective
from aadml_jax.row_blocks import rows_at_once
from aadml_jax.training.config import RecipeConfig
from aadml_jax.training.epochs import is_due, mean_losses
from aadml_jax.training.evaluation import outputs_in_blocks, queries_at_once
from aadml_jax.training.local_data import LocalData
from aadml_jax.training.parallel import Device, Placement
from aadml_jax.training.settings import resolved
from aadml_jax.training.state import (
    TrainState,
    adam,
    build_model,
    finite_parts,
    init_state,
    run_keys,
)
from aadml_jax.training.step import Batch, begin_epoch, epoch_order, make_train_step, repeat_step

_IN_OBJECTIVE = (
    "margin",
    "temperature",
    "loss_parameters",
    "num_neighbors",
    "attention_temperature",
    "label_weight",
    "metric_weight",
)
VARYING = ("seed", *_IN_OBJECTIVE, "learning_rate", "weight_decay")
"""Fields of `RecipeConfig` in which the runs of one program may differ."""

_AXIS = "runs"


def _by_part(**of_part: Any) -> Any:
    """What all arrays of a part of the state have in common, in the part's place."""
    return TrainState(**of_part)


_VMAP_AXES = _by_part(step=None, params=0, opt_state=0, epoch_sums=0, standardization=None)
_SPECS = _by_part(
    step=P(), params=P(_AXIS), opt_state=P(_AXIS), epoch_sums=P(_AXIS), standardization=P()
)


class Probe(NamedTuple):
    """What is measured of each run, from time to time.

    Attributes:
      rows: to retrieve from; standardised.
      similarity: by which retrieval ranks.
      ks: cut-offs of precision@k and recall@k.
      with_loss: whether to measure the objective too, without dropout, as the mean over batches of
        the rows in a fixed random order; what does not fill a batch is left out.
      every: epochs between measurements, besides the last epoch; None measures only then.
    """

    rows: Batch
    similarity: str = "cosine"
    ks: tuple[int, ...] = ()
    with_loss: bool = False
    every: int | None = None

    def is_due(self, epoch: int, last: int) -> bool:
        """Whether to measure after this epoch of so many."""
        return is_due(epoch, self.every, last)


def program_key(recipe: RecipeConfig) -> str:
    """What the runs of a program have in common."""
    fields = dataclasses.asdict(recipe)
    for name in VARYING:
        value = fields[name]  # a loss has the parameter or not
        fields[name] = sorted(value) if isinstance(value, dict) else value is None
    return json.dumps(fields, sort_keys=True)


@jax.jit
def _finite_parts_by_run(state: TrainState) -> dict[str, Array]:
    return jax.vmap(finite_parts, in_axes=(_VMAP_AXES,))(state)


class StackedRuns:
    """The compiled program of some runs, and what it works on.

    Attributes:
      steps_per_epoch: of each run.
    """

    def __init__(
        self, recipes: Sequence[RecipeConfig], data: LocalData, devices: tuple[Device, ...]
    ):
        """Places the data on every device.

        Args:
          recipes: resolved configurations of one kind, see `program_key`.
          data: from `load_local_data`, all rows in this process.
          devices: over which the runs are divided.
        """
        self.recipe, self.data = recipes[0], data
        self.model = build_model(self.recipe, data.num_classes)
        self.batch_size = resolved(self.recipe.batch_size)
        self.steps_per_epoch = data.num_train // self.batch_size
        self.num_runs = len(recipes)
        # Every device trains equally many; the last run stands in where one is missing: runs 0, 1,
        # 2 on two devices are 0, 1 | 2, 2, of which states and reports on the host drop the last.
        missing = -len(recipes) % len(devices)
        self.recipes = [*recipes, *[recipes[-1]] * missing]
        self.device = Placement(devices[:1])  # as each run sees them
        self.mesh = jax.sharding.Mesh(np.array(devices), (_AXIS,))
        self.rows = jax.device_put(data.train, NamedSharding(self.mesh, P()))
        self.keys = jax.tree.map(
            lambda *keys: jnp.stack(keys), *(run_keys(recipe.seed) for recipe in self.recipes)
        )
        self.values = _values_that_vary(self.recipes)
        run_all = jax.vmap(
            self._some_steps,
            in_axes=(None, 0, 0, _VMAP_AXES, None),
            out_axes=_VMAP_AXES,
        )
        self._compiled = jax.jit(
            jax.shard_map(
                run_all,
                mesh=self.mesh,
                in_specs=(P(), P(_AXIS), P(_AXIS), _SPECS, P()),
                out_specs=_SPECS,
                check_vma=False,
            ),
            donate_argnums=3,
        )

    def _objective(self, values: dict[str, Any]) -> Objective:
        """A run's objective, from its own values of those that vary."""
        changes = {name: values[name] for name in _IN_OBJECTIVE if name in values}
        if "loss_parameters" in changes:
            changes["loss_parameters"] = {
                **(self.recipe.loss_parameters or {}),
                **changes["loss_parameters"],
            }
        most = None
        if "num_neighbors" in changes:
            most = max(recipe.num_neighbors for recipe in self.recipes)
        return dataclasses.replace(self.recipe, **changes).objective(
            max_neighbors=most,
            stacked=self.device.is_on_gpus,
            block_size=rows_at_once(self.batch_size * len(self.recipes) // self.mesh.size),
        )

    @functools.cached_property
    def _losses(self) -> Callable[..., Array]:
        """The objective of each run on rows that are embedded already."""
        size = self.batch_size

        def of_run(
            values: dict[str, Any], outputs: tuple[Array, Array], params: Any, labels: Array
        ) -> Array:
            num_rows = len(labels)
            batch = min(size, num_rows)
            with fixed_generator():
                order = jax.random.permutation(seed_key(0), num_rows)
            order = order[: num_rows // batch * batch].reshape(-1, batch)
            objective = self._objective(values)
            if "class_proxies" in params:
                objective = functools.partial(objective, class_proxies=params["class_proxies"])
            return jnp.mean(
                jax.lax.map(
                    lambda rows: objective(*(array[rows] for array in (*outputs, labels)))[0], order
                )
            )

        return jax.jit(
            jax.shard_map(
                jax.vmap(of_run, in_axes=(0, 0, 0, None)),
                mesh=self.mesh,
                in_specs=(P(_AXIS), P(_AXIS), P(_AXIS), P()),
                out_specs=P(_AXIS),
                check_vma=False,
            )
        )

    def _some_steps(
        self,
        rows: Batch,
        keys: Any,
        values: dict[str, Any],
        state: TrainState,
        num_steps: Array,
    ) -> TrainState:
        optimizer = adam(
            values.get("learning_rate", self.recipe.learning_rate),
            values.get("weight_decay", self.recipe.weight_decay),
        )
        train_step = make_train_step(self.model, optimizer, self._objective(values), self.device)
        order = epoch_order(keys, state.step // self.steps_per_epoch, self.data.num_train)
        size = self.batch_size

        def batch_at(step: Array) -> Batch:
            first = (step % self.steps_per_epoch) * size
            chosen = jax.lax.dynamic_slice_in_dim(order, first, size)
            return jax.tree.map(lambda array: array[chosen], rows)

        state = begin_epoch(state, self.steps_per_epoch)
        return repeat_step(train_step, batch_at, keys, state, num_steps)

    def first_state(self) -> TrainState:
        """The runs' states before the first step, as host arrays."""
        states = [
            init_state(
                # The structure of the optimizer's state is that of the program.
                dataclasses.replace(recipe, weight_decay=self._decay_of_state()),
                num_classes=self.data.num_classes,
                standardization=self.data.standardization,
            )
            for recipe in self.recipes[: self.num_runs]
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(states))
        return stacked._replace(
            step=jax.device_get(states[0].step), standardization=self.data.standardization
        )

    def _decay_of_state(self) -> float:
        return 1.0 if "weight_decay" in self.values else self.recipe.weight_decay

    def placed(self, state: TrainState) -> TrainState:
        """A state of host arrays, its runs on the devices that train them."""
        numbers = np.minimum(np.arange(len(self.recipes)), self.num_runs - 1)

        def place(leaf: np.ndarray, spec: P) -> Array:
            filled = leaf if spec == P() else np.asarray(leaf)[numbers]
            return jax.device_put(filled, NamedSharding(self.mesh, spec))

        return self._with_specs(place, state)

    def on_host(self, state: TrainState) -> TrainState:
        """A placed state as host arrays, whatever the number of devices."""
        return self._with_specs(
            lambda leaf, spec: leaf if spec == P() else leaf[: self.num_runs],
            jax.device_get(state),
        )

    def _with_specs(self, function: Callable[[Any, P], Any], state: TrainState) -> TrainState:
        return TrainState(
            *(
                jax.tree.map(lambda leaf, spec=spec: function(leaf, spec), part)
                for part, spec in zip(state, _SPECS, strict=True)
            )
        )

    def run_steps(self, state: TrainState, num_steps: int) -> TrainState:
        """The runs' states some steps later, within an epoch; the memory of the given is reused."""
        return jax.block_until_ready(
            self._compiled(self.rows, self.keys, self.values, state, np.int32(num_steps))
        )

    def finite_parts(self, state: TrainState) -> list[dict[str, bool]]:
        """For each run, whether each part of its state is finite, see `state.finite_parts`."""
        return self._by_run(jax.device_get(_finite_parts_by_run(state)))

    def mean_losses(self, state: TrainState) -> list[dict[str, float]]:
        """For each run, the mean of each part of the objective over the epoch's steps."""
        sums = self._by_run(jax.device_get(state.epoch_sums))
        return [mean_losses(of_run, self.steps_per_epoch) for of_run in sums]

    def _by_run(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {name: stacked[number] for name, stacked in values.items()}
            for number in range(self.num_runs)
        ]

    def measuring(self, probes: Mapping[str, Probe]) -> dict[str, Callable[[Any], list[Any]]]:
        """For each probe, a function of the runs' parameters that gives their reports."""
        embed = jax.jit(
            jax.shard_map(
                jax.vmap(
                    functools.partial(outputs_in_blocks, self.model),
                    in_axes=(0, None, None),
                ),
                mesh=self.mesh,
                in_specs=(P(_AXIS), P(), P()),
                out_specs=P(_AXIS),
                check_vma=False,
            )
        )

        def reports(probe: Probe, audio: Array, visual: Array, params: Any) -> list[Any]:
            embedded = embed(params, audio, visual)
            outputs = jax.device_get(embedded)
            measured = [
                _as_json(
                    cross_modal_report(
                        of_audio,
                        of_visual,
                        probe.rows.labels,
                        similarity=probe.similarity,
                        ks=probe.ks,
                        block_size=queries_at_once(len(of_audio)),
                    )
                )
                for of_audio, of_visual in list(zip(*outputs, strict=True))[: self.num_runs]
            ]
            if probe.with_loss:
                losses = self._losses(self.values, embedded, params, probe.rows.labels)
                for report, loss in zip(measured, jax.device_get(losses), strict=False):
                    report["loss"] = float(loss)
            return measured

        whole = NamedSharding(self.mesh, P())
        return {
            name: functools.partial(
                reports, probe, *jax.device_put((probe.rows.audio, probe.rows.visual), whole)
            )
            for name, probe in probes.items()
        }


def _values_that_vary(recipes: Sequence[RecipeConfig]) -> dict[str, Any]:
    """Of each field of `VARYING` but the seed in which the runs differ, their values, stacked."""

    def stacked(columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        return {
            name: jnp.asarray(column) for name, column in columns.items() if len(set(column)) > 1
        }

    # Of margins 0.1, 0.1, 0.2 and learning rates 1e-3, 1e-3, 1e-3 the margin varies:
    # {"margin": [0.1, 0.1, 0.2]}. The rate stays a constant of the program.
    own = stacked(
        {
            name: [getattr(recipe, name) for recipe in recipes]
            for name in VARYING[1:]
            if name != "loss_parameters"
        }
    )
    parameters = stacked(
        {
            name: [(recipe.loss_parameters or {})[name] for recipe in recipes]
            for name in recipes[0].loss_parameters or ()
        }
    )
    return own | ({"loss_parameters": parameters} if parameters else {})


def _as_json(report: Any) -> Any:
    if isinstance(report, Mapping):
        return {str(key): _as_json(value) for key, value in report.items()}
    return float(report)
