"""Which signals ask to stop, and what a second one does."""

import faulthandler
import os
import pathlib
import signal
import tempfile
import threading

import pytest

from aadml_jax.training.signals import StopSignal

# What cannot be caught, does not end a process, tells of a fault in it, or of a failed write.
NOT_ASKING = {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU),
    *(signal.SIGCONT, signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGPIPE),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT),
    *(signal.SIGTRAP, signal.SIGSYS, signal.SIGXFSZ),
}
ASKING = sorted(signal.valid_signals() - NOT_ASKING)


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def dispositions():
    """Those of a process that nothing was done to, put back after the test."""
    former = {number: signal.getsignal(number) for number in ASKING}
    for number in ASKING:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_asks_to_stop_and_its_handler_is_put_back(number):
    former = signal.getsignal(number)
    stop = StopSignal()
    with stop.listening():
        assert stop.name is None and stop.agreed_name() is None
        send(number)
        name = getattr(number, "name", f"SIGRTMIN+{number - signal.SIGRTMIN}")
        assert stop.name == stop.agreed_name() == name
    assert signal.getsignal(number) is former


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_that_is_ignored_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)  # as under nohup, or in the background of a script
    stop = StopSignal()
    with stop.listening():
        send(number)
        assert stop.name is None
    assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU, signal.SIGTERM])
def test_others_that_follow_do_not_cut_the_saving_short(first):
    stop = StopSignal()
    with stop.listening():
        send(first)
        for number in ASKING:
            if number != first:
                send(number)
        assert stop.name == first.name


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU])
def test_what_may_come_several_times_for_one_reason_asks_once(number):
    stop = StopSignal()
    with stop.listening():
        for _ in range(3):
            send(number)
        assert stop.name == number.name


def test_a_second_interrupt_acts_at_once():
    with StopSignal().listening():
        send(signal.SIGHUP)
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_termination_acts_at_once():
    got = []
    signal.signal(signal.SIGTERM, lambda *_: got.append("caller"))
    with StopSignal().listening():
        send(signal.SIGTERM)
        assert got == []
        send(signal.SIGTERM)
        assert got == ["caller"]


def test_handlers_of_the_caller_are_left_alone():
    got = []
    signal.signal(signal.SIGUSR1, lambda *_: got.append("mine"))
    stop = StopSignal()
    with stop.listening():
        send(signal.SIGUSR1)
    assert (got, stop.name) == (["mine"], None)


def test_a_handler_that_python_does_not_know_is_left_alone():
    if not pathlib.Path("/proc/self/status").exists():
        pytest.skip("the system does not tell which signals are caught")
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.register(signal.SIGUSR1, file=file)
        try:
            stop = StopSignal()
            with stop.listening():
                send(signal.SIGUSR1)
            assert stop.name is None
            file.seek(0)
            assert "test_signals.py" in file.read()
        finally:
            faulthandler.unregister(signal.SIGUSR1)


def test_another_thread_than_the_main_one_listens_to_nothing():
    failures = []

    def listen():
        try:
            with StopSignal().listening():
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert failures == []
