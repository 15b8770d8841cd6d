"""What a run shows: progress on the terminal, lines in a log, events for TensorBoard, a table."""

import importlib.util
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from aadml_jax.errors import UserError
from aadml_jax.training.evaluation import DIRECTIONS


class ProgressDisplay:
    """A progress bar over epochs on a terminal, plain lines elsewhere."""

    def __init__(self, num_epochs: int, first_epoch: int, *, shows: bool = True):
        """Starts at `first_epoch` of `num_epochs`; shows nothing unless it `shows`."""
        self._num_epochs = num_epochs
        self._shows = shows
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=num_epochs,
            initial=first_epoch,
            unit="epoch",
            disable=not (shows and self._is_terminal),
            dynamic_ncols=True,
        )

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
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}", refresh=False)
        self._bar.update(1)
        if report is not None or not self._is_terminal:
            self.write(line)

    def write(self, line: str) -> None:
        """Prints a line above the bar."""
        if not self._shows:
            return
        if self._is_terminal:
            tqdm.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Removes the bar's claim on the terminal."""
        self._bar.close()


class TensorBoard:
    """Scalars for TensorBoard, or nothing where it is off."""

    def __init__(self, folder: pathlib.Path, *, enabled: bool | None, last_step: int):
        """Opens `folder`/tensorboard.

        Args:
          folder: the run's folder.
          enabled: None writes if tensorboardX is installed.
          last_step: events of a former attempt after this step are hidden.

        Raises:
          UserError: if it is asked for and not installed.
        """
        installed = importlib.util.find_spec("tensorboardX") is not None
        if enabled and not installed:
            raise UserError(
                "--tensorboard needs the package tensorboardX; install aadml_jax[tensorboard] or "
                "leave the flag out"
            )
        self._writer = None
        if installed and enabled is not False:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(
                str(folder / "tensorboard"), purge_step=last_step + 1 if last_step else None
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        if self._writer is not None:
            self._writer.close()


def result_rows(result: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """What a result says of retrieval: the quantity, and its values by direction.

    Args:
      result: the content of result.json.
    """
    rows = [("MAP", result["map"]), ("prefix MAP", result["prefix_map"])]
    if result["bayes_reference"] is not None:
        rows.append(("Bayes reference (MAP)", result["bayes_reference_map"]))
    rows.append(("chance (MAP)", dict.fromkeys(DIRECTIONS, result["chance"])))
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
