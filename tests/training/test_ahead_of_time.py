"""What a run needs, compiled ahead of time: by arithmetic on CPUs, by their compilers on others."""

import dataclasses

import jax
import numpy as np
import pytest
from compilers import topology_or_skip

from aadml_jax.data import SyntheticSpec, make_synthetic
from aadml_jax.errors import UserError
from aadml_jax.training.accelerators import ACCELERATORS, Topology
from aadml_jax.training.ahead_of_time import RowShapes, compile_run, seconds_of
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.hlo_text import Cost, Traffic
from aadml_jax.training.local_data import load_local_data
from aadml_jax.training.parallel import Placement
from aadml_jax.training.setup import resolve

SPEC = SyntheticSpec(num_classes=3, audio_dim=8, visual_dim=12, train_size=50, test_size=20)
SHAPES = RowShapes(50, 20, 8, 12, 3, False)


def resolved_config(shapes=SHAPES, **given):
    given = {"hidden_sizes": (16,), "batch_size": 16, "epochs": 7, "eval_every": 3} | given
    return resolve(TrainConfig.of(**given), shapes.num_train)


def cpus(count):
    return Topology("cpu", tuple(jax.devices()[:count]), ACCELERATORS["h100"])


def test_shapes_are_those_of_the_data():
    assert RowShapes.of(make_synthetic(SPEC)) == SHAPES


@pytest.mark.parametrize(("mode", "count"), [("jit", 1), ("jit", 4), ("pmap", 1), ("pmap", 4)])
def test_shapes_of_shards_are_those_of_the_shards(mode, count):
    placement = Placement(tuple(jax.devices()[:count]), mode)
    data = load_local_data(make_synthetic(SPEC), placement)
    shards = placement.shard(data.train, SPEC.train_size)
    shapes = placement.shard_shapes(SHAPES.batch(SPEC.train_size), SPEC.train_size)
    for array, shape in zip(shards, shapes, strict=True):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)


def test_what_a_run_keeps_follows_from_its_shapes():
    compiled = compile_run(resolved_config(), SHAPES, cpus(1))
    # weights and biases of 8 → 16 → 3 and of 12 → 16 → 3
    parameters = (8 * 16 + 16) + (16 * 3 + 3) + (12 * 16 + 16) + (16 * 3 + 3)
    assert compiled.parameter_bytes == 4 * parameters
    # with two moments of Adam; its count and the step; sums of the objective; mean and scale
    rest = compiled.state_bytes - 4 * 3 * parameters
    sums = (rest - 2 * 4 - 2 * 4 * (8 + 12)) // 4
    assert 1 <= sums <= 8
    assert compiled.train_bytes == 50 * 4 * (8 + 12 + 1)
    assert compiled.test_bytes == 20 * 4 * (8 + 12 + 1)
    assert compiled.steps_per_epoch == 50 // 16
    assert compiled.num_evaluations == 3  # after epochs 3, 6 and 7
    step, evaluation = compiled.training.seconds, compiled.evaluation.seconds
    assert compiled.run_seconds == pytest.approx(7 * 3 * max(step) + 3 * max(evaluation))
    kept = compiled.state_bytes + compiled.train_bytes + compiled.test_bytes
    assert compiled.needed_bytes >= kept
    assert compiled.fits


def test_the_largest_program_decides_what_is_needed():
    # of one test row, evaluation needs less than a step, of a thousand more
    for num_test, is_step in ((1, True), (1000, False)):
        shapes = SHAPES._replace(num_test=num_test)
        compiled = compile_run(resolved_config(batch_size=50), shapes, cpus(1))
        kept = compiled.state_bytes + compiled.train_bytes + compiled.test_bytes
        program = compiled.training if is_step else compiled.evaluation
        other = compiled.evaluation if is_step else compiled.training
        assert program.scratch_bytes > other.scratch_bytes
        assert compiled.needed_bytes >= kept + program.scratch_bytes


def test_the_shuffling_of_an_epoch_is_no_part_of_a_step():
    config = resolved_config(loss="contrastive", anchor_aware=False)
    compiled = compile_run(config, SHAPES, cpus(1))
    assert compiled.training.cost.sorts == 0  # by a sort, XLA permutes the rows


def test_the_products_of_a_step_are_those_of_three_passes_through_the_towers():
    compiled = compile_run(resolved_config(hidden_sizes=(512,)), SHAPES, cpus(1))
    first, second = (8 + 12) * 512, 2 * 512 * 3
    # forward, gradient of the weights, and of the second layer's inputs; beside them the few
    # products of [16, 3] in the objective
    towers = 2 * 16 * (2 * first + 3 * second)
    assert towers < compiled.training.cost.matrix_flop < 1.1 * towers


def test_several_devices_share_the_rows_and_communicate():
    one, four = (compile_run(resolved_config(), SHAPES, cpus(count)) for count in (1, 4))
    assert one.training.cost.collectives == {}
    assert "all-reduce" in four.training.cost.collectives
    assert four.train_bytes == -(-one.train_bytes // 4)
    assert four.state_bytes == one.state_bytes


def test_pmap_is_compiled_too():
    compiled = compile_run(resolved_config(parallel="pmap"), SHAPES, cpus(2))
    assert "all-reduce" in compiled.training.cost.collectives


def test_a_run_that_needs_more_than_there_is_does_not_fit():
    enough = compile_run(resolved_config(), SHAPES, cpus(1))
    assert enough.memory_bytes == ACCELERATORS["h100"].memory_bytes
    for missing, fits in ((0, True), (1, False)):
        memory_bytes = enough.needed_bytes - missing
        assert dataclasses.replace(enough, memory_bytes=memory_bytes).fits == fits


def test_a_compiler_that_refuses_for_want_of_memory_is_quoted(monkeypatch):
    def refuse(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 20.1G of\n 15.7G hbm")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    compiled = compile_run(resolved_config(), SHAPES, cpus(1))
    assert compiled.training.refusal == "RESOURCE_EXHAUSTED: 20.1G of 15.7G hbm"
    assert not compiled.fits


def test_devices_must_divide_the_batch_size():
    with pytest.raises(UserError, match="--batch_size=15 must be a multiple of the 4 devices"):
        compile_run(resolved_config(batch_size=15), SHAPES, cpus(4))


def test_several_classes_a_clip_are_compiled_with_a_matrix_of_labels():
    shapes = SHAPES._replace(is_multi_label=True)
    compiled = compile_run(resolved_config(), shapes, cpus(1))
    assert compiled.train_bytes == 50 * (4 * (8 + 12) + 3)


def test_seconds_are_what_peaks_allow():
    cost = Cost(
        launches=10,
        collectives={"all-reduce": Traffic(1, 450), "all-gather": Traffic(2, 900)},
        matrix_flop=989,
        bytes=3352,
        estimated_cycles=3,
    )
    gpu = seconds_of(cost, ACCELERATORS["h100"], "bfloat16")
    assert gpu.arithmetic == pytest.approx(1e-12)
    assert seconds_of(cost, ACCELERATORS["h100"], "float32").arithmetic > 1.9e-12
    assert gpu.memory == pytest.approx(1e-9)
    # what is reduced over all goes round twice
    assert gpu.network == pytest.approx((2 * 450 + 900) / 450e9)
    assert gpu.launches == pytest.approx(10 * 2e-6)
    assert gpu.compiler == 0
    assert gpu.estimate == gpu.launches
    tpu = seconds_of(cost, ACCELERATORS["v5e"], "bfloat16")
    assert tpu.compiler == pytest.approx(3 / 1.5e9)
    assert tpu.launches == 0


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v5e:1x1", "h100:1"])
def test_a_step_compiles_for_one_accelerator(name):
    config = resolved_config(loss="contrastive", anchor_aware=False)
    compiled = compile_run(config, SHAPES, topology_or_skip(name))
    step = compiled.training.cost
    assert compiled.fits
    assert step.launches > 10
    assert step.collectives == {}
    assert (step.sorts, step.inner_loops_unknown_trips) == (0, 0)
    assert (step.estimated_cycles > 0) == name.startswith("v5e")
    assert compiled.evaluation.cost.launches > 10
    assert compiled.evaluation.cost.sorts >= 2  # one a direction


@pytest.mark.aot
@pytest.mark.parametrize(
    ("name", "mode"), [("v5e:2x2", "jit"), ("h100:8", "jit"), ("h100:8", "pmap")]
)
def test_a_step_compiles_for_several_accelerators(name, mode):
    config = resolved_config(loss="contrastive", parallel=mode)
    compiled = compile_run(config, SHAPES, topology_or_skip(name))
    collectives = compiled.training.cost.collectives
    gradient_bytes = compiled.parameter_bytes
    reduced = sum(
        collectives[kind].bytes for kind in ("all-reduce", "reduce-scatter") if kind in collectives
    )
    assert reduced >= gradient_bytes
    assert np.isfinite(compiled.run_seconds)
