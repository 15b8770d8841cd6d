"""What steps and evaluations need on accelerators, by the accelerators' own compilers.

    python -m benchmarks.compiled_programs --what=losses
    python -m benchmarks.compiled_programs --what=scale

Nothing is run, and no accelerator need be there; the extra 'aot' brings the compilers. The first
table has the default step with each loss in turn on one device, the second a step and an evaluation
of many rows on many devices. On a GPU every launch costs about as much as a small operation, and
every turn of a loop of unknown trip count a wait; cycles are the estimate of a TPU's compiler, with
each such loop counted as if it turned once.
"""

from collections.abc import Mapping, Sequence

from absl import flags

from aadml_jax.training.accelerators import Topology, compile_on_host, find_topology
from aadml_jax.training.ahead_of_time import (
    Program,
    RowShapes,
    compile_evaluation,
    compile_training,
)
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.hlo_text import Traffic
from aadml_jax.training.named_losses import NAMED_LOSSES
from aadml_jax.training.setup import resolve
from benchmarks.side_by_side import Table, format_bytes
from experiments import command_line

_WHAT = flags.DEFINE_enum("what", "losses", ["losses", "scale"], "table to print")
_TOPOLOGIES = flags.DEFINE_list(
    "topologies", None, "devices to compile for; default h100:1 and v5e:1x1 for losses"
)
_LOSSES = flags.DEFINE_list("losses", None, "losses to compile; default all")
_BATCH_SIZES = flags.DEFINE_list(
    "batch_sizes", ["400", "65536"], "rows per step; 400 is taken per device"
)
_CLIPS = flags.DEFINE_list("clips", ["22482", "1000000"], "clips to evaluate")
_VEGAS = RowShapes(22_482, 5_621, 128, 1024, 10, False)


def main() -> None:
    """Prints the table that was asked for."""
    compile_on_host()
    if _WHAT.value == "losses":
        _print_losses([find_topology(name) for name in _TOPOLOGIES.value or ["h100:1", "v5e:1x1"]])
    else:
        names = _TOPOLOGIES.value or ["h100:8", "v5e:4x4", "v5e:16x16"]
        _print_scale([find_topology(name) for name in names])


def _print_losses(topologies: Sequence[Topology]) -> None:
    table = Table(
        ("loss", -17),
        *(
            column
            for topology in topologies
            for column in (
                (f"{topology.name}: launches", 16),
                ("sorts", 5),
                ("loops (unknown)", 15),
                ("scratch", 9),
                *([("cycles", 9)] if topology.accelerator.platform == "tpu" else []),
            )
        ),
    )
    for loss in _LOSSES.value or sorted(NAMED_LOSSES):
        cells = []
        for topology in topologies:
            config = resolve(TrainConfig.of(loss=loss), _VEGAS.num_train)
            program = compile_training(config, _VEGAS, topology)
            cost = program.cost
            cells += [
                f"{cost.launches}",
                f"{cost.sorts}",
                f"{cost.inner_loops} ({cost.inner_loops_unknown_trips})",
                _scratch(program),
            ]
            if topology.accelerator.platform == "tpu":
                cells.append(f"{cost.estimated_cycles:,}")
        table.row(loss, *cells)


def _print_scale(topologies: Sequence[Topology]) -> None:
    table = Table(
        ("devices", -10),
        ("program", -34),
        ("collectives: number (bytes)", -60),
        ("scratch", 9),
        ("fits", 4),
        ("compiled in s", 13),
    )
    for topology in topologies:
        is_gpu = topology.accelerator.platform == "cuda"
        count = len(topology.devices)
        for rows in map(int, _BATCH_SIZES.value):
            batch_size = rows * count if rows == 400 else rows
            shapes = _VEGAS._replace(num_train=max(_VEGAS.num_train, 2 * batch_size))
            for mode in ("jit", "pmap") if is_gpu else ("jit",):
                config = resolve(
                    TrainConfig.of(batch_size=batch_size, parallel=mode), shapes.num_train
                )
                program = compile_training(config, shapes, topology)
                name = f"step of {batch_size:,} rows, {mode}"
                table.row(topology.name, name, *_scale_cells(program, topology))
        for clips in map(int, _CLIPS.value):
            shapes = _VEGAS._replace(num_test=clips)
            config = resolve(TrainConfig.of(batch_size=400 * count), 400 * count)
            program = compile_evaluation(config, shapes, topology)
            name = f"evaluation of {clips:,} clips"
            table.row(topology.name, name, *_scale_cells(program, topology))


def _scale_cells(program: Program, topology: Topology) -> list[str]:
    fits = program.refusal is None and program.needed_bytes <= topology.accelerator.memory_bytes
    return [
        _in_words(program.cost.collectives),
        _scratch(program),
        "yes" if fits else "no",
        f"{program.compile_seconds:.0f}",
    ]


def _scratch(program: Program) -> str:
    return "refused" if program.refusal else format_bytes(program.scratch_bytes)


def _in_words(collectives: Mapping[str, Traffic]) -> str:
    return ", ".join(
        f"{traffic.count} {kind} ({format_bytes(traffic.bytes)})"
        for kind, traffic in sorted(collectives.items())
    )


if __name__ == "__main__":
    command_line.run(main)
