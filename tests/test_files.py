"""Paths that users name."""

import pathlib

import pytest

from aadml_jax._files import local_path
from aadml_jax.errors import UserError


@pytest.mark.parametrize(
    "path",
    [
        "gs://bucket/run",
        "s3://bucket",
        "hdfs:/data/run",
        "file:///tmp/run",
        "HTTPS://host/file.h5",
        " gs://bucket/run",
        "simplecache::gs://bucket/run",
        "s3_local://bucket",
        pathlib.Path("gs://bucket/run"),
    ],
)
def test_a_url_is_refused_as_such(path):
    with pytest.raises(UserError, match=r"is a URL.*mount the bucket"):
        local_path(path)


def test_paths_become_absolute_and_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/of/someone")
    assert local_path("runs/a:b") == tmp_path / "runs/a:b"
    assert local_path("~/run") == pathlib.Path("/home/of/someone/run")
    # Only a name of several letters before a slash is a scheme.
    assert local_path("a:/b") == tmp_path / "a:" / "b"


def test_an_unknown_home_is_refused_and_makes_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"~no_such_user.*no such home folder"):
        local_path("~no_such_user/run")
    assert not list(tmp_path.iterdir())


def test_a_relative_path_in_a_folder_that_was_deleted_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert local_path(tmp_path) == tmp_path
    with pytest.raises(UserError, match=r"run is relative to the current folder, which does not"):
        local_path("run")


@pytest.mark.parametrize("home", ["", "somewhere"])
def test_a_home_that_is_no_absolute_path_is_none(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UserError, match="no such home folder"):
        local_path("~/runs")
    assert not list(tmp_path.iterdir())
