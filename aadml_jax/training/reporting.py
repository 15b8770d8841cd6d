"""What a run shows: progress on the terminal, lines in a log, events for TensorBoard, a table."""

import contextlib
import importlib.util
import pathlib
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from tqdm import tqdm

from aadml_jax.errors import one_line, require_extra
from aadml_jax.training.evaluation import DIRECTIONS

# A pipe without a reader, a terminal that is gone; a closed stream; no stream at all.
_CANNOT_BE_WRITTEN = (OSError, ValueError, AttributeError)
_SECONDS_BETWEEN_FLUSHES = 30.0


class ProgressDisplay:
    """A progress bar over epochs on a terminal, plain lines elsewhere.

    An output that cannot be written to, as of a closed terminal or a pipe without a reader, gets
    nothing more; it never raises.
    """

    def __init__(self, num_epochs: int, first_epoch: int, *, shows: bool = True):
        """Starts at `first_epoch` of `num_epochs`; shows nothing unless it `shows`."""
        self._num_epochs = num_epochs
        self._shows = shows
        self._bar = None
        with contextlib.suppress(*_CANNOT_BE_WRITTEN):
            if shows and sys.stderr.isatty():
                self._bar = tqdm(
                    total=num_epochs,
                    initial=first_epoch,
                    unit="epoch",
                    file=sys.stderr,
                    dynamic_ncols=True,
                )
        self._has_bar = self._bar is not None

    def epoch_done(self, epoch: int, values: Mapping[str, Any], report: Any | None) -> None:
        """Shows an epoch's mean objective and learning rate, and its MAP if it was evaluated."""
        line = (
            f"epoch {epoch:>{len(str(self._num_epochs))}}/{self._num_epochs}  "
            f"loss {values['loss']:.4f}  label {values['label_loss']:.4f}  "
            f"metric {values['metric_loss']:.4f}  lr {values['learning_rate']:.2g}"
        )
        if report is not None:
            maps = (report[direction]["map"] for direction in DIRECTIONS)
            line += "  MAP a→v {:.3f}  v→a {:.3f}  mean {:.3f}".format(*maps)
        if self._bar is not None:
            try:
                self._bar.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
                self._bar.update(1)
            except _CANNOT_BE_WRITTEN:
                self._give_up_bar()
        if report is not None or not self._has_bar:
            self.write(line)

    def write(self, line: str) -> None:
        """Prints a line above the bar."""
        if not self._shows:
            return
        try:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            line = line.encode(encoding, "replace").decode(encoding)
            if self._bar is not None:
                tqdm.write(line, file=sys.stdout)
            else:
                print(line, flush=True)
        except _CANNOT_BE_WRITTEN:
            self._shows = False

    def close(self) -> None:
        """Removes the bar's claim on the terminal."""
        if self._bar is not None:
            try:
                self._bar.close()
            except _CANNOT_BE_WRITTEN:
                self._give_up_bar()

    def _give_up_bar(self) -> None:
        if self._bar is not None:
            self._bar.disable = True  # so that it does not write when it is collected
        self._bar = None


class TensorBoard:
    """Scalars for TensorBoard, or nothing where it is off.

    They are an extra: where they cannot be written, the run goes on without them after a warning.
    """

    def __init__(self, folder: pathlib.Path, *, enabled: bool | None, last_step: int):
        """Opens a new file in `folder`/tensorboard.

        Args:
          folder: the run's folder.
          enabled: None writes if tensorboardX is installed.
          last_step: events of a former attempt after this step are hidden.

        Raises:
          UserError: if it is asked for and not installed.
        """
        if enabled:
            require_extra(
                "tensorboardX",
                "--tensorboard needs the package tensorboardX; install aadml_jax[tensorboard] or "
                "leave the flag out",
            )
        self._folder = folder / "tensorboard"
        self._file: Any = None  # open, a RecordWriter of tensorboardX
        if enabled or (enabled is None and importlib.util.find_spec("tensorboardX") is not None):
            self._attempt(lambda: self._open(last_step))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name."""
        if self._file is not None:
            self._attempt(lambda: self._write_scalars(step, values))

    def close(self) -> None:
        """Writes what is left to the disk, and closes the file."""
        if self._file is not None:
            self._attempt(self._file.flush)
            self._close()

    def _open(self, last_step: int) -> None:
        # Not its SummaryWriter, which writes in a thread: once that has died of a full disk, the
        # queue to it blocks the run.
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names, and two may begin in the same second.
        seconds, fraction = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{fraction:09d}"
        self._file = RecordWriter(str(self._folder / name))
        self._write_event(file_version="brain.Event:2")
        messages: Any = event_pb2  # made on import
        start = messages.SessionLog(status=messages.SessionLog.START)
        self._write_event(step=last_step + 1, session_log=start)
        self._file.flush()
        self._flushed = time.monotonic()

    def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write_event(step=step, summary=scalar(name, value))
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._file.flush()
            self._flushed = time.monotonic()

    def _write_event(self, **content: Any) -> None:
        from tensorboardX.proto import event_pb2

        messages: Any = event_pb2
        event = messages.Event(wall_time=time.time(), **content)
        self._file.write(event.SerializeToString())

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:
            logging.warning(
                "%s cannot be written (%s); the run goes on without TensorBoard events",
                self._folder,
                one_line(error),
            )
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
            self._file = None


def result_rows(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """What a result says of retrieval: the quantity, and its values by direction.

    Args:
      result: the content of result.json.
    """
    rows = [("MAP", result["map"]), ("prefix MAP", result["prefix_map"])]
    if result["bayes_reference"] is not None:
        rows.append(("Bayes reference (MAP)", result["bayes_reference_map"]))
    # Of clips that are no pairs it differs between the directions.
    chance = result.get("chance_map") or dict.fromkeys(DIRECTIONS, result["chance"])
    rows.append(("chance (MAP)", chance))
    return rows


def result_table(result: Mapping[str, Any]) -> str:
    """The final table: both directions, their mean, and the references to read them against.

    Args:
      result: the content of result.json.
    """
    lines = [f"{'':22}{'audio→visual':>14}{'visual→audio':>14}{'mean':>8}"]
    for name, values in result_rows(result):
        audio_to_visual, visual_to_audio, mean = (values[direction] for direction in DIRECTIONS)
        lines.append(f"{name:22}{audio_to_visual:>14.3f}{visual_to_audio:>14.3f}{mean:>8.3f}")
    return "\n".join(lines)
