"""Waiting for processes: by what they do, so that a busy machine makes a test slow and not red."""

import subprocess
import time

# No test needs nearly so long anywhere: what takes longer hangs.
HANGS_AFTER_SECONDS = 1800


def finish(process, given=None):
    """Waits for the end of a process; returns what it wrote to its outputs."""
    try:
        return process.communicate(given, timeout=HANGS_AFTER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"{process.args} hangs; it wrote {process.communicate()}") from None


def wait_until(happened, *processes):
    """Waits for something that these processes do; fails as soon as one ends without it."""
    for _ in poll():
        are_running = [process.poll() is None for process in processes]
        if happened():  # asked after the processes, whose last act it may have been
            return
        if not all(are_running):
            break
    for process in processes:
        process.kill()
    ends = [(process.returncode, *process.communicate()) for process in processes]
    raise AssertionError(f"it did not happen: {ends}")


def poll():
    """A moment to look, again and again, until whatever is looked at hangs."""
    deadline = time.monotonic() + HANGS_AFTER_SECONDS
    while time.monotonic() < deadline:
        yield
        time.sleep(0.002)
