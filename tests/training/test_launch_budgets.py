"""Budgets of launches, loops and collectives on accelerators, by their own compilers."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest
from compilers import topology_or_skip

from aadml_jax.training.ahead_of_time import RowShapes, compile_function, compile_training
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.named_losses import NAMED_LOSSES
from aadml_jax.training.parallel import Placement
from aadml_jax.training.setup import resolve

pytestmark = pytest.mark.aot

# Of as many layers as the default towers, and narrow, so that they compile in seconds.
SHAPES = RowShapes(256, 64, 8, 16, 10, False)
NARROW = {"hidden_sizes": (32, 32, 32), "batch_size": 64}
# The part of a step that an operation belongs to is the first of these that its source matches.
PARTS = {
    "optimizer": r"while/body/add$|tree_bias_correction",
    "dropout": r"threefry|epoch_order|/ge$|/and$|jvp\(\)/add$",
    "towers": r"TwoTowers|towers|jvp\(\)/(stack|mul|select)|jvp\(jit\(_where\)\)",
    "graph and proxies": r"_highest|rd,rkd|rk,rkd|rkn,nd|_attend",
    "triplets": r"_violations",
    "rows of the batch": r"while/body/(gather|dynamic_slice|select_n)",
    "rest of the objective": r"",
}


def launches_by_part(cost):
    parts = collections.defaultdict(dict)
    for source, count in cost.sources.items():
        part = next(name for name, pattern in PARTS.items() if re.search(pattern, source))
        parts[part][source] = count
    return parts


def check_launches(cost, budget):
    """Fails with the launches of every part that has more than its budget."""
    parts = launches_by_part(cost)
    lines = []
    for part, most in budget.items():
        if (count := sum(parts[part].values())) > most:
            lines.append(f"{part}: {count} launches, at most {most} are expected:")
            lines += [f"  {times} {source}" for source, times in sorted(parts[part].items())]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def test_launches_beyond_a_budget_are_named():
    cost = collections.namedtuple("Cost", "sources")(
        {"jit(f)/while/body/add": 2, "jit(f)/while/body/TwoTowers/dot_general": 1}
    )
    check_launches(cost, {"optimizer": 2, "towers": 1})
    with pytest.raises(pytest.fail.Exception, match=r"optimizer: 2 launches.*\n  2 jit.*body/add"):
        check_launches(cost, {"optimizer": 1, "towers": 1})


def test_a_step_on_a_gpu_has_few_launches_and_waits_for_nothing():
    topology = topology_or_skip("h100:1")
    cost = compile_training(resolve(TrainConfig.of(**NARROW), 256), SHAPES, topology).cost
    budget = dict(zip(PARTS, (16, 2, 28, 5, 2, 4, 33), strict=True))
    assert sum(budget.values()) <= 90
    check_launches(cost, budget)
    assert (cost.sorts, cost.inner_loops) == (0, 0)


def test_a_step_on_tpus_has_few_operations_and_two_loops():
    topology = topology_or_skip("v5e:2x2")
    cost = compile_training(resolve(TrainConfig.of(**NARROW), 256), SHAPES, topology).cost
    check_launches(cost, dict(zip(PARTS, (18, 6, 32, 24, 32, 14, 145), strict=True)))
    assert cost.inner_loops == 2  # over the positives of a row, in each direction


@pytest.mark.parametrize("loss", sorted(NAMED_LOSSES))
@pytest.mark.parametrize("name", ["h100:1", "v5e:1x1"])
def test_every_loss_compiles_and_holds_no_array_of_all_triplets(name, loss):
    topology = topology_or_skip(name)
    placement = Placement(topology.devices)
    objective = TrainConfig.of(loss=loss).recipe.objective(stacked=placement.is_on_gpus)
    rows = 256
    outputs = jax.ShapeDtypeStruct((rows, 10), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    program = compile_function(
        jax.grad(lambda *batch: objective(*batch)[0], argnums=(0, 1)),
        (outputs, outputs, labels),
        topology,
    )
    assert program.cost.launches > 10
    assert program.scratch_bytes < rows**3
    if name == "h100:1":
        assert (program.cost.sorts, program.cost.inner_loops) == (0, 0)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_collectives_are_as_many_on_two_devices_as_on_eight(mode):
    counts = []
    for name in ("h100:2", "h100:8"):
        config = resolve(TrainConfig.of(parallel=mode, **NARROW), 256)
        cost = compile_training(config, SHAPES, topology_or_skip(name)).cost
        counts.append({kind: traffic.count for kind, traffic in cost.collectives.items()})
    assert counts[0] == counts[1]
    # gradients, the outputs there and their gradient back, the rows of a batch from their owners
    assert sum(counts[1].values()) <= 8
