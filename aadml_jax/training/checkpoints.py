"""Checkpoints of a run: host arrays, written in the background, complete or not there at all.

A checkpoint holds NumPy arrays, the form that restores unchanged on another number of devices or
another backend. Orbax writes it under a temporary name and renames it when it is complete, so that
a run killed at any moment leaves whole checkpoints only. The newest two and the best are kept: the
second newest is what a run falls back to if the newest was damaged on disk.

Beside the arrays lies a record of their names, dtypes and shapes, with a digest of their bytes: a
bit that changed on disk is found on restoring, and a checkpoint of other arrays is told from a
damaged one. What the towers' outputs depend on has a digest of its own, so that it is restored and
checked without the rest. Checkpoints of versions that wrote no digest are restored without the
check.

Of the processes of a run, which all hold the whole state, the primary one writes and reads; the
others get from it what it has read. So no two of them can take a different view of what is on disk.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from aadml_jax.errors import UserError, one_line
from aadml_jax.training.processes import allreduce_max, broadcast, fail_together, is_primary
from aadml_jax.training.state import TrainedTowers, TrainState

FOLDER = "checkpoints"
_KEPT_LATEST = 2
# Of a checkpoint the whole, or the part that is used after training.
_State = TypeVar("_State", TrainState, TrainedTowers)


class _Damaged(Exception):
    """A checkpoint is not what was written."""


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


def has_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether a run folder holds any checkpoint, readable or not."""
    return any(path.name.isdecimal() for path in (workdir / FOLDER).glob("*"))


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
        self._mean_maps: dict[int, float | None] = {}
        self._folder = workdir.absolute() / FOLDER
        self._manager: ocp.CheckpointManager | None = None
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
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_NewestAndBest(self),
                create=False,
                enable_async_checkpointing=not read_only,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}
                ),
            ),
        )
        for step in self._manager.all_steps():
            try:
                self._mean_maps[step] = self._record(step)["mean_map"]
            except _Damaged as error:
                self._report_damage(step, error)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._manager is not None:
            self._manager.close()

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
        self._mean_maps[step] = progress.mean_map
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(host),
                progress=ocp.args.JsonSave(_record_of(host, progress)),
            ),
            force=True,
        )

    def wait(self) -> None:
        """Waits until everything saved is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def best(self) -> tuple[int, float] | None:
        """Step and mean MAP of the best evaluated checkpoint; None if none was evaluated."""
        self.wait()
        step = self._best_step()
        mean_map = np.nan if step is None else self._mean_maps[step]
        best, best_map = broadcast([np.int64(step or 0), np.float64(mean_map)])
        return None if np.isnan(best_map) else (int(best), float(best_map))

    def _best_step(self) -> int | None:
        """Of several that are equally good, the newest."""
        maps = {step: value for step, value in self._mean_maps.items() if value is not None}
        return max(maps, key=lambda step: (maps[step], step), default=None)

    def restore_latest(self, template: _State) -> tuple[_State, Progress] | None:
        """The newest checkpoint that can be read; None if there is none at all.

        A damaged one is reported on the log, and the one before it is tried. It stays on disk until
        the run comes to its step again.

        Args:
          template: a state of the right structure, shapes and dtypes; of `TrainedTowers` nothing
            else is read.

        Raises:
          UserError: in every process, if checkpoints exist but none can be read, or they are of
            another shape.
        """
        restored = fail_together(
            lambda: self._newest(template),
            f"{self._folder}: the first process of this run cannot restore a checkpoint; its own "
            "message says why",
        )
        if not allreduce_max(restored is not None):
            return None
        return self._broadcast(restored, template)

    def _newest(self, template: _State) -> tuple[_State, Progress] | None:
        """What `restore_latest` returns, in the primary process; None in the others."""
        if self._manager is None:
            return None
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            if step in self._damaged:
                continue
            try:
                return self._read(step, template)
            except _Damaged as error:
                self._report_damage(step, error)
        if steps:
            raise UserError(
                f"{self._folder}: none of the checkpoints {sorted(steps)} can be read; restore "
                "them from a copy, or start again with another --workdir"
            )
        return None

    def _broadcast(
        self, restored: tuple[_State, Progress] | None, template: _State
    ) -> tuple[_State, Progress]:
        """What the primary process restored, in every process."""
        empty = _like(template), Progress(0, 0.0, None)
        state, progress = restored or empty
        mean_map = np.nan if progress.mean_map is None else progress.mean_map
        leaves, structure = jax.tree.flatten(state)
        *leaves, epoch, seconds, mean_map = broadcast(
            [*leaves, np.int64(progress.epoch), np.float64(progress.seconds), np.float64(mean_map)]
        )
        progress = Progress(
            int(epoch), float(seconds), None if np.isnan(mean_map) else float(mean_map)
        )
        return jax.tree.unflatten(structure, leaves), progress

    def restore(self, step: int, template: _State) -> tuple[_State, Progress]:
        """The checkpoint of one step, in the primary process.

        Args:
          step: of the checkpoint.
          template: see `restore_latest`.

        Raises:
          UserError: if it is damaged, or is one of other arrays than those of the template.
        """
        try:
            return self._read(step, template)
        except _Damaged as error:
            raise UserError(
                f"checkpoint {self._folder}/{step} is damaged ({error}); restore it from a copy, "
                "or evaluate the newest with --which=latest"
            ) from error

    def _read(self, step: int, template: _State) -> tuple[_State, Progress]:
        record = self._record(step)
        expected = _like(template)._asdict()
        wanted = _described(expected)
        is_whole = isinstance(template, TrainState)

        def require_same_arrays(leaves: dict[str, str]) -> None:
            found = {name: of for name, of in leaves.items() if name.split("/")[0] in expected}
            self._require_same_arrays(step, found, wanted)

        if "leaves" in record:
            require_same_arrays(record["leaves"])
        try:
            if is_whole:
                restored = self._restored(step, state=ocp.args.StandardRestore(expected))["state"]
            else:
                restored = self._restored_part(step, expected)
            found = _described(restored)
        except Exception as error:  # whatever a damaged file makes the reader raise
            if "leaves" not in record:
                require_same_arrays(self._names_on_disk(step))
            raise _Damaged(one_line(error)) from error
        progress = Progress(*(record[field.name] for field in dataclasses.fields(Progress)))
        if "leaves" not in record:
            require_same_arrays(found)
        elif is_whole:
            digest = _digest(restored, found, dataclasses.asdict(progress))
            self._require_as_written(found == wanted and digest == record["digest"])
        else:
            # A version without this digest wrote that of all arrays alone.
            digest = _digest(restored, found)
            self._require_as_written(
                found == wanted and digest == record.get("towers_digest", digest)
            )
        return type(template)(**restored), progress

    def _require_as_written(self, is_right: bool) -> None:
        if not is_right:
            raise _Damaged("its arrays are not those that were written")

    def _restored(self, step: int, **args: ocp.args.CheckpointArgs) -> Any:
        """Parts of a checkpoint by their names, in the primary process."""
        if self._manager is None:
            raise ValueError("only the primary process restores checkpoints")
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    def _restored_part(self, step: int, expected: dict[str, Any]) -> dict[str, Any]:
        """Some of the arrays of a checkpoint, the others being left on disk."""
        folder: Any = self._folder / str(step) / "state"
        as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), expected)
        return ocp.PyTreeCheckpointHandler().restore(
            folder,
            args=ocp.args.PyTreeRestore(expected, restore_args=as_arrays, partial_restore=True),
        )

    def _record(self, step: int) -> dict[str, Any]:
        """What was written beside the arrays.

        Raises:
          _Damaged: if it is not that any more.
        """
        try:
            record = self._restored(step, progress=ocp.args.JsonRestore())["progress"]
            fields = {field.name for field in dataclasses.fields(Progress)}
            # A version without digests wrote the progress alone.
            if set(record) != fields and record.pop("check") != _digest_of_record(record):
                raise ValueError("its record is not the one that was written")
            return record
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise _Damaged(one_line(error)) from error

    def _report_damage(self, step: int, error: _Damaged) -> None:
        logging.warning("checkpoint %s/%d is damaged: %s", self._folder, step, error)
        self._damaged.add(step)
        self._mean_maps.pop(step, None)

    def _names_on_disk(self, step: int) -> dict[str, str]:
        """Names and shapes of the arrays of a checkpoint without a record of them."""
        folder: Any = self._folder / str(step) / "state"
        metadata = ocp.StandardCheckpointHandler().metadata(folder)
        return _described(metadata)

    def _require_same_arrays(
        self, step: int, found: dict[str, str], wanted: dict[str, str]
    ) -> None:
        for name in (*wanted, *found):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"{self._folder}/{step}: {name} is {found.get(name, 'missing')}, but the "
                    f"configuration needs {wanted.get(name, 'none')}; it is a checkpoint of "
                    "another configuration, use another --workdir"
                )


class _NewestAndBest:
    """Which checkpoints Orbax keeps: the newest two that are sound, the best, and damaged ones."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """As `orbax.checkpoint.checkpoint_managers.PreservationPolicy` has it."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        damaged = self._checkpoints._damaged
        newest = [step for step in steps if step not in damaged][-_KEPT_LATEST:]
        best = self._checkpoints._best_step()
        return [step in newest or step in damaged or step == best for step in steps]


def _record_of(host: dict[str, Any], progress: Progress) -> dict[str, Any]:
    leaves = _described(host)
    towers = {name: host[name] for name in TrainedTowers._fields}
    record = {
        **dataclasses.asdict(progress),
        "leaves": leaves,
        "digest": _digest(host, leaves, dataclasses.asdict(progress)),
        "towers_digest": _digest(towers, _described(towers)),
    }
    return {**record, "check": _digest_of_record(record)}


def _described(tree: Any) -> dict[str, str]:
    """Dtype and shape of each array by its name, such as "float32 (128, 10)"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {leaf.shape}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _digest(host: Any, *described: dict[str, Any]) -> str:
    """Digest of host arrays, and of what describes them."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(described, sort_keys=True).encode())
    for leaf in jax.tree.leaves(host):
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest_of_record(record: dict[str, Any]) -> str:
    """Digest of the record alone, so that a damaged one is not taken for one of other arrays."""
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _like(template: _State) -> _State:
    """Host arrays of the same shapes and dtypes."""
    return jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), jax.eval_shape(lambda state: state, template)
    )
