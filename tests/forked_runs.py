"""`experiments.prepare` and small programs run many times, without starting Python each time.

A process that has imported what it needs forks for each run: flags are fresh, memory and processor
time are limited, and what stands still is killed. It is started and asked by `ForkedRuns`.
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
import time
import traceback
import warnings
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
MORE_MEMORY = 2**30
CPU_SECONDS = 20  # where less than one is needed
STANDING_SECONDS = 30


class Run(NamedTuple):
    """How a run ended; a negative status is the number of the signal that ended it."""

    status: int
    output: str
    errors: str
    grown_bytes: int


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
        self._process.communicate()

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
            status, used = _ended(child)
            output, errors, memory = (
                pathlib.Path(name).read_text(errors="replace") for name in names
            )
            grown = used.ru_maxrss * 1024 - int(memory)
            reply = Run(os.waitstatus_to_exitcode(status), output, errors, grown)
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
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
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
    """Waits for a child, and kills it where it waits for what never comes, as at a pipe.

    A slow machine is no reason: who waits for a processor is running.
    """
    seen, since = None, time.monotonic()
    while True:
        ended, status, used = os.wait4(child, os.WNOHANG)
        if ended:
            return status, used
        fields = pathlib.Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        state, spent = fields[0], fields[11:13]  # the times in user and in system mode
        if spent != seen or state == "R":
            seen, since = spent, time.monotonic()
        elif time.monotonic() - since > STANDING_SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _memory_bytes():
    """Of this process: reserved, and in memory."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[:2]
    return [int(number) * resource.getpagesize() for number in pages]


if __name__ == "__main__":
    own_output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for a reply
    _serve(own_output)
