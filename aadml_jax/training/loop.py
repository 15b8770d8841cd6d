"""A training run from configuration and data to `result.json`, resumable at any moment."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from aadml_jax.data import StoredFeatures
from aadml_jax.errors import UserError
from aadml_jax.training.checkpoints import Checkpoints, Progress, has_checkpoints
from aadml_jax.training.config import TrainConfig
from aadml_jax.training.epochs import (
    TrainingDiverged,
    is_due,
    mean_losses,
    require_finite,
    require_finite_parts,
    steps_per_call,
)
from aadml_jax.training.evaluation import DIRECTIONS, make_evaluate, retrieval_result
from aadml_jax.training.local_data import LocalData
from aadml_jax.training.parallel import Placement, one_device
from aadml_jax.training.processes import allreduce_max
from aadml_jax.training.reporting import ProgressDisplay, TensorBoard
from aadml_jax.training.run_folder import (
    CONFIG_FILE,
    RESULT_FILE,
    MetricLog,
    RunFolder,
    environment,
    left_by_a_run,
    read_run_json,
    require_same_folder,
    versions,
)
from aadml_jax.training.settings import resolved
from aadml_jax.training.signals import Interrupted, StopSignal
from aadml_jax.training.state import (
    TrainState,
    build_model,
    finite_parts,
    init_state,
    run_keys,
)
from aadml_jax.training.step import build_train_step, make_run_steps
from aadml_jax.training.stored_runs import check_resumable
from aadml_jax.training.streaming import make_stream_steps

__all__ = ["PROFILE_FOLDER", "Interrupted", "TrainingDiverged", "run_training"]

_PROFILED_STEPS = 5
PROFILE_FOLDER = "profile"


def run_training(
    config: TrainConfig,
    data: LocalData,
    folder: RunFolder,
    placement: Placement | None = None,
) -> dict[str, Any]:
    """Trains, or resumes, up to `config.launch.epochs`; evaluates; writes result.json.

    Args:
      config: resolved configuration.
      data: from `load_local_data`, with the same placement.
      folder: the run's folder, locked.
      placement: over devices, which changes no result beyond rounding; default one.

    Returns:
      The content of result.json.

    Raises:
      UserError: if the folder belongs to a run of another configuration, with checkpoints or
        without, or is beyond `config.launch.epochs`.
      Interrupted: after a signal (SIGTERM, SIGINT, SIGHUP and others, see `StopSignal`), with the
        state saved.
      TrainingDiverged: if the objective or the state stops being finite; earlier checkpoints stay.
    """
    require_same_folder(folder)
    left = left_by_a_run(folder.path)
    if allreduce_max(bool(left) or has_checkpoints(folder.path)):
        _require_same_run(folder.path, config, data.description)
    # Optax adds whole numbers to floats.
    with jax.numpy_dtype_promotion("standard"), Checkpoints(folder.path) as checkpoints:
        run = _start_or_resume(config, data, folder, checkpoints, placement or one_device())
        display = ProgressDisplay(run.epochs, run.progress.epoch, shows=folder.is_writer)
        with contextlib.closing(display):
            # What a run without checkpoints left is kept under another name.
            kept = {} if run.is_resumed else {name: folder.set_aside(name) for name in left}
            if words := _beginning_in_words(run, kept):
                display.write(words)
            report = _train(run, display)
        if report is None:  # the run was complete before this call
            report = run.evaluate(run.state.params)
        result = _result(run, report)
        folder.write_json(RESULT_FILE, result)
        return result


def _require_same_run(path: pathlib.Path, config: TrainConfig, data: dict[str, Any]) -> None:
    if not (path / CONFIG_FILE).exists():
        raise UserError(
            f"{path / CONFIG_FILE} cannot be read (it is gone), though the folder holds a run; "
            "restore it from a copy, or use another --workdir"
        )
    check_resumable(read_run_json(path, CONFIG_FILE), config, data)


@dataclasses.dataclass
class _Run:
    """A run between the opening and the closing of its folder.

    Attributes:
      run_steps: the compiled function of `make_run_steps` or `make_stream_steps`.
      evaluate: the function of `make_evaluate`, on the test rows.
      epochs: to be trained in all.
      steps_per_epoch: of every epoch.
      steps_per_call: largest number of steps between two looks at signals.
      is_resumed: whether a checkpoint was restored.
      state: after the last step.
      progress: at the last checkpoint.
      started: when the run would have begun by the monotonic clock, had nothing interrupted it.
      steps_until_profile: steps to take before the profiled ones; None where none follow.
    """

    config: TrainConfig
    data: LocalData
    folder: RunFolder
    checkpoints: Checkpoints
    run_steps: Callable[[TrainState, int], TrainState]
    evaluate: Callable[[Any], dict[str, Any]]
    epochs: int
    steps_per_epoch: int
    steps_per_call: int
    is_resumed: bool
    state: TrainState
    progress: Progress
    started: float
    steps_until_profile: int | None

    @property
    def step(self) -> int:
        return int(self.state.step)

    def take_steps(self, num_steps: int) -> None:
        """Takes at most so many steps, fewer where a profile begins or ends."""
        with contextlib.ExitStack() as stack:
            if self.steps_until_profile is not None:
                # All processes take the same steps; the one that writes keeps the trace.
                is_profiled = self.steps_until_profile == 0
                num_steps = min(num_steps, self.steps_until_profile or _PROFILED_STEPS)
                if is_profiled and self.folder.is_writer:
                    folder = self.folder.path / PROFILE_FOLDER
                    stack.enter_context(jax.profiler.trace(folder, create_perfetto_trace=True))
                self.steps_until_profile = (
                    None if is_profiled else self.steps_until_profile - num_steps
                )
            self.state = self.run_steps(self.state, num_steps)
            jax.block_until_ready(self.state)

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint in the background."""
        self.checkpoints.save(self.state, progress)

    def now(self, epoch: int, mean_map: float | None) -> Progress:
        """The progress after so many whole epochs."""
        return Progress(epoch, time.monotonic() - self.started, mean_map)

    def require_finite(self, name: str, value: float, epoch: int) -> None:
        """See `epochs.require_finite`."""
        require_finite(name, value, f"in epoch {epoch}; {self._remedy}")

    def require_finite_state(self, epoch: int) -> None:
        """See `epochs.require_finite_parts`."""
        finite = jax.device_get(finite_parts(self.state))
        require_finite_parts(finite, f"in epoch {epoch}, whose state is not saved; {self._remedy}")

    @property
    def _remedy(self) -> str:
        rate = self.config.recipe.learning_rate
        return f"lower --learning_rate ({rate:g}) and start again with another --workdir"


def _start_or_resume(
    config: TrainConfig,
    data: LocalData,
    folder: RunFolder,
    checkpoints: Checkpoints,
    placement: Placement,
) -> _Run:
    """Restores the newest checkpoint if there is one, writes config.json, and builds the program.

    Raises:
      UserError: if no checkpoint can be read, or the newest is beyond the epochs asked for.
    """
    recipe, launch = config.recipe, config.launch
    steps_per_epoch = data.num_train // resolved(recipe.batch_size)
    epochs = resolved(launch.epochs)
    state = init_state(recipe, num_classes=data.num_classes, standardization=data.standardization)
    progress = Progress(epoch=0, seconds=0.0, mean_map=None)
    restored = checkpoints.restore_latest(state)
    if restored is not None:
        state, progress = restored
    state = placement.replicate(state, donated=True)
    begun = -(-int(state.step) // steps_per_epoch)
    if begun > epochs:
        raise UserError(
            f"--epochs={epochs}: the run in {folder.path} is already at epoch {begun}; ask for at "
            "least that many, or use another --workdir"
        )
    folder.write_json(
        CONFIG_FILE,
        {
            "config": dataclasses.asdict(config),
            "data": data.description,
            "versions": versions(),
            "environment": environment(),
        },
    )
    model = build_model(recipe, data.num_classes)
    is_slow = placement.devices[0].platform == "cpu" or isinstance(data.train, StoredFeatures)
    return _Run(
        config=config,
        data=data,
        folder=folder,
        checkpoints=checkpoints,
        run_steps=_build_steps(config, data, placement),
        evaluate=make_evaluate(
            model, data.test, len(data.test_labels), placement, similarity=recipe.similarity
        ),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=launch.steps_per_call or steps_per_call(steps_per_epoch, is_slow=is_slow),
        is_resumed=restored is not None,
        state=state,
        progress=progress,
        started=time.monotonic() - progress.seconds,
        # The first call compiles, so the trace begins after it.
        steps_until_profile=1 if launch.profile else None,
    )


def _build_steps(
    config: TrainConfig, data: LocalData, placement: Placement
) -> Callable[[TrainState, int], TrainState]:
    recipe = config.recipe
    train_step = build_train_step(recipe, data.num_classes, placement)
    batch_size, keys = resolved(recipe.batch_size), run_keys(recipe.seed)
    if isinstance(data.train, StoredFeatures):
        return make_stream_steps(
            train_step,
            data.train,
            batch_size=batch_size,
            keys=keys,
            standardization=data.standardization,
            placement=placement,
            limit=data.limit,
        )
    return make_run_steps(
        train_step,
        data.train,
        data.num_train,
        batch_size=batch_size,
        keys=keys,
        placement=placement,
    )


def _beginning_in_words(run: _Run, kept: dict[str, str | None]) -> str | None:
    """What to say of a run that does not begin in an empty folder.

    Args:
      run: before its first step of this call.
      kept: what lay in its folder without checkpoints, and the names it has now.
    """
    epoch = run.progress.epoch
    if epoch == run.epochs:
        nothing = "nothing to do but to report" + ", nor to profile" * run.config.launch.profile
        return f"already trained to epoch {epoch}: {nothing}"
    if run.step:
        return f"resuming after {epoch} of {run.epochs} epochs (step {run.step})"
    if not kept:
        return None
    words = f"{run.folder.path} holds no checkpoint: the run starts from its beginning"
    names = " and ".join(f"{name} as {other}" for name, other in kept.items() if other)
    return f"{words}; what it left is kept, {names}" if names else words


def _train(run: _Run, display: ProgressDisplay) -> dict[str, Any] | None:
    """Trains the epochs that are left; returns the last one's report, None if none was left."""
    folder, launch, stop = run.folder, run.config.launch, StopSignal()
    log = MetricLog(folder, last_step=run.step)
    events = TensorBoard(
        folder.path,
        enabled=launch.tensorboard if folder.is_writer else False,
        last_step=run.step,
    )
    report = None
    with contextlib.closing(log), contextlib.closing(events), stop.listening():
        for epoch in range(run.progress.epoch + 1, run.epochs + 1):
            _take_steps_of_epoch(run, epoch, stop, log)
            values = mean_losses(jax.device_get(run.state.epoch_sums), run.steps_per_epoch)
            run.require_finite("loss", values["loss"], epoch)
            run.require_finite_state(epoch)
            values["learning_rate"] = run.config.recipe.learning_rate
            report = None
            if is_due(epoch, launch.eval_every, run.epochs):
                report = run.evaluate(run.state.params)
                for direction in DIRECTIONS:
                    values[f"map_{direction}"] = report[direction]["map"]
                run.require_finite("MAP", values["map_mean"], epoch)
            log.write(run.step, {"epoch": epoch, **values})
            if report is not None or is_due(epoch, launch.checkpoint_every, run.epochs):
                log.sync()
                run.progress = run.now(epoch, None if report is None else report["mean"]["map"])
                run.save(run.progress)
            # Last, so that an output that fails costs nothing.
            events.write(run.step, values)
            display.epoch_done(epoch, values, report)
        run.checkpoints.wait()
    return report


def _take_steps_of_epoch(run: _Run, epoch: int, stop: StopSignal, log: MetricLog) -> None:
    """Takes the steps that an epoch has left.

    Raises:
      Interrupted: after a signal, with the state saved. One that comes with the last step is
        answered in the next epoch, so that the finished one is evaluated and logged before.
    """
    while (remaining := epoch * run.steps_per_epoch - run.step) > 0:
        if (name := stop.agreed_name()) is not None:
            run.require_finite_state(epoch)
            log.sync()
            run.save(run.now(epoch - 1, None))
            run.checkpoints.wait()
            raise Interrupted(
                f"stopped by {name} after {epoch - 1} of {run.epochs} epochs (step {run.step}), "
                "state saved; the same command resumes"
            )
        run.take_steps(min(remaining, run.steps_per_call))


def _result(run: _Run, report: dict[str, Any]) -> dict[str, Any]:
    """The content of result.json."""
    best = run.checkpoints.best()
    return {
        **retrieval_result(report, run.data.test_labels, run.data.test_posteriors),
        "best": None
        if best is None
        else {
            "epoch": best[0] // run.steps_per_epoch,
            "mean_map": best[1],
            "selected_on": "test",
        },
        "epochs": run.epochs,
        "seconds": run.progress.seconds,
        "versions": versions(),
    }
