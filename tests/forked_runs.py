"""`experiments.prepare` and small programs run many times, without starting Python each time.

A process that has imported what it needs forks for each run: flags are fresh, and memory is
limited. It is started and asked by `ForkedRuns`.
"""

import contextlib
import gc
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from typing import NamedTuple

from waiting import finish, poll

ROOT = pathlib.Path(__file__).parents[1]
MORE_MEMORY = 2**30


class Run(NamedTuple):
    """How a run ended.

    Attributes:
      status: of its end; a negative one is the number of the signal that ended it.
      output: what it printed.
      errors: what it printed to standard error.
      grown_bytes: of memory, at most, beyond those it began with.
      read_bytes: of files, each as often as it was read; those mapped into memory do not count.
    """

    status: int
    output: str
    errors: str
    grown_bytes: int
    read_bytes: int


class ForkedRuns:
    """The process that forks, as a context."""

    def __enter__(self):
        settings = {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_):
        finish(self._process)

    def run(self, program, *arguments):
        """Runs "prepare" with flags, "av_digits" on paths, or "code" on source and its words."""
        self._process.stdin.write(json.dumps([program, *map(str, arguments)]) + "\n")
        self._process.stdin.flush()
        return Run(**json.loads(self._process.stdout.readline()))


def _serve(replies):
    import aadml_jax.data.readers.av_digits
    import aadml_jax.data.readers.clip_files
    import aadml_jax.data.readers.video_records
    import aadml_jax.data.tfds_builders
    from experiments import command_line, prepare

    def main(program, arguments):
        sys.argv = [program]
        if program == "prepare":
            sys.argv += arguments
            command_line.run(prepare.main, flags_of=[prepare.Options])
        elif program == "code":
            sys.argv += arguments[1:]
            exec(arguments[0], {"__name__": "__main__"})
        else:
            open_av_digits = aadml_jax.data.readers.av_digits.open_av_digits
            command_line.run(lambda: open_av_digits(*arguments) and None)

    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        gc.freeze()  # so that forks share the memory of what was imported
        for line in sys.stdin:
            program, *arguments = json.loads(line)
            names = [os.path.join(folder, name) for name in ("output", "errors", "memory")]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
                child = os.fork()
            if not child:
                _become(main, program, arguments, names)
            read_bytes, status, used = _ended(child)
            output, errors, memory = (
                pathlib.Path(name).read_text(errors="replace") for name in names
            )
            grown = used.ru_maxrss * 1024 - int(memory)
            reply = Run(os.waitstatus_to_exitcode(status), output, errors, grown, read_bytes)
            print(json.dumps(reply._asdict()), file=replies, flush=True)


def _become(main, program, arguments, names):
    """What the child does; it never returns."""
    status = 1
    try:
        for stream, name in ((1, names[0]), (2, names[1])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        reserved, held = _memory_bytes()
        pathlib.Path(names[2]).write_text(str(held))
        most = reserved + MORE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            main(program, arguments)
            status = 0
        except SystemExit as error:
            status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


def _ended(child):
    """Waits for the end of a child; what it read, its status and what it used."""
    for _ in poll():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
    else:
        os.kill(child, signal.SIGKILL)
    read_bytes = _bytes_read_by(child)  # which is known until the child is waited for
    _, status, used = os.wait4(child, 0)
    return read_bytes, status, used


def _bytes_read_by(process):
    lines = pathlib.Path(f"/proc/{process}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def _memory_bytes():
    """Of this process: reserved, and in memory."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[:2]
    return [int(number) * resource.getpagesize() for number in pages]


if __name__ == "__main__":
    own_output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for a reply
    _serve(own_output)
