"""Checkpoints of a run: host arrays, written in the background, complete or not there at all.

A checkpoint holds NumPy arrays, the form that restores unchanged on another number of devices or
another backend. Orbax writes it under a temporary name and renames it when it is complete, so that
a run killed at any moment leaves whole checkpoints only. The newest two and the best are kept: the
second newest is what a run falls back to if the newest was damaged on disk.

Of the processes of a run, which all hold the whole state, the primary one writes and reads; the
others get from it what it has read. So no two of them can take a different view of what is on disk.
"""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from aadml_jax.errors import UserError, one_line
from aadml_jax.training.processes import from_primary, is_primary, largest_of_all_processes
from aadml_jax.training.state import TrainState

FOLDER = "checkpoints"
_NOT_EVALUATED = -1.0
_KEPT_LATEST = 2


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run has to remember beside its arrays.

    Attributes:
      epoch: whole epochs done.
      seconds: wall time spent training and evaluating so far, over all resumptions.
      mean_map: mean MAP of both directions on the test rows at this step; None if not evaluated.
    """

    epoch: int
    seconds: float
    mean_map: float | None


class Checkpoints:
    """The checkpoints in one run folder; a context manager that waits for pending writes.

    Every process of a run calls the same methods in the same order.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        """Opens the folder.

        Args:
          workdir: the run's folder.
          read_only: for evaluation; nothing is created or cleaned up.

        Raises:
          UserError: if something else is in the folder's place.
        """
        self._damaged: set[int] = set()
        self._folder = workdir.absolute() / FOLDER
        self._manager = None
        if self._folder.exists() and not self._folder.is_dir():
            raise UserError(f"{self._folder} is not a folder; remove it or use another --workdir")
        if not is_primary():
            return
        if not read_only:
            # What a killed run left half written. Orbax's own clean-up runs in a thread that
            # outlives a manager that saves nothing.
            for leftover in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover)
            self._folder.mkdir(exist_ok=True)
        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(_KEPT_LATEST),
                checkpoint_managers.BestN(get_metric_fn=_mean_map, n=1),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=_mean_map,
                create=False,
                enable_async_checkpointing=not read_only,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}
                ),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._manager is not None:
            self._manager.close()

    def exist(self) -> bool:
        """Whether there is any checkpoint, readable or not."""
        return bool(largest_of_all_processes(bool(self._manager and self._manager.all_steps())))

    def save(self, state: TrainState, progress: Progress) -> None:
        """Writes `state` in the background; once per step."""
        if self._manager is None:
            return
        # A copy, not a view: the training loop reuses the device memory behind it.
        host = jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(state._asdict()))
        step = int(host["step"])
        self.wait()
        if step in self._damaged:
            self._manager.delete(step)
            self._damaged.remove(step)
        if step in self._manager.all_steps():
            return
        metric = _NOT_EVALUATED if progress.mean_map is None else progress.mean_map
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(host),
                progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
            ),
            metrics={"mean_map": metric},
            force=True,
        )

    def wait(self) -> None:
        """Waits until everything saved is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def best(self) -> tuple[int, float] | None:
        """Step and mean MAP of the best evaluated checkpoint; None if none was evaluated."""
        self.wait()
        step, mean_map = None, _NOT_EVALUATED
        if self._manager is not None and (step := self._manager.best_step()) is not None:
            mean_map = _mean_map(self._manager.metrics(step))
        step, mean_map = from_primary([np.int64(step or 0), np.float64(mean_map)])
        return None if mean_map == _NOT_EVALUATED else (int(step), float(mean_map))

    def restore_latest(self, template: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest checkpoint that can be read; None if there is none at all.

        A damaged one is reported on the log, and the one before it is tried. It stays on disk until
        the run comes to its step again.

        Args:
          template: a state of the right structure, shapes and dtypes.

        Raises:
          UserError: in every process, if checkpoints exist but none can be read, or they are of
            another shape.
        """
        restored, failure = None, None
        if self._manager is not None:
            try:
                restored = self._newest(template)
            except UserError as error:
                failure = error
        if largest_of_all_processes(failure is not None):
            raise failure or UserError(
                f"{self._folder}: the first process of this run cannot restore a checkpoint; its "
                "own message says why"
            )
        if not largest_of_all_processes(restored is not None):
            return None
        return self._shared(restored, template)

    def _newest(self, template: TrainState) -> tuple[TrainState, Progress] | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return self.restore(step, template)
            except UserError:
                raise
            except Exception as error:  # whatever a damaged file makes the reader raise
                logging.warning(
                    "checkpoint %s/%d is damaged: %s", self._folder, step, one_line(error)
                )
                self._damaged.add(step)
        if steps:
            raise UserError(
                f"{self._folder}: none of the checkpoints {sorted(steps)} can be read; restore "
                "them from a copy, or start again with another --workdir"
            )
        return None

    def _shared(
        self, restored: tuple[TrainState, Progress] | None, template: TrainState
    ) -> tuple[TrainState, Progress]:
        """What the primary process restored, in all processes."""
        empty = _like(template), Progress(0, 0.0, None)
        state, progress = restored or empty
        mean_map = np.nan if progress.mean_map is None else progress.mean_map
        leaves, structure = jax.tree.flatten(state)
        *leaves, epoch, seconds, mean_map = from_primary(
            [*leaves, np.int64(progress.epoch), np.float64(progress.seconds), np.float64(mean_map)]
        )
        progress = Progress(
            int(epoch), float(seconds), None if np.isnan(mean_map) else float(mean_map)
        )
        return jax.tree.unflatten(structure, leaves), progress

    def restore(self, step: int, template: TrainState) -> tuple[TrainState, Progress]:
        """The checkpoint of one step, in the primary process.

        Args:
          step: of the checkpoint.
          template: a state of the right structure, shapes and dtypes.

        Raises:
          UserError: if a stored array has another shape or dtype than in the template.
        """
        expected = _like(template)._asdict()
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(expected), progress=ocp.args.JsonRestore()
            ),
        )
        for (path, leaf), wanted in zip(
            jax.tree.leaves_with_path(restored.state), jax.tree.leaves(expected), strict=True
        ):
            if (leaf.shape, leaf.dtype) != (wanted.shape, wanted.dtype):
                raise UserError(
                    f"{self._folder}/{step}: {jax.tree_util.keystr(path)} is {leaf.dtype} "
                    f"{leaf.shape}, but the configuration needs {wanted.dtype} {wanted.shape}; "
                    "it is a checkpoint of another configuration, use another --workdir"
                )
        return type(template)(**restored.state), Progress(**restored.progress)


def _like(template: TrainState) -> TrainState:
    """Host arrays of the same shapes and dtypes."""
    return jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), jax.eval_shape(lambda: template)
    )


def _mean_map(metrics: dict[str, float]) -> float:
    return metrics["mean_map"]
