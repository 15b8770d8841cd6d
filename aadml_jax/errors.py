"""The one exception that stands for a mistake of the user rather than of the program."""


class UserError(Exception):
    """A mistake that the user can mend: wrong data, flags or folders.

    The message is a single line that names the culprit (file, key, row, flag, value) and the
    remedy. The binaries in `experiments/` print it without a traceback and exit with status 2.
    """
