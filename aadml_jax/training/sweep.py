"""Many runs, as few compiled programs: sweeps over seeds, margins, k and weights.

What a sweep has done is kept in a folder, so that it goes on after an interruption, and so that
sweeps which share runs train them once.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from aadml_jax._files import written_as_a_whole
from aadml_jax.errors import UserError, one_line
from aadml_jax.training.checkpoints import Checkpoints, Progress
from aadml_jax.training.config import RecipeConfig, TrainConfig
from aadml_jax.training.epochs import require_finite, require_finite_parts, steps_per_call
from aadml_jax.training.local_data import LocalData
from aadml_jax.training.parallel import Device
from aadml_jax.training.run_folder import environment, versions
from aadml_jax.training.settings import resolved
from aadml_jax.training.signals import Interrupted, StopSignal
from aadml_jax.training.stacked_runs import VARYING, Probe, StackedRuns, program_key
from aadml_jax.training.state import TrainState

_SECONDS_BETWEEN_CHECKPOINTS = 60.0
_HISTORY_FILE = "history.json"


class RunHistory(NamedTuple):
    """What became of a run.

    Attributes:
      losses: by name of a part of the objective, its mean over the steps of each epoch.
      reports: by name of a probe, `epochs`, those after which it was measured, and `reports`, what
        `cross_modal_report` gives, as JSON has it (the cut-offs are strings), and the `loss`.
    """

    losses: dict[str, list[float]]
    reports: dict[str, dict[str, list[Any]]]

    def last(self, probe: str) -> dict[str, Any]:
        """The report after the last epoch."""
        return self.reports[probe]["reports"][-1]


def programs(configs: Sequence[TrainConfig], most_runs: int) -> list[list[int]]:
    """Which runs can share a program.

    Args:
      configs: resolved configurations.
      most_runs: that a program may hold; its memory grows with them.

    Returns:
      Numbers of the configurations, a list for each program, in order of their first run.
    """
    groups: dict[tuple[str, int], list[list[int]]] = {}
    for number, config in enumerate(configs):
        of_kind = groups.setdefault(_program_of(config), [[]])
        if len(of_kind[-1]) == most_runs:
            of_kind.append([])
        of_kind[-1].append(number)
    return sorted(group for of_kind in groups.values() for group in of_kind)


def _program_of(config: TrainConfig) -> tuple[str, int]:
    return program_key(config.recipe), _epochs(config)


def _epochs(config: TrainConfig) -> int:
    return resolved(config.launch.epochs)


def run_sweep(
    configs: Sequence[TrainConfig],
    data: LocalData,
    probes: Mapping[str, Probe],
    *,
    folder: pathlib.Path,
    most_runs: int = 20,
    devices: Sequence[Device] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[RunHistory]:
    """Trains all runs, program by program, but those whose histories the folder already has.

    Args:
      configs: resolved configurations; equal ones are trained once.
      data: see `run_program`.
      probes: see `run_program`.
      folder: of histories, made if need be; sweeps may share it.
      most_runs: in one program.
      devices: see `run_program`.
      on_progress: called with the epochs of runs done and to do, those found there left out.

    Returns:
      The history of each configuration.

    Raises:
      UserError: the folder cannot be used, or what it holds is damaged.
      Interrupted: see `run_program`; the same call goes on from there.
      TrainingDiverged: see `run_program`; what was complete before stays.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = dict(_kept_runs(folder))
    except OSError as error:
        raise UserError(
            f"{folder} cannot be used ({error.strerror}); choose another folder"
        ) from error
    surroundings = _surroundings(data, probes)
    names = [_identity([config], surroundings) for config in configs]
    missing = {name: config for name, config in zip(names, configs, strict=True)}
    missing = {name: config for name, config in missing.items() if name not in known}
    total, done = sum(map(_epochs, missing.values())), 0
    to_do = list(missing.items())
    stop = StopSignal()
    with stop.listening(), _promotion():
        for group in programs([config for _, config in to_do], most_runs):
            of_group = [to_do[number] for number in group]

            def count(epoch: int, before: int = done, size: int = len(group)) -> None:
                on_progress(before + epoch * size, total)

            group_configs = [config for _, config in of_group]
            identity = _identity(group_configs, surroundings)
            partial = folder / f"partial-{identity}"
            histories = _run_program(group_configs, data, probes, partial, devices, count, stop)
            done += sum(map(_epochs, group_configs))
            runs = {
                name: history._asdict()
                for (name, _), history in zip(of_group, histories, strict=True)
            }
            # One file for all, so that a sweep that is cut off leaves whole programs.
            with written_as_a_whole(folder / f"{identity}.json") as file:
                json.dump(runs, file, allow_nan=False)
            shutil.rmtree(partial)
            known.update(runs)
            if stop.name is not None:  # which came when the program was as good as done
                raise Interrupted(
                    f"stopped by {stop.name} after {done} of {total} epochs of all runs, which are "
                    "saved; the same command resumes"
                )
    for partial in folder.glob("partial-*"):
        # Runs of it were trained in other programs. What another sweep has begun stays.
        if _members(partial) <= known.keys():
            shutil.rmtree(partial)
    return [RunHistory(**known[name]) for name in names]


def _promotion() -> contextlib.AbstractContextManager[None]:
    # Optax adds whole numbers to floats.
    return jax.numpy_dtype_promotion("standard")


def _members(partial: pathlib.Path) -> set[str]:
    """Which runs the folder of a program holds; none before its first checkpoint."""
    try:
        return set(json.loads((partial / _HISTORY_FILE).read_text())["members"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _kept_runs(folder: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.glob("*.json")):
        try:
            for name, run in json.loads(path.read_text()).items():
                yield name, RunHistory(**run)._asdict()
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is damaged ({one_line(error)}); remove it") from error


def run_program(
    configs: Sequence[TrainConfig],
    data: LocalData,
    probes: Mapping[str, Probe],
    *,
    folder: pathlib.Path | None = None,
    devices: Sequence[Device] | None = None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> list[RunHistory]:
    """Trains runs in step, and measures them.

    Args:
      configs: resolved configurations of one kind, see `programs`.
      data: from `load_local_data`, all rows in this process.
      probes: what is measured, by name.
      folder: where the runs' state is kept about every minute, for the caller to remove; None
        keeps nothing.
      devices: over which the runs are divided; default all of this process.
      on_epoch: called after each epoch with its number.

    Returns:
      The history of each run.

    Raises:
      ValueError: the configurations are of several kinds.
      UserError: the folder cannot be used.
      Interrupted: after a signal (see `StopSignal`), with the state saved if there is a folder.
      TrainingDiverged: an objective, a state or a measurement stopped being finite; nothing of it
        is saved.
    """
    if len({_program_of(config) for config in configs}) != 1:
        raise ValueError(f"the runs of a program may differ in {', '.join(VARYING)} alone")
    stop = StopSignal()
    with stop.listening(), _promotion():
        return _run_program(configs, data, probes, folder, devices, on_epoch, stop)


def _run_program(
    configs: Sequence[TrainConfig],
    data: LocalData,
    probes: Mapping[str, Probe],
    folder: pathlib.Path | None,
    devices: Sequence[Device] | None,
    on_epoch: Callable[[int], None],
    stop: StopSignal,
) -> list[RunHistory]:
    recipes = [config.recipe for config in configs]
    program = StackedRuns(recipes, data, tuple(devices or jax.local_devices()))
    last = _epochs(configs[0])
    measure = program.measuring(probes)
    history = [
        RunHistory({}, {name: {"epochs": [], "reports": []} for name in probes}) for _ in configs
    ]
    first, epoch, kept = program.first_state(), 0, None
    most_steps = steps_per_call(
        program.steps_per_epoch,
        is_slow=program.mesh.devices.flat[0].platform == "cpu",
        num_runs=len(configs),
    )
    with contextlib.ExitStack() as stack:
        if folder is not None:
            kept = stack.enter_context(_ProgramFolder(folder, configs, _surroundings(data, probes)))
            if (restored := kept.restore(first)) is not None:
                first, epoch, history = restored
        state = program.placed(first)
        saved = time.monotonic()
        while epoch < last:
            while remaining := (epoch + 1) * program.steps_per_epoch - int(state.step):
                if stop.name is not None:
                    if kept is not None:
                        _require_finite_state(program, recipes, state, epoch)
                        kept.save(program.on_host(state), epoch, history)
                        kept.wait()
                    raise Interrupted(_farewell(stop.name, epoch, last, folder))
                state = program.run_steps(state, min(remaining, most_steps))
            epoch += 1
            for run, recipe, losses in zip(
                history, recipes, program.mean_losses(state), strict=True
            ):
                for name, value in losses.items():
                    require_finite(f"{name} of a run", value, _where(recipe, epoch))
                    run.losses.setdefault(name, []).append(value)
            _require_finite_state(program, recipes, state, epoch)
            for name, probe in probes.items():
                if not probe.is_due(epoch, last):
                    continue
                for run, recipe, report in zip(
                    history, recipes, measure[name](state.params), strict=True
                ):
                    where = _where(recipe, epoch)
                    require_finite("MAP of a run", report["mean"]["map"], where)
                    require_finite("loss of a run", report.get("loss", 0.0), where)
                    run.reports[name]["epochs"].append(epoch)
                    run.reports[name]["reports"].append(report)
            with contextlib.suppress(OSError):  # of an output that is gone: it costs no run
                on_epoch(epoch)
            if kept is not None and time.monotonic() - saved > _SECONDS_BETWEEN_CHECKPOINTS:
                kept.save(program.on_host(state), epoch, history)
                saved = time.monotonic()
    return history


def _farewell(signal_name: str, epoch: int, last: int, folder: pathlib.Path | None) -> str:
    words = f"stopped by {signal_name} after {epoch} of {last} epochs of a program of runs"
    if folder is None:
        return f"{words}, which has no folder to be kept in"
    return f"{words}, state saved; the same command resumes"


def _require_finite_state(
    program: StackedRuns, recipes: Sequence[RecipeConfig], state: TrainState, epoch: int
) -> None:
    for recipe, finite in zip(recipes, program.finite_parts(state), strict=True):
        require_finite_parts(finite, _where(recipe, epoch), of=" of a run")


def _where(recipe: RecipeConfig, epoch: int) -> str:
    """The end of the message that a run has diverged."""
    settings = {name: getattr(recipe, name) for name in ("loss", *VARYING)}
    said = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    return f"in epoch {epoch} ({said}); lower --learning_rate"


def _surroundings(data: LocalData, probes: Mapping[str, Probe]) -> bytes:
    """Digest of what the runs of a sweep have in common and their histories depend on."""
    digest = hashlib.blake2b(digest_size=16)
    has_x64 = environment()["enable_x64"]
    machine = {"platform": jax.default_backend(), **versions()}
    if has_x64:
        machine["enable_x64"] = has_x64
    digest.update(json.dumps([machine, data.description["fingerprint"]], sort_keys=True).encode())
    for name, probe in probes.items():
        digest.update(json.dumps([name, *probe[1:]]).encode())
        for array in probe.rows:
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _identity(configs: Sequence[TrainConfig], surroundings: bytes) -> str:
    """Tells apart what would not give the same histories."""
    digest = hashlib.blake2b(surroundings, digest_size=16)
    for config in configs:
        fields = {**dataclasses.asdict(config.recipe), "epochs": config.launch.epochs}
        digest.update(json.dumps(fields, sort_keys=True).encode())
    return digest.hexdigest()


class _ProgramFolder:
    """The histories and the states of a program's runs on disk; waits for pending writes."""

    def __init__(self, path: pathlib.Path, configs: Sequence[TrainConfig], surroundings: bytes):
        """Opens the folder; one of other runs is emptied."""
        self._path = path
        self._identity = _identity(configs, surroundings)
        self._members = [_identity([config], surroundings) for config in configs]
        self._histories = self._read()
        if self._histories is None:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        self._checkpoints = Checkpoints(path)

    def __enter__(self) -> "_ProgramFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._checkpoints.__exit__(*exception)

    def _read(self) -> list[dict[str, Any]] | None:
        try:
            kept = json.loads((self._path / _HISTORY_FILE).read_text())
            return kept["runs"] if kept["identity"] == self._identity else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restore(self, template: TrainState) -> tuple[TrainState, int, list[RunHistory]] | None:
        """State, epochs done and histories; None if there is no checkpoint yet."""
        if self._histories is None:
            return None
        restored = self._checkpoints.restore_latest(template)
        if restored is None:
            return None
        state, progress = restored
        histories = [_truncate(RunHistory(**run), progress.epoch) for run in self._histories]
        return state, progress.epoch, histories

    def save(self, state: TrainState, epoch: int, histories: Sequence[RunHistory]) -> None:
        """Writes the histories, and in the background the state after so many epochs."""
        content = {
            "identity": self._identity,
            "members": self._members,
            "runs": [history._asdict() for history in histories],
        }
        with written_as_a_whole(self._path / _HISTORY_FILE) as file:
            json.dump(content, file)
        self._checkpoints.save(state, Progress(epoch, 0.0, None))

    def wait(self) -> None:
        """Waits until the state is on disk."""
        self._checkpoints.wait()


def _truncate(run: RunHistory, epoch: int) -> RunHistory:
    """A history up to an epoch: the file may be ahead of the checkpoint."""
    losses = {name: values[:epoch] for name, values in run.losses.items()}
    reports = {}
    for name, kept in run.reports.items():
        count = sum(measured <= epoch for measured in kept["epochs"])
        reports[name] = {field: values[:count] for field, values in kept.items()}
    return RunHistory(losses, reports)
