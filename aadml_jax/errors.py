"""Exceptions whose message is all that a user of the commands has to read."""


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


def one_line(error: BaseException, limit: int = 200) -> str:
    """An error's message on one line, for use within another's; its type where it has none."""
    return " ".join(str(error).split())[:limit] or type(error).__name__
