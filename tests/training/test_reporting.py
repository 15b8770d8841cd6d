"""What a run shows: lines, bars, events and the table."""

import importlib.util
import io
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
