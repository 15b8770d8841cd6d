"""Compilers of accelerators that are not there: what tests of them need, and where they skip."""

import importlib.util
import signal

import pytest

from aadml_jax.errors import UserError
from aadml_jax.training.accelerators import find_topology


def topology_or_skip(name):
    """The topology, or a skipped test that says what is missing."""
    # The TPU's library may leave a profiling timer without a handler, which ends a process that
    # goes on computing.
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        return find_topology(name)
    except UserError as error:
        if importlib.util.find_spec("libtpu") and importlib.util.find_spec("jax_cuda12_plugin"):
            raise
        pytest.skip(str(error))
