"""The run folder: lock, whole files, and a log in which no line is lost or doubled."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from aadml_jax.errors import UserError
from aadml_jax.training import run_folder
from aadml_jax.training.run_folder import (
    METRICS_FILE,
    MetricLog,
    RunFolder,
    read_run_json,
    require_same_folder,
    versions,
)


def lines(folder):
    return [json.loads(line) for line in (folder.path / METRICS_FILE).read_text().splitlines()]


def test_folder_is_created_with_its_parents(tmp_path):
    with RunFolder(tmp_path / "a" / "b") as folder:
        assert folder.path == tmp_path / "a" / "b"
        assert folder.path.is_dir()


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*file/run cannot be written to .*another"):
        RunFolder(tmp_path / "file" / "run")


def test_a_read_only_folder_is_an_error_and_stays_as_it_is(tmp_path, monkeypatch):
    # Permissions do not stop an administrator, so the file system's answer is played.
    with RunFolder(tmp_path) as folder:
        folder.write_json("result.json", {"kept": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot be written to \(Read-only file system\)"):
        RunFolder(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_mark_tells_one_folder_from_another(tmp_path, monkeypatch):
    with RunFolder(tmp_path / "a") as writer:
        require_same_folder(writer)
        assert RunFolder(tmp_path / "a", is_writer=False).read_mark() == writer.read_mark() != 0
        (tmp_path / "b").mkdir()
        elsewhere = RunFolder(tmp_path / "b", is_writer=False)
        assert elsewhere.read_mark() == 0
        monkeypatch.setattr(run_folder, "broadcast", lambda arrays: [writer.read_mark()])
        with pytest.raises(UserError, match=r"b must be one folder that all processes of the run"):
            require_same_folder(elsewhere)


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    with RunFolder(tmp_path), pytest.raises(UserError, match="in use by another process"):
        RunFolder(tmp_path)
    with RunFolder(tmp_path):
        pass


def test_a_killed_holder_leaves_the_folder_free(tmp_path):
    code = (
        "import sys, os; from aadml_jax.training.run_folder import RunFolder;"
        "folder = RunFolder(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    with RunFolder(tmp_path):
        pass


def test_json_is_replaced_as_a_whole(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_json("x.json", {"a": 1})
        with pytest.raises(TypeError):
            folder.write_json("x.json", {"a": object()})
        assert read_run_json(folder.path, "x.json") == {"a": 1}


def test_damaged_or_missing_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"a":')
    with pytest.raises(UserError, match=r"x\.json is damaged"):
        read_run_json(tmp_path, "x.json")
    (tmp_path / "x.json").write_text('{"a": NaN}')
    with pytest.raises(UserError, match=r"x\.json is damaged \(it holds NaN"):
        read_run_json(tmp_path, "x.json")
    with pytest.raises(UserError, match=r"y\.json cannot be read .*train first.*--workdir"):
        read_run_json(tmp_path, "y.json")


def test_log_drops_lines_after_the_checkpoint_and_torn_ones(tmp_path):
    with RunFolder(tmp_path) as folder:
        log = MetricLog(folder, last_step=0)
        for step in (5, 10, 15):
            log.write(step, {"loss": step / 2})
        log.sync()
        log.close()
        with open(folder.path / METRICS_FILE, "a") as file:
            file.write('{"step": 20, "lo')
        log = MetricLog(folder, last_step=10)
        log.write(15, {"loss": 7.5})
        log.close()
        assert lines(folder) == [{"step": step, "loss": step / 2} for step in (5, 10, 15)]


def test_log_of_a_fresh_run_is_empty(tmp_path):
    with RunFolder(tmp_path) as folder:
        (folder.path / METRICS_FILE).write_text('{"step": 5}\n')
        MetricLog(folder, last_step=0).close()
        assert lines(folder) == []


def test_a_log_of_something_else_is_refused_and_stays(tmp_path):
    with RunFolder(tmp_path) as folder:
        text = '{"step": 5}\nnotes of mine\n{"step": 10}\n'
        (folder.path / METRICS_FILE).write_text(text)
        with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not a line of this log"):
            MetricLog(folder, last_step=10)
        assert (folder.path / METRICS_FILE).read_text() == text


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_folder_is_used_after_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunFolder(tmp_path) as folder:
        require_same_folder(folder)
        assert folder.mark() == folder.read_mark()
        folder.write_json("x.json", {"a": 1})
    (said,) = caplog.messages
    assert said.startswith(f"--workdir={tmp_path} is on a file system that cannot lock files")
    assert os.strerror(number) in said and "\n" not in said


def test_a_lock_that_fails_otherwise_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"is not to be locked \(Input/output error\); choose"):
        RunFolder(tmp_path)


def test_a_lock_that_another_holds_over_a_network_is_in_use(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="in use by another process"):
        RunFolder(tmp_path)


def test_json_that_is_no_object_is_damaged(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match=r"x\.json is damaged \(it holds no object\)"):
        read_run_json(tmp_path, "x.json")


def test_not_a_number_is_never_written(tmp_path):
    with RunFolder(tmp_path) as folder, pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("x.json", {"map": float("nan")})


def test_versions_name_what_decides_the_bytes():
    assert {"aadml_jax", "python", "jax", "jaxlib", "flax", "optax", "numpy"} <= set(versions())
