"""A run compiled for devices that need not be there, and what its programs need of each of them."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from aadml_jax.data import RetrievalDataset, identity_standardization
from aadml_jax.training import hlo_text
from aadml_jax.training.accelerators import Accelerator, Topology
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.evaluation import lower_evaluate
from aadml_jax.training.hlo_text import Cost
from aadml_jax.training.parallel import Placement
from aadml_jax.training.settings import resolved
from aadml_jax.training.state import TrainState, build_model, init_state, run_keys
from aadml_jax.training.step import Batch, build_train_step, compile_run_steps, steps_in_epoch

# What a GPU takes at least between the beginnings of two kernels that one stream runs in turn; seen
# on several generations, and no figure of the maker.
_SECONDS_PER_LAUNCH = 2e-6
# What comes before the sum of a ring: every part goes round once to be added and once to be known.
_TURNS_OF_RING = {"all-reduce": 2}

_CACHE = "jax_enable_compilation_cache"


class RowShapes(NamedTuple):
    """How many rows there are, and of which lengths.

    Attributes:
      num_train: training rows.
      num_test: test rows.
      audio_dim: features of an audio row.
      visual_dim: features of a visual row.
      num_classes: C.
      is_multi_label: whether labels are bool [N, C].
    """

    num_train: int
    num_test: int
    audio_dim: int
    visual_dim: int
    num_classes: int
    is_multi_label: bool

    @classmethod
    def of(cls, dataset: RetrievalDataset) -> "RowShapes":
        """Those of a data set."""
        return cls(
            len(dataset.train),
            len(dataset.test),
            dataset.audio_dim,
            dataset.visual_dim,
            dataset.num_classes,
            dataset.is_multi_label,
        )

    def batch(self, num_rows: int) -> Batch:
        """Shapes of so many rows."""
        labels = (num_rows, self.num_classes) if self.is_multi_label else (num_rows,)
        return Batch(
            audio=_shape((num_rows, self.audio_dim), jnp.float32),
            visual=_shape((num_rows, self.visual_dim), jnp.float32),
            labels=_shape(labels, bool if self.is_multi_label else jnp.int32),
        )


class Seconds(NamedTuple):
    """Lower bounds on the time of a program by what limits it; the largest is the estimate.

    Attributes:
      arithmetic: of its matrix products at the accelerator's peak.
      memory: of its bytes at the peak of the main memory.
      network: of its collectives at the peak between chips.
      launches: of a GPU, to begin its kernels.
      compiler: of a TPU, of the cycles that its compiler estimates.
    """

    arithmetic: float
    memory: float
    network: float
    launches: float
    compiler: float

    @property
    def estimate(self) -> float:
        """The largest of them."""
        return max(self)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, on one device.

    Attributes:
      compile_seconds: of lowering and compiling it here.
      needed_bytes: of main memory, arguments and results included.
      scratch_bytes: of what it holds besides them.
      refusal: why the compiler refused it, for want of memory; None if it did not.
      cost: of one step, or of an evaluation.
      seconds: of the same.
    """

    compile_seconds: float
    needed_bytes: int
    scratch_bytes: int
    refusal: str | None
    cost: Cost
    seconds: Seconds


@dataclasses.dataclass(frozen=True)
class CompiledRun:
    """What a run needs of each device.

    Attributes:
      parameter_bytes: of the model's parameters.
      state_bytes: of the whole state, parameters included.
      train_bytes: of the device's shard of the training rows.
      test_bytes: of its shard of the test rows.
      needed_bytes: of main memory, where it is most.
      memory_bytes: of main memory that there are.
      training: the steps; its cost is of one of them.
      evaluation: the report on the test rows.
      steps_per_epoch: of every epoch.
      num_evaluations: of the whole run.
      run_seconds: of all steps and evaluations, by the estimates of both.
    """

    parameter_bytes: int
    state_bytes: int
    train_bytes: int
    test_bytes: int
    needed_bytes: int
    memory_bytes: int
    training: Program
    evaluation: Program
    steps_per_epoch: int
    num_evaluations: int
    run_seconds: float

    @property
    def fits(self) -> bool:
        """Whether each device has the memory."""
        refused = self.training.refusal or self.evaluation.refusal
        return refused is None and self.needed_bytes <= self.memory_bytes


def compile_run(config: TrainConfig, shapes: RowShapes, topology: Topology) -> CompiledRun:
    """Compiles the programs of `run_training`, without an array on any device.

    Args:
      config: resolved configuration, of a run whose rows are on the devices.
      shapes: of its rows.
      topology: from `find_topology`.

    Raises:
      UserError: if the devices do not divide the batch size.
    """
    state = _state_shapes(config, shapes)
    training = compile_training(config, shapes, topology)
    evaluation = compile_evaluation(config, shapes, topology)
    count = len(topology.devices)
    state_bytes, parameter_bytes = _num_bytes(state), _num_bytes(state.params)
    train_bytes = -(-_num_bytes(shapes.batch(shapes.num_train)) // count)
    test_bytes = -(-_num_bytes(shapes.batch(shapes.num_test)) // count)
    # While one program runs, the rows of the other are there too, and the optimizer's state.
    resting = train_bytes + state_bytes - parameter_bytes
    epochs = resolved(config.launch.epochs)
    steps_per_epoch = steps_in_epoch(shapes.num_train, resolved(config.recipe.batch_size))
    num_evaluations = -(-epochs // config.launch.eval_every)
    return CompiledRun(
        parameter_bytes=parameter_bytes,
        state_bytes=state_bytes,
        train_bytes=train_bytes,
        test_bytes=test_bytes,
        needed_bytes=max(
            training.needed_bytes + test_bytes,
            evaluation.needed_bytes + resting,
        ),
        memory_bytes=topology.accelerator.memory_bytes,
        training=training,
        evaluation=evaluation,
        steps_per_epoch=steps_per_epoch,
        num_evaluations=num_evaluations,
        run_seconds=epochs * steps_per_epoch * training.seconds.estimate
        + num_evaluations * evaluation.seconds.estimate,
    )


def compile_training(config: TrainConfig, shapes: RowShapes, topology: Topology) -> Program:
    """Compiles the steps alone, as `compile_run`; the cost is of one of them."""
    recipe = config.recipe
    placement = Placement(topology.devices, config.launch.parallel)
    batch_size = resolved(recipe.batch_size)
    placement.check_batch_size(batch_size)
    with _as_in_a_run():
        run_steps = compile_run_steps(
            build_train_step(recipe, shapes.num_classes, placement),
            shapes.num_train,
            batch_size=batch_size,
            placement=placement,
        )
        return _compiled(
            lambda: run_steps.lower(
                placement.shard_shapes(shapes.batch(shapes.num_train), shapes.num_train),
                jax.eval_shape(lambda: run_keys(recipe.seed)),
                _state_shapes(config, shapes),
                _shape((), jnp.int32),
            ),
            topology.accelerator,
            recipe.precision,
            of_main_loop=True,
        )


def compile_evaluation(config: TrainConfig, shapes: RowShapes, topology: Topology) -> Program:
    """Compiles the report on the test rows alone, as `compile_run`."""
    test = shapes.batch(shapes.num_test)
    with _as_in_a_run():
        return _compiled(
            lambda: lower_evaluate(
                build_model(config.recipe, shapes.num_classes),
                _state_shapes(config, shapes).params,
                (test.audio, test.visual, test.labels),
                Placement(topology.devices, config.launch.parallel),
                similarity=config.recipe.similarity,
            ),
            topology.accelerator,
            config.recipe.precision,
        )


def compile_function(function: Any, shapes: Any, topology: Topology) -> Program:
    """Compiles a function of arrays for the first device of a topology.

    Args:
      function: of arrays, to arrays.
      shapes: its arguments as `jax.ShapeDtypeStruct`.
      topology: from `find_topology`.
    """
    here = jax.sharding.SingleDeviceSharding(topology.devices[0])
    jitted = jax.jit(function, in_shardings=here, out_shardings=here)
    with _as_in_a_run():
        return _compiled(lambda: jitted.lower(*shapes), topology.accelerator, "float32")


def _state_shapes(config: TrainConfig, shapes: RowShapes) -> TrainState:
    standardization = identity_standardization(shapes.audio_dim, shapes.visual_dim)
    return jax.eval_shape(
        lambda: init_state(
            config.recipe, num_classes=shapes.num_classes, standardization=standardization
        )
    )


@contextlib.contextmanager
def _as_in_a_run() -> Iterator[None]:
    """Types are promoted as in `run_training`. No program is kept: none could be loaded here."""
    keeps = getattr(jax.config, _CACHE)
    jax.config.update(_CACHE, False)
    compilation_cache.reset_cache()  # JAX looks at the setting once
    try:
        with jax.numpy_dtype_promotion("standard"):
            yield
    finally:
        jax.config.update(_CACHE, keeps)
        compilation_cache.reset_cache()


def _compiled(
    lower: Any, accelerator: Accelerator, precision: str, *, of_main_loop: bool = False
) -> Program:
    """The program that `lower()` gives, compiled and read."""
    began = time.monotonic()
    try:
        compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = " ".join(str(error).split())
        seconds = time.monotonic() - began
        return Program(seconds, 0, 0, refusal, Cost(), seconds_of(Cost(), accelerator, precision))
    seconds = time.monotonic() - began
    module = hlo_text.parse(compiled.as_text())
    loop = hlo_text.main_loop(module) if of_main_loop else None
    cost = hlo_text.cost(module, None if loop is None else loop.called)
    memory = compiled.memory_analysis()
    return Program(
        compile_seconds=seconds,
        needed_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        scratch_bytes=memory.temp_size_in_bytes,
        refusal=None,
        cost=cost,
        seconds=seconds_of(cost, accelerator, precision),
    )


def seconds_of(cost: Cost, accelerator: Accelerator, precision: str) -> Seconds:
    """Lower bounds on the time of what a program does on one device.

    Args:
      cost: of the program.
      accelerator: on which it runs.
      precision: of the towers, see `PRECISIONS`.
    """
    is_tpu = accelerator.platform == "tpu"
    peak = accelerator.bfloat16_flop if precision == "bfloat16" else accelerator.float32_flop
    sent = sum(
        _TURNS_OF_RING.get(kind, 1) * traffic.bytes for kind, traffic in cost.collectives.items()
    )
    return Seconds(
        arithmetic=cost.matrix_flop / peak,
        memory=cost.bytes / accelerator.memory_bandwidth,
        network=sent / accelerator.network_bandwidth,
        launches=0 if is_tpu else cost.launches * _SECONDS_PER_LAUNCH,
        compiler=cost.estimated_cycles / accelerator.clock_rate if is_tpu else 0,
    )


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _num_bytes(tree: Any) -> int:
    return sum(
        math.prod(np.shape(leaf)) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
    )
