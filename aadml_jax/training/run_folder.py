"""The folder of a run: its lock, its JSON files and its line-by-line metric log."""

import contextlib
import itertools
import json
import os
import pathlib
import platform
import secrets
import tempfile
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from aadml_jax._files import held_lock, local_path, written_as_a_whole
from aadml_jax._version import __version__
from aadml_jax.errors import UserError
from aadml_jax.training.processes import allreduce_max, broadcast

CONFIG_FILE = "config.json"
RESULT_FILE = "result.json"
METRICS_FILE = "metrics.jsonl"
_LOCK_FILE = ".lock"


class RunFolder:
    """A run's folder, held by one run at a time; a context manager.

    Attributes:
      path: of the folder.
      is_writer: whether this process writes its files.
    """

    def __init__(self, path: str | os.PathLike[str], *, is_writer: bool = True):
        """Creates the folder if need be, and locks it.

        Args:
          path: of the folder; `~` is expanded.
          is_writer: False for the further processes of a run, which neither lock nor write.

        Raises:
          UserError: if it cannot be created or written to, or another process holds it.
        """
        self.path = local_path(path)
        self.is_writer = is_writer
        self._held = contextlib.ExitStack()
        if not is_writer:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass  # an existing lock file would not show that the folder is read-only
            self._lock = self._held.enter_context(
                held_lock(self.path / _LOCK_FILE, f"--workdir={path} is")
            )
        except OSError as error:
            raise UserError(
                f"--workdir={path} cannot be written to ({error.strerror}); choose another folder"
            ) from error

    def mark(self) -> int:
        """Leaves a new random number in the folder."""
        number = secrets.randbits(63)
        self._lock.truncate(0)
        self._lock.write(str(number))
        self._lock.flush()
        os.fsync(self._lock.fileno())
        return number

    def read_mark(self) -> int:
        """The number that was left last; 0 if there is none."""
        try:
            return int((self.path / _LOCK_FILE).read_text())
        except (OSError, ValueError):
            return 0

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file as a whole: a reader sees the old content or the new one.

        Does nothing where this process is not the folder's writer.
        """
        if not self.is_writer:
            return
        with written_as_a_whole(self.path / name) as file:
            json.dump(content, file, indent=2, allow_nan=False)
            file.write("\n")

    def set_aside(self, name: str) -> str | None:
        """Renames a file to one with the next free number, such as result.1.json for result.json.

        Returns:
          The new name; None if there is no such file or this process is not the folder's writer.
        """
        path = self.path / name
        if not self.is_writer or not path.exists():
            return None
        numbered = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
        free = next(other for other in numbered if not other.exists())
        path.rename(free)
        return free.name


def left_by_a_run(folder: pathlib.Path) -> list[str]:
    """Which files, beside any checkpoints, show that a run came to the end of an epoch here."""
    found = []
    with contextlib.suppress(OSError):
        if (folder / METRICS_FILE).stat().st_size:
            found.append(METRICS_FILE)
    if (folder / RESULT_FILE).exists():
        found.append(RESULT_FILE)
    return found


def require_same_folder(folder: RunFolder) -> None:
    """Checks that all processes of a run see one folder; every one of them must call this.

    Raises:
      UserError: in every process, if one does not.
    """
    number = np.int64(folder.mark() if folder.is_writer else 0)
    (expected,) = broadcast([number])
    if allreduce_max(folder.read_mark() != expected):
        raise UserError(
            f"--workdir={folder.path} must be one folder that all processes of the run see; put it "
            "on a file system that they share"
        )


def read_run_json(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Reads a JSON file of a run folder.

    Raises:
      UserError: if the file is missing or damaged.
    """
    path = folder / name
    try:
        content = json.loads(path.read_text(), parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); train first, or give the folder of a run "
            "(its --workdir)"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); restore it from a copy, or use another folder"
        ) from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number of JSON")


class MetricLog:
    """`metrics.jsonl`: one JSON object a line, in the order of the steps.

    A resumed run goes back to its last checkpoint; the lines written after it are dropped, so that
    none is lost and none stands twice. Where this process is not the folder's writer, nothing is
    written.
    """

    def __init__(self, folder: RunFolder, *, last_step: int):
        """Opens the log for appending after `last_step`; later or torn lines are dropped."""
        self._file = None
        if not folder.is_writer:
            return
        path = folder.path / METRICS_FILE
        with written_as_a_whole(path) as file:
            file.writelines(_lines_up_to(path, last_step))
        self._file = open(path, "a")  # noqa: SIM115 (held until close)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Forces the lines to the disk: to be called before the checkpoint that follows them."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _lines_up_to(path: pathlib.Path, last_step: float) -> list[str]:
    """The lines of a log up to a step; a last line torn by a crash is left out.

    Raises:
      UserError: if another line is not one of this log.
    """
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise UserError(
                    f"{path}: line {number} is not a line of this log; move the file away"
                ) from None
    return kept


def environment() -> dict[str, Any]:
    """Settings from outside that can change the bytes of a run, as config.json records them."""
    config: Any = jax.config  # whose values are made on import
    return {
        "enable_x64": bool(config.jax_enable_x64),
        "default_matmul_precision": config.jax_default_matmul_precision,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def versions() -> dict[str, str]:
    """Versions that decide the bytes of a run."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "aadml_jax": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }
