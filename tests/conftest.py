"""Settings for the whole suite: implicit rank promotion is an error, as in careful user code.

Nearly all the time of the suite is compilation. Programs are therefore compiled without LLVM's
optimisation and in one piece, unless XLA_FLAGS is set (to nothing, say), and shared between tests,
workers and the processes that tests start, in a folder that lives as long as the session.
"""

import gc
import os
import shutil
import tempfile
import zlib
from importlib import metadata

_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_OWNS_CACHE = "PYTEST_XDIST_WORKER" not in os.environ

if _OWNS_CACHE:
    os.environ[_CACHE_VARIABLE] = tempfile.mkdtemp(prefix="aadml_jax_tests_")
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if metadata.version("jaxlib").startswith("0.10."):
        # Its newer generator of fused loops takes two thirds of the time; other versions know no
        # such switch, or stop at it.
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# JAX would not load its CUDA plugin without CUDA's libraries, which a compiler does not need.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax  # noqa: E402 (reads the variables above)
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# For tests of placement; all others use the first device, and processes that tests start have one.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_addoption(parser):
    parser.addoption(
        "--share",
        metavar="I/N",
        help="the I-th of N parts of the chosen tests, counted from 0; a test's name decides",
    )


@pytest.hookimpl(trylast=True)  # after the choice by markers and names
def pytest_collection_modifyitems(config, items):
    if (share := config.getoption("--share")) is None:
        return
    number, count = map(int, share.split("/"))
    if not 0 <= number < count:
        raise pytest.UsageError(f"--share={share} must be I/N, I from 0 to N - 1")
    chosen, others = [], []
    for item in items:
        is_chosen = zlib.crc32(item.nodeid.encode()) % count == number
        (chosen if is_chosen else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = chosen


def pytest_collection_finish():
    # Tracing makes and drops many small objects; with Python's own threshold, looking for cycles
    # among them takes a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure():
    if _OWNS_CACHE:
        shutil.rmtree(os.environ[_CACHE_VARIABLE], ignore_errors=True)
