"""What the binaries share: flags from a dataclass, exit statuses, progress, JAX's settings."""

import contextlib
import dataclasses
import errno
import math
import os
import pathlib
import socket
import sys
import tempfile
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging
from tqdm import tqdm

from aadml_jax._files import expanded_home, home_folder, local_path
from aadml_jax.errors import RunStopped, UserError, one_line
from aadml_jax.training.settings import item_type, type_of_values

USER_MISTAKE = 2
_SECONDS_TO_JOIN = 120
# After so long a process counts as dead, and the others end.
_SECONDS_WITHOUT_A_SIGN = 30
# Flags whose value may look like a URL, but is no path.
_ADDRESSES = frozenset({"coordinator_address"})


def define_flags(options_class: type) -> None:
    """Defines one absl flag per setting: name, type, default, choices and help from the field.

    Args:
      options_class: a dataclass of settings (see `setting`), or of parts that are such dataclasses.
    """
    for field, hint in _settings_of(options_class):
        kind, help_text = type_of_values(hint), field.metadata["help"]
        if choices := field.metadata.get("choices"):
            flags.DEFINE_enum(field.name, field.default, list(choices), help_text)
        elif kind is tuple:
            text = None if field.default is None else ",".join(map(str, field.default))
            flags.DEFINE_list(field.name, text, help_text)
            if item_type(hint) is int:
                flags.register_validator(
                    field.name,
                    lambda items: all(item.strip().isdecimal() for item in items),
                    message="must be whole numbers separated by commas, such as 1024,1024",
                )
        elif kind is Mapping:
            flags.DEFINE_list(field.name, None, help_text)
            flags.register_validator(
                field.name,
                _are_assignments,
                message="must be different names and finite numbers separated by commas, such as "
                "alpha=2,beta=50",
            )
        else:
            define = {
                bool: flags.DEFINE_bool,
                int: flags.DEFINE_integer,
                float: flags.DEFINE_float,
                str: flags.DEFINE_string,
            }[kind]
            define(field.name, field.default, help_text)


def _settings_of(options_class: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    """The settings of a dataclass and of its parts, with their annotated types."""
    hints = typing.get_type_hints(options_class)
    for field in dataclasses.fields(options_class):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _settings_of(hint)
        else:
            yield field, hint


def _are_assignments(items: Sequence[str] | None) -> bool:
    pairs = [item.partition("=") for item in items or ()]
    names = [name.strip() for name, _, _ in pairs]
    try:
        are_finite = all(math.isfinite(float(value)) for _, _, value in pairs)
    except ValueError:
        return False
    return are_finite and all(map(str.isidentifier, names)) and len(set(names)) == len(names)


def options_from_flags(options_class: type) -> tuple[Any, frozenset[str]]:
    """The options that the flags say, and the names of those given explicitly."""
    values, explicit = {}, set()
    for field, hint in _settings_of(options_class):
        flag = flags.FLAGS[field.name]
        values[field.name] = _as_value(flag.value, hint)
        if flag.present:
            explicit.add(field.name)
    return _made_of(options_class, values), frozenset(explicit)


def _as_value(given: Any, hint: Any) -> Any:
    if not isinstance(given, list):
        return given
    if type_of_values(hint) is Mapping:
        pairs = (item.split("=") for item in given)
        return {name.strip(): float(number) for name, number in pairs}
    return tuple(map(item_type(hint), given))


def _made_of(options_class: type, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(options_class)
    return options_class(
        **{
            field.name: _made_of(hint, values)
            if dataclasses.is_dataclass(hint := hints[field.name])
            else values[field.name]
            for field in dataclasses.fields(options_class)
        }
    )


@contextlib.contextmanager
def progress_of_runs(name: str | None = None) -> Iterator[Callable[[int, int], None]]:
    """A bar of the epochs of a sweep's runs, where there is a terminal; gives `on_progress`."""
    with tqdm(desc=name, unit="epoch", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def on_progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        yield on_progress


def run(
    main: Callable[..., int | None],
    *,
    flags_of: Sequence[type] = (),
    takes_arguments: bool = False,
) -> None:
    """Runs a binary: exit status 0 if done, 2 for a user's mistake, 1 for anything else.

    A `UserError` and a `RunStopped` are printed as the lines that they are, without a traceback.

    Args:
      main: what the binary does; called without arguments, or if it takes some, with their list.
      flags_of: dataclasses whose settings become flags, see `define_flags`.
      takes_arguments: whether there may be words that are no flags, before, between or behind the
        flags, such as names of files; all words behind `--` are. Else they are refused.
    """
    for options_class in flags_of:
        define_flags(options_class)
        for field, _ in _settings_of(options_class):  # so that --help lists them
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[field.name])

    def parse_flags(argv: Sequence[str]) -> list[str]:
        flags.FLAGS.set_gnu_getopt(takes_arguments)
        try:
            rest = flags.FLAGS(argv)
        except SystemExit:  # --help and its kin print and leave with 1
            sys.exit(0)
        except flags.Error as error:
            _fail(f"{' '.join(str(error).split())}; --help lists the flags", USER_MISTAKE)
        if len(rest) > 1 and not takes_arguments:
            _fail(f"unexpected argument {rest[1]!r}; flags begin with --", USER_MISTAKE)
        try:
            _require_local_paths(rest[1:])
        except UserError as error:
            _fail(str(error), USER_MISTAKE)
        return rest

    def guarded(argv: Sequence[str]) -> int:
        logging.set_verbosity(logging.WARNING)
        warnings.formatwarning = _warning_in_one_line
        try:
            return (main(list(argv[1:])) if takes_arguments else main()) or 0
        except UserError as error:
            _fail(str(error), USER_MISTAKE)
        except RunStopped as stop:
            print(stop, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            _fail(
                "interrupted; what was complete before stays, and the same command goes on from "
                "there",
                1,
            )
        except Exception as error:
            if reason := _device_failure(error):
                _fail(reason, USER_MISTAKE)
            if reason := _write_failure(error):
                _fail(
                    f"a file cannot be written ({reason}); make room and run the same command "
                    "again: what was complete before stays",
                    1,
                )
            if not _is_one_of_several():
                raise
            traceback.print_exc()
            _fail(
                f"a process of this run, {os.getpid()} on {socket.gethostname()}, stops "
                f"({_first_line(error)}); the others stop with it. Start all of them again, and "
                "the run resumes",
                1,
            )

    app.run(guarded, flags_parser=parse_flags)


def _fail(message: str, status: int) -> typing.NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if _is_one_of_several():
        # An orderly exit would wait for processes that wait for this one.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _require_local_paths(arguments: Sequence[str]) -> None:
    """Checks whatever may be a path among the flags and words that were given, before any work.

    Raises:
      UserError: naming the flag of a URL, or of a home folder that is not known.
    """
    given = [("", word) for word in arguments]
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if flags.FLAGS[name].present and name not in _ADDRESSES:
            given += [
                (f"--{name}=", one) for one in (value if isinstance(value, list) else [value])
            ]
    for flag, text in given:
        if isinstance(text, str):
            try:
                expanded_home(text)
            except UserError as error:
                raise UserError(f"{flag}{error}") from None


def _warning_in_one_line(message: Warning | str, *_: object) -> str:
    """Of a warning, what a user can make use of: not the line of code from which it came."""
    return f"warning: {one_line(message, limit=1000)}\n"


def _device_failure(error: Exception) -> str | None:
    """What to say if JAX could not start on any device, None if that is not the cause of an error.

    Where it finds no GPU, JAX fails with nothing but an assertion; asked again, it does so again.
    """
    if isinstance(error, AssertionError) and not _is_one_of_several():
        try:
            sys.modules["jax"].devices()
            return None
        except AssertionError:
            reason = "there is none, or no plugin for it"
        except RuntimeError as again:
            reason = str(again)
    elif isinstance(error, RuntimeError) and str(error).startswith("Unable to initialize backend"):
        reason = str(error)
    else:
        return None
    reason = " ".join(reason.partition("(set JAX_PLATFORMS")[0].split())
    variables = [name for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES") if os.environ.get(name)]
    if not variables:
        return f"JAX finds no device ({reason}); check its drivers, or set JAX_PLATFORMS=cpu"
    values = ", ".join(f"{name}={os.environ[name]}" for name in variables)
    return (
        f"JAX finds no device with {values} ({reason}); unset {' and '.join(variables)}, or "
        "install the extra of that platform, 'cuda' or 'tpu'"
    )


def _write_failure(error: BaseException | None) -> str | None:
    """What the operating system says if a full or failing disk is the cause of an error."""
    while error is not None:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            # Writers in C++ pass on the text only.
            if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
                return os.strerror(code)
        error = error.__cause__ or error.__context__
    return None


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def join_processes(config: Any) -> None:
    """Joins the other processes of a run; to be called before JAX starts.

    Args:
      config: with `coordinator_address`, `num_processes`, `process_id` and `distributed`.

    Raises:
      UserError: if the others cannot be found or reached.
    """
    if config.coordinator_address is None and not config.distributed:
        return
    import jax

    try:
        jax.distributed.initialize(
            config.coordinator_address,
            config.num_processes,
            config.process_id,
            initialization_timeout=_SECONDS_TO_JOIN,
            heartbeat_timeout_seconds=_SECONDS_WITHOUT_A_SIGN,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the other processes cannot be joined ({_first_line(error)}); check "
            "--coordinator_address, --num_processes and --process_id"
        ) from error


def warn_of_shared_rows(num_shared: int, num_test: int) -> None:
    """Says on stderr that test rows have the features of training rows, if any do."""
    if num_shared:
        print(
            f"warning: {num_shared} of the {num_test} test rows have the features of a training "
            "row: MAP on them is not a measure of generalisation; remove them from one of the "
            "splits",
            file=sys.stderr,
            flush=True,
        )


def warn_of_features(nearly_constant: str | None) -> None:
    """Says on stderr which features are left out for they are nearly constant, if any are."""
    if nearly_constant:
        print(
            f"warning: left out, for in the training rows they are nearly constant: "
            f"{nearly_constant}; remove them from the data, or keep all features as they are by "
            "--nostandardize",
            file=sys.stderr,
            flush=True,
        )


def write_output(path: str, text: str, flag: str = "output") -> None:
    """Writes a file that the user asked for.

    Args:
      path: of the file.
      text: its content.
      flag: the name of the flag that gave the path.

    Raises:
      UserError: if it cannot be written.
    """
    try:
        local_path(path).write_text(text)
    except OSError as error:
        raise UserError(
            f"--{flag}={path} cannot be written ({error.strerror}); choose another path"
        ) from error


def set_up_compilation_cache(setting: str) -> None:
    """Lets JAX keep compiled programs between runs.

    Args:
      setting: a folder, "auto" for `aadml_jax` in the user's cache folder (or whatever the
        variable JAX_COMPILATION_CACHE_DIR says), or "off". Where "auto" finds no folder that can be
        written to, a line says so, and nothing is kept.

    Raises:
      UserError: the folder cannot be written to.
    """
    import jax

    if setting == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if setting == "auto":
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return
        try:
            folder = _user_cache() / "aadml_jax" / "compiled"
            _require_room(folder)
        except OSError as error:
            print(
                f"warning: compiled programs are not kept for the next run ({error.filename}: "
                f"{error.strerror}); set --compilation_cache to another folder, or to off",
                file=sys.stderr,
                flush=True,
            )
            jax.config.update("jax_enable_compilation_cache", False)
            return
    else:
        folder = local_path(setting)
        try:
            _require_room(folder)
        except OSError as error:
            raise UserError(
                f"--compilation_cache={setting} cannot keep compiled programs ({error.strerror}); "
                "choose another folder, or off"
            ) from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _user_cache() -> pathlib.Path:
    """The folder of the user's caches, which need not exist.

    Raises:
      FileNotFoundError: there is no home folder that it could be in.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # the standard has all others ignored
        return pathlib.Path(named)
    home = home_folder()
    # A home that does not exist is not made: /nonexistent stands for none.
    if home is None or not home.is_dir():
        missing = (os.environ.get("HOME", "~") or "HOME=") if home is None else str(home)
        raise FileNotFoundError(errno.ENOENT, "there is no such home folder", missing)
    return home / ".cache"


def _require_room(folder: pathlib.Path) -> None:
    """Makes a folder if need be, and writes into it.

    Raises:
      OSError: one of the two fails; its `filename` is that of a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def set_up_determinism() -> None:
    """Makes XLA choose deterministic operations on GPUs; to be called before JAX starts."""
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    ).strip()
