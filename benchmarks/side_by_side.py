"""What the measurements share: subjects timed in turn in one process, and tables of the result.

Every subject runs once per round, after a warm-up; the first of each round and the direction
change from round to round, so that no subject always follows the same neighbour. Noise of the
machine then falls on all of them alike, and what is left of it shows in the spread between minimum
and maximum, in the load average at the start and at the end, and in the cores that other processes
kept busy meanwhile. Processor time counts threads that wait by spinning too, for some milliseconds
even those of the subject before.

What cannot be run stays in the table as a row that says why.
"""

import contextlib
import dataclasses
import gc
import importlib
import math
import os
import platform
import statistics
import time
import types
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

import jax
from absl import flags

from aadml_jax.training.run_folder import versions

_GIB = 2**30
_PEER_PACKAGES = ("torch", "pytorch-metric-learning", "torchmetrics", "scikit-learn")
_REASON_LENGTH = 120
# Shorter calls are repeated within a measurement: clocks, and what the neighbour's threads still do
# in the first milliseconds, would show.
_SHORTEST_SECONDS = 0.05
_MOST_REPEATS = 200
_QUIET_CORES = 0.1


def define_flags(*, rounds: int) -> None:
    """Defines the flags that every comparison has.

    Args:
      rounds: default of --rounds.
    """
    flags.DEFINE_integer(
        "rounds", rounds, "rounds, each measuring every subject once", lower_bound=1
    )
    flags.DEFINE_float(
        "seconds_per_subject",
        60.0,
        "a subject that has used up this time gets no further round (it always gets one)",
        lower_bound=0.0,
    )
    flags.DEFINE_float(
        "memory_limit_gib",
        12.0,
        "a subject that by arithmetic needs more is not run",
        lower_bound=0.0,
    )
    flags.DEFINE_bool("peers", True, "measure the other libraries too, if they are installed")


class NotRunError(Exception):
    """A subject that is left out; the message says why and becomes its row."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Attributes:
      name: of the row.
      prepare: builds and checks what is measured, and returns the call to be timed.
      units: how many units (steps, say) one call does; times are given per unit.
      needs_bytes: memory that a call takes, as far as arithmetic tells.
      compiles: whether the first call compiles. One that does not and is slower than
        --seconds_per_subject is not called again: its first call is its only round.
      note: for the last column.
    """

    name: str
    prepare: Callable[[], Callable[[], object]]
    units: float = 1
    needs_bytes: float = 0
    compiles: bool = False
    note: str = ""


@dataclasses.dataclass
class Result:
    """What was measured of one subject.

    Attributes:
      subject: the subject.
      walls: wall seconds per unit, one number a round.
      processors: processor seconds per unit, of all threads.
      first_output: what the first call returned.
      reason: why there are no times; empty if there are.
    """

    subject: Subject
    walls: list[float] = dataclasses.field(default_factory=list)
    processors: list[float] = dataclasses.field(default_factory=list)
    first_output: object = None
    reason: str = ""

    @property
    def wall(self) -> float:
        """Median of the wall seconds per unit."""
        return statistics.median(self.walls)

    def cells(self, *, scale: float = 1e3, digits: int = 1) -> tuple[str, str, str]:
        """Wall time as "median (min–max)", median of the processor time, and count of rounds.

        Args:
          scale: factor to seconds: 1e3 gives milliseconds.
          digits: after the point.
        """
        if self.reason:
            return "–", "–", "–"
        low, high = min(self.walls), max(self.walls)
        wall, low, high, processor = (
            f"{scale * seconds:,.{digits}f}"
            for seconds in (self.wall, low, high, statistics.median(self.processors))
        )
        return f"{wall} ({low}–{high})", processor, str(len(self.walls))

    @property
    def remark(self) -> str:
        """The subject's note, or why it has no times."""
        return self.reason or self.subject.note


def timed(run: Callable[[], object], repeats: int = 1) -> tuple[float, float, object]:
    """Wall seconds and processor seconds (of all threads) of one call, and its output."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        output = run()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return wall / repeats, processor / repeats, output


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, NotRunError):
        return f"not run: {text}"
    text = f"failed: {type(error).__name__}: {text}"
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 1] + "…"


def _warm_up(
    result: Result, limit: float, memory_gib: float
) -> tuple[Callable[[], object], int] | None:
    """Prepares and calls a subject; None if there is nothing (more) to measure.

    Returns:
      The call, and how often it is to be repeated within one measurement.
    """
    subject = result.subject
    if subject.needs_bytes > memory_gib * _GIB:
        result.reason = (
            f"not run: needs {format_bytes(subject.needs_bytes)}, above the limit of "
            f"{memory_gib:g} GiB"
        )
        return None
    try:
        run = subject.prepare()
        wall, processor, result.first_output = timed(run)
        again = timed(run)[0] if wall < 10 * _SHORTEST_SECONDS else wall
    except Exception as error:  # one subject's failure is a row of the table, not the end
        result.reason = _reason(error)
        return None
    if wall > limit and not subject.compiles:
        result.walls.append(wall / subject.units)
        result.processors.append(processor / subject.units)
        return None
    return run, min(_MOST_REPEATS, math.ceil(_SHORTEST_SECONDS / again))


def measure(
    subjects: Sequence[Subject],
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    memory_gib: float | None = None,
) -> list[Result]:
    """Times all subjects in turn, after a warm-up of each.

    Args:
      subjects: what to measure.
      rounds: how often; default --rounds.
      seconds: a subject that has used up this time gets no further round; default
        --seconds_per_subject.
      memory_gib: a subject that by arithmetic needs more is not run; default --memory_limit_gib.

    Returns:
      One result per subject, in their order.
    """
    rounds = flags.FLAGS.rounds if rounds is None else rounds
    limit = flags.FLAGS.seconds_per_subject if seconds is None else seconds
    memory_gib = flags.FLAGS.memory_limit_gib if memory_gib is None else memory_gib
    results = [Result(subject) for subject in subjects]
    running = []
    for result in results:
        if (call := _warm_up(result, limit, memory_gib)) is not None:
            running.append((result, *call))
        gc.collect()
    for number in range(rounds):
        first = number // 2 % max(1, len(running))
        order = running[first:] + running[:first]
        for result, run, repeats in order if number % 2 == 0 else reversed(order):
            used = sum(result.walls) * result.subject.units * repeats
            if result.reason or (result.walls and used * (1 + 1 / len(result.walls)) > limit):
                continue
            try:
                wall, processor, _ = timed(run, repeats)
            except Exception as error:
                result.reason = _reason(error)
                continue
            result.walls.append(wall / result.subject.units)
            result.processors.append(processor / result.subject.units)
    return results


class Table:
    """A Markdown table printed row by row, with columns aligned for a terminal as well."""

    def __init__(self, *columns: tuple[str, int]) -> None:
        """Prints the head.

        Args:
          *columns: title and width; a negative width aligns to the left.
        """
        self._widths = [
            -max(-width, len(title)) if width < 0 else max(width, len(title))
            for title, width in columns
        ]
        print()
        self.row(*(title for title, _ in columns))
        rules = (
            ":" + "-" * (-width - 1) if width < 0 else "-" * (width - 1) + ":"
            for width in self._widths
        )
        self.row(*rules)

    def row(self, *cells: str) -> None:
        """Prints one row; a cell wider than its column moves the rest of its line only."""
        padded = (
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, width in zip(cells, self._widths, strict=True)
        )
        print(f"| {' | '.join(padded)} |", flush=True)


def format_bytes(count: float) -> str:
    """A number of bytes in MiB or GiB."""
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.1f} MiB"


def load_peers(name: str) -> types.ModuleType | None:
    """The module `benchmarks.<name>` of the other libraries; None, with a line, without them."""
    if not flags.FLAGS.peers:
        return None
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ImportError as error:
        print(f'The other libraries are left out ({error}): pip install -e ".[bench]"')
        return None


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The name of the machine's CPU."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _load() -> str:
    return f"1-minute load average {os.getloadavg()[0]:.2f}"


def _busy_seconds() -> float | None:
    """Processor seconds that the machine has spent outside this process; None where unknown."""
    try:
        with open("/proc/stat") as lines:
            user, nice, system, _, _, interrupts, soft, *_ = map(int, next(lines).split()[1:])
    except (OSError, ValueError):
        return None
    ticks = user + nice + system + interrupts + soft
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


@contextlib.contextmanager
def session(peers: types.ModuleType | None) -> Iterator[None]:
    """Prints machine, threads and versions before the measurements, and the load around them.

    Args:
      peers: a module with `describe_threads()`, or None if no other library takes part.
    """
    devices = jax.devices()
    settings = [f"{name}={os.environ.get(name, '')!r}" for name in ("XLA_FLAGS", "OMP_NUM_THREADS")]
    libraries = versions()
    if peers:
        settings.insert(0, peers.describe_threads())
        for package in _PEER_PACKAGES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                libraries[package] = metadata.version(package)
    print(
        f"machine:  {platform.system()} {platform.machine()}, {processor()}, {cores()} core(s); "
        f"JAX on {len(devices)} × {devices[0].device_kind}"
    )
    print(f"threads:  {'; '.join(settings)}")
    print(f"versions: {', '.join(f'{name} {version}' for name, version in libraries.items())}")
    print(f"start:    {_load()}", flush=True)
    started, busy = time.monotonic(), _busy_seconds()
    try:
        yield
    finally:
        print(f"\nend:      {_load()}, these measurements included")
        if busy is not None:
            others = max(0, (_busy_seconds() - busy) / (time.monotonic() - started))
            print(f"others:   other processes kept {others:.2f} core(s) busy meanwhile")
            if others > _QUIET_CORES:
                print(
                    "          That is too much to compare by: libraries whose threads wait for "
                    "each other by\n          spinning (PyTorch's OpenMP) then lose many times "
                    "their share. Measure again."
                )
