"""A training run from configuration and data to `result.json`, resumable at any moment."""

import contextlib
import dataclasses
import math
import pathlib
import time
from typing import Any

import jax

from aadml_jax.data import StoredFeatures
from aadml_jax.errors import RunStopped, UserError
from aadml_jax.training.checkpoints import Checkpoints, Progress, has_checkpoints
from aadml_jax.training.config import TrainConfig
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
from aadml_jax.training.signals import Interrupted, StopSignal
from aadml_jax.training.state import (
    build_model,
    build_optimizer,
    finite_parts,
    first_broken_part,
    init_state,
    run_keys,
)
from aadml_jax.training.step import make_run_steps, make_train_step
from aadml_jax.training.stored_runs import check_resumable
from aadml_jax.training.streaming import make_stream_steps

# A signal is answered between calls, so none may last long: 64 steps take about 8 s at batch 400 on
# two CPU cores. On an accelerator an epoch takes less, unless its rows have to be read.
_STEPS_PER_SLOW_CALL = 64
_PROFILED_STEPS = 5
PROFILE_FOLDER = "profile"


class TrainingDiverged(RunStopped):
    """The objective or the state became NaN or infinite."""


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
        placement = placement or one_device()
        return _Run(config, data, folder, checkpoints, placement, left).to_the_end()


def _require_same_run(path: pathlib.Path, config: TrainConfig, data: dict[str, Any]) -> None:
    if not (path / CONFIG_FILE).exists():
        raise UserError(
            f"{path / CONFIG_FILE} cannot be read (it is gone), though the folder holds a run; "
            "restore it from a copy, or use another --workdir"
        )
    check_resumable(read_run_json(path, CONFIG_FILE), config, data)


class _Run:
    """The moving parts of one run, between the opening and the closing of its folder."""

    def __init__(
        self,
        config: TrainConfig,
        data: LocalData,
        folder: RunFolder,
        checkpoints: Checkpoints,
        placement: Placement,
        left: list[str],
    ):
        self.config, self.data = config, data
        self.recipe, self.launch = config.recipe, config.launch
        self.folder, self.checkpoints = folder, checkpoints
        self.placement = placement
        self.steps_per_epoch = data.num_train // config.recipe.batch_size
        self.model = build_model(config.recipe, data.num_classes)
        self.state = init_state(
            config.recipe, num_classes=data.num_classes, standardization=data.standardization
        )
        self.progress = Progress(epoch=0, seconds=0.0, mean_map=None)
        restored = checkpoints.restore_latest(self.state)
        if restored is not None:
            self.state, self.progress = restored
        self.lost_its_checkpoints = left if restored is None else []
        self.state = placement.replicate(self.state, donated=True)
        begun = -(-self.step // self.steps_per_epoch)
        if begun > config.launch.epochs:
            raise UserError(
                f"--epochs={config.launch.epochs}: the run in {folder.path} is already at epoch "
                f"{begun}; ask for at least that many, or use another --workdir"
            )
        self.folder.write_json(
            CONFIG_FILE,
            {
                "config": dataclasses.asdict(config),
                "data": data.description,
                "versions": versions(),
                "environment": environment(),
            },
        )
        train_step = make_train_step(
            self.model, build_optimizer(config.recipe), config.recipe.objective(), placement
        )
        common = {
            "batch_size": config.recipe.batch_size,
            "keys": run_keys(config.recipe.seed),
            "placement": placement,
        }
        is_streamed = isinstance(data.train, StoredFeatures)
        if is_streamed:
            self.run_steps = make_stream_steps(
                train_step,
                data.train,
                standardization=data.standardization,
                limit=data.limit,
                **common,
            )
        else:
            self.run_steps = make_run_steps(train_step, data.train, data.num_train, **common)
        self.evaluate = make_evaluate(
            self.model,
            data.test,
            len(data.test_labels),
            placement,
            similarity=config.recipe.similarity,
        )
        is_slow = placement.devices[0].platform == "cpu" or is_streamed
        self.steps_per_call = config.launch.steps_per_call or (
            _STEPS_PER_SLOW_CALL if is_slow else self.steps_per_epoch
        )
        # The first call compiles, so the trace begins after it.
        self.steps_until_profile = 1 if config.launch.profile else None
        self.started = time.monotonic() - self.progress.seconds

    @property
    def step(self) -> int:
        return int(self.state.step)

    def to_the_end(self) -> dict[str, Any]:
        """Runs the remaining epochs and writes the result."""
        restored_step, epoch = self.step, self.progress.epoch
        writes = self.folder.is_writer
        display = ProgressDisplay(self.launch.epochs, self.progress.epoch, shows=writes)
        if epoch == self.launch.epochs:
            nothing = "nothing to do but to report" + ", nor to profile" * self.launch.profile
            display.write(f"already trained to epoch {epoch}: {nothing}")
        elif restored_step:
            display.write(
                f"resuming after {epoch} of {self.launch.epochs} epochs (step {restored_step})"
            )
        elif self.lost_its_checkpoints:
            display.write(self._begin_again())
        log = MetricLog(self.folder, last_step=restored_step)
        events = TensorBoard(
            self.folder.path,
            enabled=self.launch.tensorboard if writes else False,
            last_step=restored_step,
        )
        stop = StopSignal()
        report = None
        try:
            with stop.listening():
                for epoch in range(self.progress.epoch + 1, self.launch.epochs + 1):
                    self._train_to_end_of(epoch, stop, log)
                    report = self._finish_epoch(epoch, log, events, display)
                self.checkpoints.wait()
        finally:
            display.close()
            events.close()
            log.close()
        result = self._result(report)
        self.folder.write_json(RESULT_FILE, result)
        return result

    def _begin_again(self) -> str:
        """Keeps what a run without checkpoints left; says what becomes of it."""
        path = self.folder.path
        words = f"{path} holds no checkpoint: the run starts from its beginning"
        kept = [(name, self.folder.set_aside(name)) for name in self.lost_its_checkpoints]
        names = " and ".join(f"{name} as {other}" for name, other in kept if other)
        return f"{words}; what it left is kept, {names}" if names else words

    def _train_to_end_of(self, epoch: int, stop: StopSignal, log: MetricLog) -> None:
        # A finished epoch is evaluated and logged before a signal is answered.
        while (remaining := epoch * self.steps_per_epoch - self.step) > 0:
            if (name := stop.agreed_name()) is not None:
                self._require_finite_state(epoch)
                log.sync()
                self.checkpoints.save(self.state, self._now(epoch - 1, None))
                self.checkpoints.wait()
                raise Interrupted(
                    f"stopped by {name} after {epoch - 1} of {self.launch.epochs} epochs "
                    f"(step {self.step}), state saved; the same command resumes"
                )
            self._run_steps(min(remaining, self.steps_per_call))

    def _run_steps(self, num_steps: int) -> None:
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

    def _finish_epoch(
        self, epoch: int, log: MetricLog, events: TensorBoard, display: ProgressDisplay
    ) -> dict[str, Any] | None:
        values = {
            name: float(total) / self.steps_per_epoch
            for name, total in jax.device_get(self.state.epoch_sums).items()
        }
        self._require_finite("loss", values["loss"], epoch)
        self._require_finite_state(epoch)
        values["learning_rate"] = self.recipe.learning_rate
        is_last = epoch == self.launch.epochs
        report = None
        if is_last or epoch % self.launch.eval_every == 0:
            report = self.evaluate(self.state.params)
            for direction in DIRECTIONS:
                values[f"map_{direction}"] = report[direction]["map"]
            self._require_finite("MAP", values["map_mean"], epoch)
        log.write(self.step, {"epoch": epoch, **values})
        every = self.launch.checkpoint_every
        if report is not None or (every is not None and epoch % every == 0):
            log.sync()
            mean_map = None if report is None else report["mean"]["map"]
            self.progress = self._now(epoch, mean_map)
            self.checkpoints.save(self.state, self.progress)
        # Last, so that an output that fails costs nothing.
        events.write(self.step, values)
        display.epoch_done(epoch, values, report)
        return report

    def _require_finite(self, name: str, value: float, epoch: int) -> None:
        """Stops before anything of a broken state is logged or saved."""
        if not math.isfinite(value):
            raise self._diverged(f"the {name} became {value} in epoch {epoch}")

    def _require_finite_state(self, epoch: int) -> None:
        if part := first_broken_part(jax.device_get(finite_parts(self.state))):
            raise self._diverged(
                f"the {part} became infinite or not a number in epoch {epoch}, whose state is not "
                "saved"
            )

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what}; lower --learning_rate ({self.recipe.learning_rate:g}) and start again with "
            "another --workdir"
        )

    def _now(self, epoch: int, mean_map: float | None) -> Progress:
        return Progress(epoch, time.monotonic() - self.started, mean_map)

    def _result(self, report: dict[str, Any] | None) -> dict[str, Any]:
        if report is None:  # the run was complete before this call
            report = self.evaluate(self.state.params)
        best = self.checkpoints.best()
        return {
            **retrieval_result(report, self.data.test_labels, self.data.test_posteriors),
            "best": None
            if best is None
            else {
                "epoch": best[0] // self.steps_per_epoch,
                "mean_map": best[1],
                "selected_on": "test",
            },
            "epochs": self.launch.epochs,
            "seconds": self.progress.seconds,
            "versions": versions(),
        }
