"""Fields of configurations: a default, a help text, and which values a setting may have.

Flags, checks and stored configurations are made from the fields' metadata, so that whatever is
known of a setting is said where it is declared.
"""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from aadml_jax.errors import UserError

_Value = TypeVar("_Value")


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The range of a number, or of each number of a tuple.

    Attributes:
      at_least: the smallest value.
      above: what every value is greater than.
      at_most: the greatest value.
      below: what every value is smaller than.
      words: the range as a message gives it, where the numbers themselves do not read well.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    words: str | None = None

    def hold(self, value: float) -> bool:
        """Whether a value is in the range; a NaN is in none."""
        return (
            not math.isnan(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.words is not None:
            return self.words
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least} to {self.at_most}"
        limits = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "below": self.below,
        }
        return " and ".join(
            f"{name} {limit}" for name, limit in limits.items() if limit is not None
        )


POSITIVE = Bounds(above=0)
NOT_NEGATIVE = Bounds(at_least=0)
COUNT = Bounds(at_least=1)


def setting(
    default: Any,
    help_text: str,
    *,
    choices: Collection[str] = (),
    bounds: Bounds | None = None,
    per_process: bool = False,
) -> Any:
    """A field of a configuration.

    Args:
      default: its value unless it is set; None where it depends on other things.
      help_text: what `--help` says of it.
      choices: the values of a name, all others being refused; read when a value is checked.
      bounds: the range of a number, unless it is None.
      per_process: whether it may differ between the processes of a run, as paths do.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help_text,
            "choices": choices,
            "bounds": bounds,
            "per_process": per_process,
        },
    )


def check_settings(config: Any) -> None:
    """Checks each field of a configuration by what its metadata say.

    Raises:
      UserError: naming the flag, its value and what it must be.
    """
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), field.metadata["choices"]
        if choices and value not in choices:
            raise UserError(f"--{field.name}={value} must be one of {', '.join(choices)}")
        bounds: Bounds | None = field.metadata["bounds"]
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if not isinstance(number, int | float) or isinstance(number, bool):
                continue
            if bounds is not None and not bounds.hold(number):
                raise UserError(f"--{field.name}={value} must be {bounds}")
            if not math.isfinite(number):
                raise UserError(f"--{field.name}={value} must be finite")


def type_of_values(hint: Any) -> type:
    """The type of a field's values: of `int | None` it is int, of `tuple[int, ...]` tuple."""
    hint = _without_none(hint)
    return typing.get_origin(hint) or hint


def item_type(hint: Any) -> type:
    """The type of the items of a field's tuples: of `tuple[int, ...] | None` it is int."""
    return typing.get_args(_without_none(hint))[0]


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    return hint


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; whole numbers are floats too, and bools no numbers."""
    if isinstance(hint, types.UnionType):
        return any(is_of_type(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        (item, _) = typing.get_args(hint)
        return isinstance(value, tuple) and all(is_of_type(each, item) for each in value)
    if typing.get_origin(hint) is Mapping:
        (key, item) = typing.get_args(hint)
        return isinstance(value, Mapping) and all(
            is_of_type(name, key) and is_of_type(each, item) for name, each in value.items()
        )
    if hint is float and type(value) is int:
        return abs(value) <= sys.float_info.max
    if hint in (int, float):
        return isinstance(value, hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def resolved(value: _Value | None) -> _Value:
    """A setting of a resolved configuration, whose default is filled in.

    Raises:
      ValueError: if it is still open.
    """
    if value is None:
        raise ValueError("the configuration has open defaults; it must come from set_up or resolve")
    return value
