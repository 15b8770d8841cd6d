"""Fixtures of the tests of runs."""

import signal

import pytest


@pytest.fixture
def default_disposition():
    """A function that lets a signal do what it does by default, until the test ends.

    Whatever starts the tests may have it ignored: nohup ignores SIGHUP, and a shell ignores SIGINT
    in what it starts in the background.
    """
    former = {}

    def restore(number):
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        former.setdefault(number, signal.signal(number, handler))

    yield restore
    for number, handler in former.items():
        signal.signal(number, handler)
