"""Standard streams that cannot end a command: what nobody can read is dropped.

A reader that goes away (`| head`), a terminal that is gone, a closed descriptor or a full disk
behind `>` must not cost the work that a command does beside its words.
"""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO

# Nobody is there to read. Any other failure the user does not know of, and is told.
_NO_READER = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET}
_STREAMS = {1: "stdout", 2: "stderr"}


def make_lasting() -> None:
    """Lets `sys.stdout` and `sys.stderr` drop what cannot be written; to be called before all else.

    Descriptors 0, 1 and 2 that are closed are opened on the null device: a file that got number 1
    or 2 would be written into by whatever prints. Streams that something else has put in place of
    Python's own, as notebooks and test runners do, stay as they are.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _lead_to_null(descriptor)
    for descriptor, name in _STREAMS.items():
        own = getattr(sys, f"__{name}__")
        if getattr(sys, name) is own:
            lasting = lasting_stream(descriptor, own)
            setattr(sys, name, lasting)
            setattr(sys, f"__{name}__", lasting)


def lasting_stream(descriptor: int, like: TextIO | None) -> TextIO:
    """A text stream whose writing never fails.

    Args:
      descriptor: to write to; once that fails, it leads to the null device.
      like: stream whose encoding and buffering it takes over; None, as Python's own streams are
        where the descriptor was closed, gives those of a terminal.
    """
    raw = _LastingFile(descriptor, "wb", closefd=False)
    raw.name = f"<{_STREAMS.get(descriptor, descriptor)}>"
    # `python -u` has no buffer there.
    is_buffered = like is None or not isinstance(like.buffer, io.RawIOBase)
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if is_buffered else raw,
        encoding=like and like.encoding,
        # The tables hold arrows: an output that cannot show one must not end a command.
        errors="backslashreplace" if descriptor == 2 else "replace",
        line_buffering=like is None or like.line_buffering,
        write_through=like is not None and like.write_through,
    )


class _LastingFile(io.FileIO):
    """A descriptor to write to, led to the null device by the first failure."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe that does not block
                select.select([], [self], [])
            return written
        except OSError as error:
            # The descriptor itself, so that messages from C++ and of child processes follow.
            _lead_to_null(self.fileno())
            if error.errno not in _NO_READER and self is not _raw(sys.stderr):
                print(
                    f"warning: standard output cannot be written to ({error.strerror}); the "
                    "command goes on without it",
                    file=sys.stderr,
                    flush=True,
                )
            return memoryview(data).nbytes


def _raw(stream: TextIO) -> Any:
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def _lead_to_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null == descriptor:  # the lowest number that was free
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(null, descriptor)
        os.close(null)
