"""Files written as a whole and opened with one line for what is wrong."""

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from absl import logging

from aadml_jax.errors import UserError

if TYPE_CHECKING:
    from _typeshed import SupportsRead

# What the system says of a disk or a network drive that gives no data.
_DISK_ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV)
# A path object of gs://bucket/run has lost the second slash.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

_KNOWS_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# Over NFS, where flock is made of POSIX locks, it may be EACCES.
_HELD_BY_ANOTHER = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """The absolute path of a local file or folder, `~` expanded.

    Every path that a user names goes through here: taken as it is, a URL would become a folder
    called `gs:`, and `~` without a home folder one called `~`.

    Raises:
      UserError: if it is a URL, begins with `~` where no home folder is known, or is relative to a
        folder that does not exist any more.
    """
    expanded = pathlib.Path(expanded_home(path))
    try:
        return expanded.absolute()
    except FileNotFoundError:
        raise UserError(
            f"{os.fspath(path)} is relative to the current folder, which does not exist any more; "
            "change to another folder, or give the whole path"
        ) from None


def home_folder() -> pathlib.Path | None:
    """The user's home folder; None where HOME is empty or relative, or nobody knows one."""
    home = os.path.expanduser("~")
    return pathlib.Path(home) if os.path.isabs(home) and os.environ.get("HOME") != "" else None


def expanded_home(path: str | os.PathLike[str]) -> str:
    """A local path, `~` expanded, relative if it was.

    Raises:
      UserError: if it is a URL, or begins with `~` where no home folder is known.
    """
    text = os.fspath(path)
    if "://" in text or _URL.match(text.strip()):
        raise UserError(
            f"{text} is a URL, but only local paths are read and written; mount the bucket, or "
            "copy the files to a local folder"
        )
    expanded = os.path.expanduser(text)
    is_own = text.split(os.sep)[0] == "~"
    # An empty HOME would make /runs of ~/runs, a relative one a folder of the current one.
    if (home_folder() is None) if is_own else (text.startswith("~") and expanded == text):
        raise UserError(
            f"{text} begins with ~, but no such home folder is known; set HOME, or give the whole "
            "path"
        )
    return expanded


@contextlib.contextmanager
def written_as_a_whole(path: pathlib.Path, mode: str = "w") -> Iterator[IO]:
    """A file that takes the place of `path` once it is complete and on the disk.

    A reader sees the old content or the new one; after an error the old one stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, mode) as file:
            yield file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    publish(temporary, path)


@contextlib.contextmanager
def folder_written_as_a_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder, to be filled with files, that becomes `path` once all are complete and on the disk.

    After an error nothing is left of it. `path` must not exist, or be an empty folder.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        publish(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def require_absent(path: str | os.PathLike[str], kind: str = "file") -> None:
    """Checks that nothing stands where a file or a folder is to be written.

    Args:
      path: of what is to be written.
      kind: "file" or "folder", for the message.

    Raises:
      UserError: if something does.
    """
    path = local_path(path)
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; remove it or choose another {kind}")


def publish(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a complete file or folder its name, once its content is on the disk."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_readable_file(path: pathlib.Path, kind: str) -> os.stat_result:
    """Checks that a path is a file that can be read; a pipe, say, would be waited for forever.

    Args:
      path: What to look at.
      kind: What it should be, such as "an HDF5 feature file".

    Raises:
      UserError: It isn't.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path} is a directory; give the path of {kind}")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file; give the path of {kind}")
        with open(path, "rb") as raw:
            raw.read(1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the path of {kind}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{str(path)!r} cannot be read ({reason}); check the path and its permissions"
        ) from error
    return status


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Says in one line what the operating system says while a file is read.

    Errors without a number of the operating system are a format's own, about its content, and pass.

    Raises:
      UserError: The system cannot read the file, or memory does not suffice.
    """
    try:
        yield
    except MemoryError as error:
        raise UserError(
            f"{path} needs more memory than there is; close other programs, or use a machine that "
            "has more"
        ) from error
    except Exception as error:
        number = getattr(error, "errno", None)
        if number is None:
            # zipfile makes one error of its own of whatever the system says.
            number = getattr(error.__context__, "errno", None)
            if number is None or number not in _DISK_ERRORS:
                raise
        raise system_refusal(path, number) from error


def system_refusal(path: str | os.PathLike[str], number: int) -> UserError:
    """What to say of a file that the operating system does not read.

    Args:
      path: Of the file, or what the message calls it.
      number: Of the system's error (errno).
    """
    remedy = {
        errno.EACCES: "check its permissions",
        errno.EPERM: "check its permissions",
        errno.ENOENT: "check the path",
        errno.EMFILE: "close other files, or raise the limit by ulimit -n",
        errno.ENFILE: "close other programs",
        errno.ENOMEM: "close other programs, or use a machine that has more memory",
    }.get(number, "check the disk or the network drive that holds it, and try again")
    return UserError(f"{path} cannot be read ({os.strerror(number)}); {remedy}")


def read_at_most(file: "SupportsRead[bytes]", size: int) -> bytearray:
    """The next bytes of a file, `size` of them if there are as many.

    Memory grows with what is there, as with `file.read(size)` it does not.
    """
    content = bytearray()
    while piece := file.read(min(size - len(content), 2**20)):
        content += piece
    return content


@contextlib.contextmanager
def held_lock(
    path: pathlib.Path, what: str, remedy: str = "choose another folder"
) -> Iterator[IO[str]]:
    """Keeps other processes from doing the same; a killed holder lets go.

    Where the file system knows no locks, as many network mounts, a warning says so, and the context
    is entered all the same.

    Args:
      path: Of the lock file, made if need be.
      what: Beginning of the messages, such as "FOLDER is".
      remedy: Its end.

    Returns:
      The lock file, for use within the context.

    Raises:
      UserError: Another process holds it, or the lock fails.
      OSError: The file can't be made.
    """
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_BY_ANOTHER:
                raise UserError(
                    f"{what} in use by another process; wait for it, or {remedy}"
                ) from None
            if error.errno not in _KNOWS_NO_LOCKS:
                raise UserError(f"{what} not to be locked ({error.strerror}); {remedy}") from None
            logging.warning(
                "%s on a file system that cannot lock files (%s): nothing keeps another process "
                "from using it at the same time; see to it that none does",
                what,
                error.strerror,
            )
        yield lock
