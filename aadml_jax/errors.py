"""Exceptions whose message is all that a user of the commands has to read."""

import importlib.util


class UserError(Exception):
    """A mistake that the user can mend: wrong data, flags or folders.

    The message is a single line that names the culprit (file, key, row, flag, value) and the
    remedy. The binaries in `experiments/` print it without a traceback and exit with status 2.

    Args:
      message: What is wrong and what to do; line breaks and other control characters, which names
        from a file or of one may hold, are escaped.
    """

    def __init__(self, message: str):
        super().__init__(
            "".join(
                character if character.isprintable() else ascii(character)[1:-1]
                for character in message
            )
        )


class RunStopped(Exception):
    """A run ended before its end, for the reason that the message gives.

    The binaries in `experiments/` print it without a traceback and exit with status 1.
    """


def require_extra(module: str, refusal: str) -> None:
    """Checks that a package which only an extra installs is there, without importing it.

    Args:
      module: the name under which it is imported.
      refusal: what needs it, its name, and how to install it or to do without.

    Raises:
      UserError: `refusal`, if it is not there.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(refusal)


def one_line(error: BaseException, limit: int = 200) -> str:
    """An error's message on one line, for use within another's; its type where it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
