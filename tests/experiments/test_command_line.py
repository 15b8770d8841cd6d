"""Flags made from a dataclass, and the settings that the binaries share."""

import dataclasses
import os
from collections.abc import Mapping

import pytest
from absl import flags
from forked_runs import ForkedRuns

from aadml_jax.errors import UserError
from experiments import command_line, jax_settings


@dataclasses.dataclass(frozen=True)
class Config:
    name: str | None = dataclasses.field(default=None, metadata={"help": "a name"})
    kind: str = dataclasses.field(default="a", metadata={"help": "a kind", "choices": ("a", "b")})
    count: int | None = dataclasses.field(default=None, metadata={"help": "a count"})
    rate: float = dataclasses.field(default=0.5, metadata={"help": "a rate"})
    enabled: bool = dataclasses.field(default=True, metadata={"help": "a switch"})
    maybe: bool | None = dataclasses.field(default=None, metadata={"help": "a choice"})
    sizes: tuple[int, ...] = dataclasses.field(default=(4, 2), metadata={"help": "sizes"})
    numbers: Mapping[str, float] | None = dataclasses.field(
        default=None, metadata={"help": "numbers by name"}
    )
    words: tuple[str, ...] | None = dataclasses.field(default=None, metadata={"help": "words"})


@pytest.fixture
def parse(monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    for name in ("enum", "list", "bool", "integer", "float", "string"):
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(
            flags,
            f"DEFINE_{name}",
            lambda *args, define=define: define(*args, flag_values=values),
        )
    register = flags.register_validator
    monkeypatch.setattr(
        flags,
        "register_validator",
        lambda *args, **kwargs: register(*args, **kwargs, flag_values=values),
    )
    command_line.define_flags(Config)

    def parse(*arguments):
        values(["binary", *arguments])
        return command_line.options_from_flags(Config)

    return parse


def test_without_flags_the_config_has_its_own_defaults(parse):
    assert parse() == (Config(), frozenset())


@pytest.mark.parametrize("value", ["2", "alpha", "alpha=x", "alpha=nan", "2=2", "a=1,a=2", "a=1,"])
def test_named_numbers_of_another_form_are_refused(parse, value):
    with pytest.raises(flags.IllegalFlagValueError, match=r"numbers.*such as alpha=2,beta=50"):
        parse(f"--numbers={value}")


def test_flags_have_the_fields_types(parse):
    config, explicit = parse(
        "--name=x",
        "--kind=b",
        "--count=3",
        "--rate=2",
        "--noenabled",
        "--maybe",
        "--sizes=8,9",
        "--numbers=alpha=2, beta=-5e-1",
        "--words=x,1",
    )
    numbers = {"alpha": 2.0, "beta": -0.5}
    assert config == Config("x", "b", 3, 2.0, False, True, (8, 9), numbers, ("x", "1"))
    assert explicit == {field.name for field in dataclasses.fields(Config)}


def test_a_flag_set_to_its_default_counts_as_explicit(parse):
    assert parse("--rate=0.5") == (Config(), {"rate"})


@pytest.mark.parametrize("flag", ["--kind=c", "--count=x", "--sizes=8,x", "--rate=fast"])
def test_values_of_the_wrong_type_are_refused(parse, flag):
    with pytest.raises(flags.Error, match=flag.split("=")[0].strip("-")):
        parse(flag)


@pytest.fixture(scope="module")
def runs():
    with ForkedRuns() as started:
        yield started


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        ("UserError('no such key')", 2, "error: no such key\n"),
        ("RunStopped('stopped after 3 epochs')", 1, "stopped after 3 epochs\n"),
    ],
)
def test_mistakes_and_runs_that_were_stopped_are_told_in_a_line(runs, error, status, line):
    done = runs.run(
        "code",
        "from aadml_jax.errors import RunStopped, UserError\n"
        "from experiments import command_line\n"
        f"def main(): raise {error}\n"
        "command_line.run(main)",
    )
    assert (done.status, done.output, done.errors) == (status, "", line)


@pytest.fixture
def run_with(runs):
    """Runs a small binary; returns status, output and errors."""

    def run_with(arguments, *, takes_arguments):
        program = (
            "from absl import flags; from experiments import command_line\n"
            "path = flags.DEFINE_string('path', None, 'a file')\n"
            "inputs = flags.DEFINE_list('inputs', 'a,b', 'files')\n"
            "flags.DEFINE_string('coordinator_address', None, 'an address')\n"
            "command_line.run(lambda *words: print(words, path.value),"
            f"                 takes_arguments={takes_arguments})"
        )
        done = runs.run("code", program, *arguments)
        return done.status, done.output.strip(), done.errors

    return run_with


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "([],) None"),
        (["a", "--path=x", "b c"], "(['a', 'b c'],) x"),
        (["--path", "x", "a", "--", "--b"], "(['a', '--b'],) x"),
    ],
)
def test_a_binary_that_takes_arguments_gets_those_that_are_no_flags(run_with, arguments, said):
    assert run_with(arguments, takes_arguments=True) == (0, said, "")


def test_an_unknown_flag_among_arguments_is_refused(run_with):
    status, _, errors = run_with(["a", "--ptah=x"], takes_arguments=True)
    assert status == 2
    assert "Unknown command line flag 'ptah'" in errors
    assert errors.count("\n") == 1


def test_arguments_are_refused_where_none_are_taken(run_with):
    assert run_with(["--path=x"], takes_arguments=False) == (0, "() x", "")
    status, output, errors = run_with(["a", "--path=x"], takes_arguments=False)
    assert (status, output) == (2, "")
    assert errors == "error: unexpected argument 'a'; flags begin with --\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--path=gs://bucket/run"], "--path=gs://bucket/run is a URL"),
        (["--path", "https://host/f.h5"], "--path=https://host/f.h5 is a URL"),
        (["--inputs=a,s3://bucket/b*"], "--inputs=s3://bucket/b* is a URL"),
        (["a", "gs:/bucket/run"], "gs:/bucket/run is a URL"),
        (["--", "hdfs://host/run"], "hdfs://host/run is a URL"),
        (["--path=~no_such_user/run"], "--path=~no_such_user/run begins with ~"),
    ],
)
def test_what_is_no_local_path_is_refused_before_any_work(run_with, arguments, said):
    status, output, errors = run_with(arguments, takes_arguments=True)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {said}")
    assert errors.count("\n") == 1


def test_addresses_and_names_with_a_colon_are_no_paths(run_with):
    arguments = ["--coordinator_address=http://host:1234", "--path=tfds:name"]
    assert run_with(arguments, takes_arguments=True) == (0, "([],) tfds:name", "")


def test_a_binary_of_the_project_makes_nothing_of_a_url(runs, tmp_path):
    done = runs.run(
        "code",
        f"import os; os.chdir({str(tmp_path)!r})\n"
        "from experiments import command_line, prepare\n"
        "command_line.run(prepare.main, flags_of=[prepare.Options])",
        "--output=gs://bucket/data",
    )
    assert (done.status, done.output) == (2, "")
    assert done.errors.startswith("error: --output=gs://bucket/data is a URL")
    assert not list(tmp_path.iterdir())


TRAIN = (
    "from aadml_jax.training.config import TrainConfig\n"
    "from experiments import command_line, train\n"
    "command_line.run(train.main, flags_of=[TrainConfig])"
)


def test_help_lists_the_flags_of_a_binary(runs):
    done = runs.run("code", TRAIN, "--help")
    assert (done.status, done.errors) == (0, "")
    assert "--num_neighbors: k of the correlation graph" in done.output


def test_a_value_that_is_no_choice_is_one_line_and_status_2(runs):
    done = runs.run("code", TRAIN, "--loss=arcface")
    assert (done.status, done.output) == (2, "")
    assert done.errors.startswith("error: ") and "--loss=arcface" in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize("error", ["AssertionError()", "RuntimeError('Unable to initialize back')"])
def test_other_errors_keep_their_traceback(runs, error):
    program = (
        f"from experiments import command_line\ndef main(): raise {error}\ncommand_line.run(main)"
    )
    done = runs.run("code", program)
    assert done.status == 1
    assert "Traceback" in done.errors


NO_DEVICES = "def devices(): assert None\njax.devices = devices"  # as JAX itself does of a GPU


@pytest.mark.parametrize(
    ("platforms", "before", "reason"),
    [
        ("cuda", NO_DEVICES, "there is none, or no plugin for it"),
        ("nonsense", "", "Unable to initialize backend 'nonsense': "),
    ],
)
def test_a_platform_without_device_is_one_line_and_status_2(runs, platforms, before, reason):
    program = (
        "import os, jax; from experiments import command_line\n"
        f"os.environ['JAX_PLATFORMS'] = {platforms!r}\n"
        f"jax.config.update('jax_platforms', {platforms!r})\n"
        f"{before}\n"
        "command_line.run(lambda: print(jax.devices()))"
    )
    done = runs.run("code", program)
    assert (done.status, done.output) == (2, "")
    assert f"error: JAX finds no device with JAX_PLATFORMS={platforms} ({reason}" in done.errors
    assert "; unset JAX_PLATFORMS, or install the extra" in done.errors
    assert done.errors.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "value"), [("JAX_NUM_CPU_DEVICES", "abc"), ("JAX_ENABLE_X64", "maybe")]
)
def test_a_variable_that_jax_cannot_read_is_one_line_and_status_2(
    monkeypatch, capsys, variable, value
):
    """In place of a process: JAX reads its variables as it is imported."""
    message = f"invalid value {value} for {variable.lower()}"

    def read(name, *_):
        raise ValueError(message)

    monkeypatch.setenv(variable, value)
    monkeypatch.setattr("builtins.__import__", read)
    with pytest.raises(SystemExit) as stop:
        jax_settings.require_readable()
    monkeypatch.undo()
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: JAX cannot start with {variable}={value} ({message}); unset it or give it another "
        "value\n"
    )


def test_a_warning_is_one_line(runs):
    program = (
        "import warnings; from experiments import command_line\n"
        "command_line.run(lambda: warnings.warn('two\\nlines'))"
    )
    done = runs.run("code", program)
    assert (done.status, done.errors) == (0, "warning: two lines\n")


SHOW_CACHE = "print(jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)"


@pytest.fixture
def cache_after(runs):
    """Sets up the cache of compiled programs; returns what JAX then has, and what was said."""

    def cache_after(setting, environment, before=""):
        program = (
            "import errno, jax, os, pwd, tempfile; from experiments import command_line\n"
            "for name in ('HOME', 'XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR'):\n"
            "    os.environ.pop(name, None)\n"
            f"os.environ.update({environment!r})\n"
            "folder = os.environ.get('JAX_COMPILATION_CACHE_DIR')\n"
            "jax.config.update('jax_compilation_cache_dir', folder)\n"
            f"{before}\n"
            f"command_line.set_up_compilation_cache({setting!r}); {SHOW_CACHE}"
        )
        done = runs.run("code", program)
        assert done.status == 0, done.errors
        return done.output.strip(), done.errors

    return cache_after


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        ("auto", {}, "HOME/.cache/aadml_jax/compiled True"),
        ("auto", {"XDG_CACHE_HOME": "HOME/caches"}, "HOME/caches/aadml_jax/compiled True"),
        ("auto", {"XDG_CACHE_HOME": "relative"}, "HOME/.cache/aadml_jax/compiled True"),
        ("auto", {"XDG_CACHE_HOME": "gs://bucket"}, "HOME/.cache/aadml_jax/compiled True"),
        ("auto", {"XDG_CACHE_HOME": ""}, "HOME/.cache/aadml_jax/compiled True"),
        ("auto", {"JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine True"),
        ("~/here", {}, "HOME/here True"),
        ("off", {}, "None False"),
    ],
)
def test_compilation_cache_folder(cache_after, tmp_path, setting, environment, expected):
    home = str(tmp_path)
    environment = {name: value.replace("HOME", home) for name, value in environment.items()}
    said = cache_after(setting, {"HOME": home, **environment})
    assert said == (expected.replace("HOME", home), "")


NO_USER = "def unknown(_): raise KeyError\npwd.getpwuid = unknown"
READ_ONLY = (
    "def read_only(**_): raise OSError(errno.EROFS, os.strerror(errno.EROFS))\n"
    "tempfile.TemporaryFile = read_only"
)


@pytest.mark.parametrize(
    ("environment", "before", "reason"),
    [
        ({"HOME": "HOME/gone"}, "", "HOME/gone: there is no such home folder"),
        ({"HOME": "HOME/file"}, "", "HOME/file: there is no such home folder"),
        ({"HOME": "gone"}, "", "gone: there is no such home folder"),
        ({}, NO_USER, "~: there is no such home folder"),
        ({"XDG_CACHE_HOME": "HOME/file"}, "", "HOME/file/aadml_jax/compiled: Not a directory"),
        ({"HOME": "HOME"}, READ_ONLY, "HOME/.cache/aadml_jax/compiled: Read-only file system"),
    ],
)
def test_without_a_place_for_it_there_is_no_compilation_cache_and_one_line(
    cache_after, tmp_path, environment, before, reason
):
    (tmp_path / "file").write_text("")
    home = str(tmp_path)
    environment = {name: value.replace("HOME", home) for name, value in environment.items()}
    before = f"os.chdir({home!r})\n{before}"
    output, errors = cache_after("auto", environment, before)
    assert output == "None False"
    assert errors == (
        f"warning: compiled programs are not kept for the next run ({reason.replace('HOME', home)})"
        "; set --compilation_cache to another folder, or to off\n"
    )
    # No home folder is made, and none called ~.
    assert {path.name for path in tmp_path.iterdir()} <= {"file", ".cache"}


def test_a_compilation_cache_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--compilation_cache=\S*file/cache cannot keep"):
        command_line.set_up_compilation_cache(str(tmp_path / "file" / "cache"))


def test_deterministic_adds_to_the_users_xla_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    command_line.set_up_determinism()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=/tmp/x --xla_gpu_deterministic_ops=true"
