"""What a run shows: lines, bars, events and the table."""

import errno
import importlib.util
import io
import os
import sys

import pytest

from aadml_jax.errors import UserError
from aadml_jax.training import reporting
from aadml_jax.training.reporting import ProgressDisplay, TensorBoard, result_table

HAS_TENSORBOARD = importlib.util.find_spec("tensorboardX") is not None
VALUES = {"loss": 1.5, "label_loss": 1.0, "metric_loss": 0.5, "learning_rate": 1e-4}
REPORT = {
    "audio_to_visual": {"map": 0.25},
    "visual_to_audio": {"map": 0.5},
    "mean": {"map": 0.375},
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show_two_epochs():
    display = ProgressDisplay(12, 7)
    display.epoch_done(8, VALUES, None)
    display.epoch_done(9, VALUES, REPORT)
    display.close()


def test_without_a_terminal_each_epoch_is_a_plain_line(capsys):
    show_two_epochs()
    output, errors = capsys.readouterr()
    assert output.splitlines() == [
        "epoch  8/12  loss 1.5000  label 1.0000  metric 0.5000  lr 0.0001",
        "epoch  9/12  loss 1.5000  label 1.0000  metric 0.5000  lr 0.0001"
        "  MAP a→v 0.250  v→a 0.500  mean 0.375",
    ]
    assert errors == ""


def test_on_a_terminal_a_bar_moves_and_only_evaluations_are_lines(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_two_epochs()
    assert capsys.readouterr().out.splitlines() == [
        "epoch  9/12  loss 1.5000  label 1.0000  metric 0.5000  lr 0.0001"
        "  MAP a→v 0.250  v→a 0.500  mean 0.375"
    ]
    assert "9/12" in terminal.getvalue()
    assert "loss 1.5000" in terminal.getvalue()


def test_table_shows_directions_mean_and_references():
    maps = {"audio_to_visual": 0.1234, "visual_to_audio": 0.5, "mean": 0.3117}
    result = {
        "map": maps,
        "prefix_map": {name: value + 0.1 for name, value in maps.items()},
        "chance": 0.1,
        "bayes_reference": 0.9,
        "bayes_reference_map": dict.fromkeys(maps, 0.9),
    }
    rows = [line.split() for line in result_table(result).splitlines()]
    assert rows == [
        ["audio→visual", "visual→audio", "mean"],
        ["MAP", "0.123", "0.500", "0.312"],
        ["prefix", "MAP", "0.223", "0.600", "0.412"],
        ["Bayes", "reference", "(MAP)", "0.900", "0.900", "0.900"],
        ["chance", "(MAP)", "0.100", "0.100", "0.100"],
    ]
    without = result_table({**result, "bayes_reference": None, "bayes_reference_map": None})
    assert "Bayes" not in without
    assert len({len(line) for line in without.splitlines()}) == 1


class Broken(io.StringIO):
    """An output whose every use fails, as a terminal that is gone or a pipe without a reader."""

    def __init__(self, error, is_terminal=False):
        super().__init__()
        self.error, self.is_terminal, self.attempts = error, is_terminal, 0

    def isatty(self):
        return self.is_terminal

    def write(self, *text):
        self.attempts += 1
        raise self.error

    flush = write


FAILURES = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_lines_that_cannot_be_written_are_given_up(monkeypatch, error):
    output = Broken(error)
    monkeypatch.setattr(sys, "stdout", output)
    show_two_epochs()
    assert output.attempts == 1


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_bar_that_cannot_be_drawn_is_given_up_and_lines_go_on(monkeypatch, capsys, error):
    monkeypatch.setattr(sys, "stderr", Broken(error, is_terminal=True))
    show_two_epochs()
    assert "epoch  9/12" in capsys.readouterr().out


def test_a_terminal_that_goes_away_is_given_up(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    display = ProgressDisplay(12, 7)
    display.epoch_done(8, VALUES, None)
    terminal.close()
    display.epoch_done(9, VALUES, REPORT)
    display.close()
    assert "epoch  9/12" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("stream", [None, "closed"])
def test_streams_that_are_not_there_are_done_without(monkeypatch, name, stream):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, name, stream)
    show_two_epochs()


def test_an_output_that_knows_no_arrows_gets_the_line_all_the_same(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", newline="\n"))
    show_two_epochs()
    assert raw.getvalue().decode().splitlines()[1].endswith("MAP a?v 0.250  v?a 0.500  mean 0.375")


def events_in(folder):
    """The events of all files in the order in which TensorBoard reads them."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            # A record: its length, a checksum, the bytes, a checksum.
            length = int.from_bytes(content[:8], "little")
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


def shown_losses(folder):
    """What TensorBoard shows: a session that starts at a step hides all earlier events from it."""
    shown = []
    for event in events_in(folder):
        if event.HasField("session_log") and event.session_log.status == 1:
            shown = [(step, value) for step, value in shown if step < event.step]
        shown += [(event.step, v.simple_value) for v in event.summary.value if v.tag == "loss"]
    return shown


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboardX is not installed")
@pytest.mark.parametrize("last_step", [0, 10])
def test_what_a_killed_attempt_wrote_after_its_checkpoint_is_hidden(tmp_path, last_step):
    first = TensorBoard(tmp_path, enabled=True, last_step=0)
    for step in (5, 10, 15, 20):
        first.write(step, {**VALUES, "loss": step / 2})
    first.close()
    second = TensorBoard(tmp_path, enabled=True, last_step=last_step)
    second.write(15, {**VALUES, "loss": 0.25})
    second.close()
    kept = [(5, 2.5), (10, 5.0)] if last_step else []
    assert shown_losses(tmp_path) == [*kept, (15, 0.25)]


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboardX is not installed")
def test_events_that_cannot_be_written_cost_a_warning(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way")
    events = TensorBoard(tmp_path, enabled=True, last_step=0)
    events.write(5, VALUES)
    events.close()
    assert [message.split(" (")[0] for message in caplog.messages] == [
        f"{tmp_path / 'tensorboard'} cannot be written"
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboardX is not installed")
def test_a_disk_that_fills_up_costs_the_events_alone(tmp_path, monkeypatch, caplog):
    from tensorboardX import record_writer

    monkeypatch.setattr(reporting, "_SECONDS_BETWEEN_FLUSHES", 0.0)
    events = TensorBoard(tmp_path, enabled=True, last_step=0)
    events._file.close()
    events._file = record_writer.RecordWriter("/dev/full")
    # More than the queue of the package's own writer takes.
    for step in range(40):
        events.write(step, VALUES)
    events.close()
    (said,) = caplog.messages
    assert "No space left on device" in said and "goes on without TensorBoard" in said


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="tensorboardX is not installed")
def test_events_are_written_where_tensorboard_is_installed(tmp_path):
    events = TensorBoard(tmp_path, enabled=None, last_step=0)
    events.write(5, VALUES)
    events.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"label_loss" in file.read_bytes()


def test_no_events_when_switched_off(tmp_path):
    events = TensorBoard(tmp_path, enabled=False, last_step=0)
    events.write(5, VALUES)
    events.close()
    assert not (tmp_path / "tensorboard").exists()


def test_events_that_are_asked_for_need_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"aadml_jax\[tensorboard\]"):
        TensorBoard(tmp_path, enabled=True, last_step=0)
    events = TensorBoard(tmp_path, enabled=None, last_step=0)
    events.write(5, VALUES)
    events.close()
    assert not (tmp_path / "tensorboard").exists()
