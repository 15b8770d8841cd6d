"""Flags made from a dataclass, and the settings that the binaries share."""

import dataclasses
import subprocess
import sys

import pytest
from absl import flags

from aadml_jax.errors import UserError
from experiments import command_line


@dataclasses.dataclass(frozen=True)
class Config:
    name: str | None = dataclasses.field(default=None, metadata={"help": "a name"})
    kind: str = dataclasses.field(default="a", metadata={"help": "a kind", "choices": ("a", "b")})
    count: int | None = dataclasses.field(default=None, metadata={"help": "a count"})
    rate: float = dataclasses.field(default=0.5, metadata={"help": "a rate"})
    enabled: bool = dataclasses.field(default=True, metadata={"help": "a switch"})
    maybe: bool | None = dataclasses.field(default=None, metadata={"help": "a choice"})
    sizes: tuple[int, ...] = dataclasses.field(default=(4, 2), metadata={"help": "sizes"})


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
        return command_line.config_from_flags(Config)

    return parse


def test_without_flags_the_config_has_its_own_defaults(parse):
    assert parse() == (Config(), frozenset())


def test_flags_have_the_fields_types(parse):
    config, explicit = parse(
        "--name=x", "--kind=b", "--count=3", "--rate=2", "--noenabled", "--maybe", "--sizes=8,9"
    )
    assert config == Config("x", "b", 3, 2.0, False, True, (8, 9))
    assert explicit == {field.name for field in dataclasses.fields(Config)}


def test_a_flag_set_to_its_default_counts_as_explicit(parse):
    assert parse("--rate=0.5") == (Config(), {"rate"})


@pytest.mark.parametrize("flag", ["--kind=c", "--count=x", "--sizes=8,x", "--rate=fast"])
def test_values_of_the_wrong_type_are_refused(parse, flag):
    with pytest.raises(flags.Error, match=flag.split("=")[0].strip("-")):
        parse(flag)


def run_with(arguments, *, takes_arguments):
    """Runs a small binary in a fresh process; returns status, output and errors."""
    program = (
        "from absl import flags; from experiments import command_line;"
        "output = flags.DEFINE_string('output', None, 'a file');"
        "command_line.run(lambda *words: print(words, output.value),"
        f"                 takes_arguments={takes_arguments})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "([],) None"),
        (["a", "--output=x", "b c"], "(['a', 'b c'],) x"),
        (["--output", "x", "a", "--", "--b"], "(['a', '--b'],) x"),
    ],
)
def test_a_binary_that_takes_arguments_gets_those_that_are_no_flags(arguments, said):
    assert run_with(arguments, takes_arguments=True) == (0, said, "")


def test_an_unknown_flag_among_arguments_is_refused():
    status, _, errors = run_with(["a", "--outptu=x"], takes_arguments=True)
    assert status == 2
    assert "Unknown command line flag 'outptu'" in errors
    assert errors.count("\n") == 1


def test_arguments_are_refused_where_none_are_taken():
    assert run_with(["--output=x"], takes_arguments=False) == (0, "() x", "")
    status, output, errors = run_with(["a", "--output=x"], takes_arguments=False)
    assert (status, output) == (2, "")
    assert errors == "error: unexpected argument 'a'; flags begin with --\n"


def settings_after(code, **environment):
    """Runs code in a fresh process, since JAX's settings are global, and returns its output."""
    program = f"from experiments import command_line; import jax, os; {code}"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "", "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


SHOW_CACHE = "print(jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache)"


@pytest.mark.parametrize(
    ("setting", "environment", "expected"),
    [
        ("auto", {}, "HOME/.cache/aadml_jax/compiled True"),
        ("auto", {"XDG_CACHE_HOME": "HOME/caches"}, "HOME/caches/aadml_jax/compiled True"),
        ("auto", {"JAX_COMPILATION_CACHE_DIR": "/mine"}, "/mine True"),
        ("~/here", {}, "HOME/here True"),
        ("off", {}, "None False"),
    ],
)
def test_compilation_cache_folder(tmp_path, setting, environment, expected):
    code = f"command_line.set_up_compilation_cache({setting!r}); {SHOW_CACHE}"
    home = str(tmp_path)
    environment = {name: value.replace("HOME", home) for name, value in environment.items()}
    assert settings_after(code, HOME=home, **environment) == expected.replace("HOME", home)


def test_a_compilation_cache_that_cannot_be_written_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache cannot keep .*--compilation_cache"):
        command_line.set_up_compilation_cache(str(tmp_path / "file" / "cache"))


def test_deterministic_adds_to_the_users_xla_flags():
    code = "command_line.set_up_determinism(); print(os.environ['XLA_FLAGS'])"
    expected = "--xla_dump_to=/tmp/x --xla_gpu_deterministic_ops=true"
    assert settings_after(code, XLA_FLAGS="--xla_dump_to=/tmp/x") == expected
