"""What a run needs on accelerators: `python -m experiments.compile --topology=v5e:4x4`.

Compiles the training steps and the evaluation of `experiments.train` with the same flags, by the
accelerator's own compiler, on a machine that need not have one. Nothing is trained. Needs the
compiler's package, which the extra 'aot' brings.
"""

import dataclasses
import json
from collections.abc import Iterator, Set
from typing import Any

from aadml_jax._version import __version__
from aadml_jax.errors import RunStopped, UserError
from aadml_jax.training.accelerators import Topology, compile_on_host, find_topology
from aadml_jax.training.ahead_of_time import CompiledRun, Program, RowShapes, compile_run
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.parallel import Placement
from aadml_jax.training.settings import COUNT, check_settings, setting
from aadml_jax.training.setup import open_data, resolve, split, split_in_words, with_presets
from experiments import command_line

_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """For which devices to compile, and with how many rows."""

    topology: str | None = setting(
        None, "devices to compile for, such as v5e:4x4, v5e:16x16, v6e:4x4, h100:1 or h100:8"
    )
    train_rows: int | None = setting(
        None, "number of training rows to compile for; default those of the data", bounds=COUNT
    )
    test_rows: int | None = setting(
        None, "number of test rows to compile for; default those of the data", bounds=COUNT
    )
    json: str | None = setting(None, "file to write the numbers to, as JSON")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compile: a training run, and its target."""

    target: TargetOptions = dataclasses.field(default_factory=TargetOptions)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)


def run(options: Options, explicit: Set[str] = frozenset()) -> dict[str, Any]:
    """Compiles a run for devices that need not be there, and prints what it needs of each of them.

    Args:
      options: the run and its target.
      explicit: names of the settings that --smoke and --paper leave as they are.

    Returns:
      The numbers, as --json holds them.

    Raises:
      UserError: if the topology is not known or its compiler not installed, if the configuration or
        the data cannot be used, or the file cannot be written.
      RunStopped: if the run does not fit into the memory of a device.
    """
    target = options.target
    check_settings(target)
    if target.topology is None:
        raise UserError("--topology is needed: the devices to compile for, such as v5e:4x4")
    topology = find_topology(target.topology)
    config = with_presets(options.train, explicit)
    if config.launch.input == "stream":
        raise UserError(
            "--input=stream is not compiled ahead of time; leave it out: the step is the same but "
            "for the taking of its rows"
        )
    dataset = split(config.data, open_data(config.data))
    shapes = RowShapes.of(dataset)
    shapes = shapes._replace(
        num_train=target.train_rows or shapes.num_train,
        num_test=target.test_rows or shapes.num_test,
    )
    config = resolve(config, shapes.num_train)
    placement = Placement(topology.devices, config.launch.parallel)
    epochs = config.launch.epochs
    print(
        f"{dataset.name}{split_in_words(config.data)}: {dataset.features_in_words()} of "
        f"{shapes.num_train} training and {shapes.num_test} test pairs, {shapes.num_classes} "
        f"classes; {epochs} epoch{'s' * (epochs != 1)}, batch size {config.recipe.batch_size}; "
        f"compiled for {topology.name}, {placement}, nothing is run",
        flush=True,
    )
    compiled = compile_run(config, shapes, topology)
    numbers = _as_json(config, shapes, topology, compiled)
    refusal = numbers["refusal"]
    if refusal is None:  # else of one program at least there are no numbers
        print("\n".join(_in_words(numbers)))
    if target.json is not None:
        command_line.write_output(target.json, json.dumps(numbers, indent=2) + "\n", flag="json")
    if not compiled.fits:
        raise RunStopped(
            f"does not fit: the compiler says {refusal}"
            if refusal
            else f"does not fit: {_mib(compiled.needed_bytes)} are needed of the "
            f"{_mib(compiled.memory_bytes)} of a device; use more devices, or a smaller "
            "--batch_size"
        )
    return numbers


def _as_json(
    config: TrainConfig, shapes: RowShapes, topology: Topology, compiled: CompiledRun
) -> dict[str, Any]:
    """The numbers of the step, with those of the evaluation and of the run beside them.

    Of a program that the compiler refused all are 0, and what counts both is None.
    """
    refusal = compiled.training.refusal or compiled.evaluation.refusal
    return {
        "version": __version__,
        "topology": topology.name,
        "device": topology.devices[0].device_kind,
        "num_devices": len(topology.devices),
        "parallel": config.launch.parallel,
        "precision": config.recipe.precision,
        "loss": config.recipe.loss,
        "batch_size": config.recipe.batch_size,
        **shapes._asdict(),
        "parameter_bytes": compiled.parameter_bytes,
        "state_bytes": compiled.state_bytes,
        "train_bytes": compiled.train_bytes,
        "test_bytes": compiled.test_bytes,
        "needed_bytes": compiled.needed_bytes if refusal is None else None,
        "memory_bytes": compiled.memory_bytes,
        "refusal": refusal,
        "fits": compiled.fits,
        **_program(compiled.training, topology),
        "evaluation": _program(compiled.evaluation, topology),
        "epochs": config.launch.epochs,
        "steps_per_epoch": compiled.steps_per_epoch,
        "num_evaluations": compiled.num_evaluations,
        "estimated_run_seconds": compiled.run_seconds if refusal is None else None,
    }


def _program(program: Program, topology: Topology) -> dict[str, Any]:
    cost = program.cost
    values = dataclasses.asdict(cost)
    if topology.accelerator.platform != "tpu":
        values["estimated_cycles"] = None
    return {
        "compile_seconds": program.compile_seconds,
        "scratch_bytes": program.scratch_bytes,
        "flop": cost.matrix_flop + cost.other_flop,
        **values,
        "estimated_seconds": program.seconds.estimate,
        "seconds_by_limit": program.seconds._asdict(),
    }


def _in_words(numbers: dict[str, Any]) -> Iterator[str]:
    evaluation = numbers["evaluation"]
    yield ""
    yield (
        f"a device has {_mib(numbers['memory_bytes'])}; the run needs "
        f"{_mib(numbers['needed_bytes'])}: "
        f"{'it fits' if numbers['fits'] else 'it does not fit'}"
    )
    yield (
        f"  parameters {_mib(numbers['parameter_bytes'])}, state with them "
        f"{_mib(numbers['state_bytes'])}, training rows {_mib(numbers['train_bytes'])}, test rows "
        f"{_mib(numbers['test_bytes'])}"
    )
    yield (
        f"  scratch of a step {_mib(numbers['scratch_bytes'])}, of an evaluation "
        f"{_mib(evaluation['scratch_bytes'])}"
    )
    for name, program in (("a step", numbers), ("an evaluation", evaluation)):
        yield from _program_in_words(name, program)
    yield ""
    yield (
        f"the whole run, estimated: {_seconds(numbers['estimated_run_seconds'])} at least "
        f"({numbers['epochs']} × {numbers['steps_per_epoch']} steps and "
        f"{numbers['num_evaluations']} evaluations)"
    )


def _program_in_words(name: str, program: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{name}, on each device (compiled in {program['compile_seconds']:.0f} s):"
    yield (
        f"  {program['matrix_flop'] / 1e9:.3g} GFLOP in matrix products and "
        f"{program['other_flop'] / 1e9:.3g} beside them, {_mib(program['bytes'])} of memory traffic"
    )
    kinds = sorted(program["opcodes"].items(), key=lambda item: -item[1])
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds)
    yield f"  {program['launches']} launches: {listed}"
    yield (
        f"  {program['sorts']} sorts, {program['inner_loops']} inner loops, of "
        f"{program['inner_loops_unknown_trips']} of which the compiler does not know the turns"
    )
    if program["collectives"]:
        listed = ", ".join(
            f"{traffic['count']} {kind} ({_mib(traffic['bytes'])})"
            for kind, traffic in sorted(program["collectives"].items())
        )
        yield f"  collectives: {listed}"
    if program["estimated_cycles"] is not None:
        yield f"  {program['estimated_cycles']} cycles by the compiler's estimate"
    limits = {limit: each for limit, each in program["seconds_by_limit"].items() if each}
    listed = ", ".join(f"{limit} {_seconds(each)}" for limit, each in limits.items())
    yield f"  estimated time: {_seconds(program['estimated_seconds'])} at least ({listed})"
    if program["inner_loops_unknown_trips"]:
        yield "  (loops of unknown turns are counted as if they turned once)"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:,.1f} MiB" if num_bytes >= _MIB / 10 else f"{num_bytes:,} bytes"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"


def main() -> None:
    """Sets the process up for devices that are not there, and compiles."""
    options, explicit = command_line.options_from_flags(Options)
    if options.train.recipe.deterministic:
        command_line.set_up_determinism()
    compile_on_host()
    run(options, explicit)


if __name__ == "__main__":
    command_line.run(main, flags_of=[Options])
