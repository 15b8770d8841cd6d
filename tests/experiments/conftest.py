"""Fixtures of the tests of binaries."""

import pytest
import running


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    """Some of them would never end by themselves."""
    yield
    while running.STARTED:
        process = running.STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def features(tmp_path_factory):
    """A feature file of both modalities, which no test changes."""
    return running.write_feature_file(tmp_path_factory.mktemp("data") / "features.h5")
