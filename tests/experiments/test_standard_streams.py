"""Outputs that cannot be written to: a reader that has gone, a full disk, no descriptor at all."""

import errno
import io
import os
import pty
import subprocess
import sys

import pytest
from running import ROOT
from waiting import finish

from experiments import standard_streams
from experiments.standard_streams import lasting_stream


@pytest.fixture
def pipe():
    """Both ends; those that a test closes itself may be closed."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError as error:
            assert error.errno == errno.EBADF


def test_what_is_written_arrives(pipe):
    reader, writer = pipe
    stream = lasting_stream(writer, None)
    stream.write("Σ 1\n")
    assert os.read(reader, 100) == "Σ 1\n".encode()
    assert (stream.fileno(), stream.isatty(), stream.encoding.lower()) == (writer, False, "utf-8")


def test_a_character_that_the_encoding_lacks_becomes_a_question_mark(pipe):
    reader, writer = pipe
    like = io.TextIOWrapper(io.BufferedWriter(io.BytesIO()), encoding="ascii", line_buffering=True)
    lasting_stream(writer, like).write("audio→visual\n")
    assert os.read(reader, 100) == b"audio?visual\n"


@pytest.mark.parametrize("buffering", [-1, 0])
def test_once_the_reader_has_gone_writing_goes_nowhere(pipe, buffering):
    reader, writer = pipe
    with io.TextIOWrapper(open(os.devnull, "wb", buffering), write_through=True) as like:
        stream = lasting_stream(writer, like)
    os.close(reader)
    for _ in range(3):
        print("a line", file=stream, flush=True)
    # What prints without Python, such as a library in C++, follows.
    assert os.fstat(writer).st_rdev == os.stat(os.devnull).st_rdev
    assert os.write(writer, b"more") == 4


def test_a_terminal_that_is_gone_is_like_a_reader_that_is(capfd):
    terminal, side = pty.openpty()
    stream = lasting_stream(side, None)
    assert stream.isatty()
    os.close(terminal)
    print("a line", file=stream, flush=True)
    assert not stream.isatty()
    os.close(side)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_told_once(capsys):
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = lasting_stream(descriptor, None)
    for _ in range(3):
        print("a line", file=stream, flush=True)
    os.close(descriptor)
    assert capsys.readouterr().err == (
        "warning: standard output cannot be written to (No space left on device); the command "
        "goes on without it\n"
    )


def test_a_full_pipe_that_does_not_block_is_waited_for(pipe, monkeypatch):
    reader, writer = pipe
    os.set_blocking(writer, False)
    text = b"0123456789" * 30_000  # a pipe holds 64 KiB
    read = []

    def wait(*_):
        read.append(os.read(reader, len(text)))

    monkeypatch.setattr(standard_streams.select, "select", wait)
    print(text.decode(), end="", file=lasting_stream(writer, None), flush=True)
    wait()
    assert len(read) > 1
    assert b"".join(read) == text


def test_streams_that_something_else_put_in_place_stay(monkeypatch):
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    monkeypatch.setattr(sys, "stderr", mine)
    standard_streams.make_lasting()
    assert sys.stdout is sys.stderr is mine


def test_a_command_without_standard_descriptors_gives_none_of_their_numbers_to_a_file(tmp_path):
    """And ends as usual, though it prints, with nothing said at its end."""
    program = (
        "import experiments, os, sys\n"
        f"number = os.open({str(tmp_path / 'file')!r}, os.O_RDWR | os.O_CREAT)\n"
        "print('words'); print('words', file=sys.stderr)\n"
        "os.write(number, str(number).encode())\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_a_command_in_a_pipe_outlives_its_reader():
    program = "import experiments, os; print(os.read(0, 1)); print('words')"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    _, errors = finish(process, b"x")
    assert (process.returncode, errors) == (0, b"")
