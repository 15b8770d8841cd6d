"""Signals that ask a run to stop: it answers between two calls, once its state is saved."""

import contextlib
import pathlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from aadml_jax.errors import RunStopped
from aadml_jax.training.processes import allreduce_max

# Terminals, batch systems and cloud machines send one of many before they kill: a closed connection
# is SIGHUP; Slurm and Grid Engine send SIGUSR1, SIGUSR2, SIGXCPU or whatever a user chose. So all
# are taken that would end the process, but those that tell of a fault of the program itself, which
# cannot go on, and SIGPIPE and SIGXFSZ, of which the write that fails tells.
_HARMLESS = "SIGTSTP SIGTTIN SIGTTOU SIGCONT SIGCHLD SIGURG SIGWINCH SIGINFO"
_OF_FAULTS = "SIGSEGV SIGBUS SIGILL SIGFPE SIGABRT SIGTRAP SIGSYS SIGEMT SIGPIPE SIGXFSZ"
_NOT_TAKEN = f"SIGKILL SIGSTOP {_HARMLESS} {_OF_FAULTS}".split()
_STOPPING = tuple(
    sorted(signal.valid_signals() - {getattr(signal, name, None) for name in _NOT_TAKEN})
)
# A user who repeats one of these wants no further delay. The others may come several times for one
# reason: a shell passes on the SIGHUP that its terminal sent too, and SIGXCPU comes every second.
_INSISTENT = (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGQUIT", signal.SIGINT))
_PROCESS_STATUS = pathlib.Path("/proc/self/status")


class Interrupted(RunStopped):
    """A run was told to stop by a signal, and has saved its state."""


class StopSignal:
    """The first signal asks to stop; SIGTERM, SIGINT or SIGQUIT for the second time acts at once.

    A second signal of another kind does not cut the saving short: a closed connection may bring
    SIGHUP and then SIGTERM.
    """

    def __init__(self) -> None:
        self._number = 0

    @property
    def name(self) -> str | None:
        """Name of the signal that this process got first; None if none came."""
        return _name_of(self._number) if self._number else None

    def agreed_name(self) -> str | None:
        """Name of a signal that any process of the run got; all of them must ask together."""
        number = allreduce_max(self._number)
        return _name_of(number) if number else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over for the context.

        Left alone are those that are ignored (`nohup` ignores SIGHUP) and, but for SIGTERM and
        SIGINT, those for which there is a handler already. Python lets only the main thread handle
        signals: in another one nothing is taken over.
        """
        previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            previous = {
                number: signal.getsignal(number) for number in _STOPPING if _may_be_taken(number)
            }

        def on_signal(number: int, frame: FrameType | None) -> None:
            self._number = self._number or number
            if number in _INSISTENT:
                # By the system itself: a handler in Python would wait for the end of a long call.
                signal.signal(number, previous[number])

        try:
            for number in previous:
                signal.signal(number, on_signal)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # those between SIGRTMIN and SIGRTMAX have no names of their own
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def _may_be_taken(number: int) -> bool:
    handler = signal.getsignal(number)
    if handler is None or handler is signal.SIG_IGN:  # None: not from Python, so not to be put back
        return False
    if number in (signal.SIGTERM, signal.SIGINT):
        return True
    return handler is signal.SIG_DFL and not _has_handler_unknown_to_python(number)


def _has_handler_unknown_to_python(number: int) -> bool:
    """Whether a library caught the signal, as `faulthandler.register` does; False if not known."""
    with contextlib.suppress(OSError, ValueError):
        for line in _PROCESS_STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "SigCgt":
                return bool(int(value, 16) >> (number - 1) & 1)
    return False
