"""What a field of the configuration takes: parsed from Python, a file or a flag, and checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from adtr.errors import ConfigError

Size = tuple[int, int]
"""Height and width."""


def setting(help_text: str, *, low: float | None = None, high: float | None = None) -> Any:  # noqa: ANN401
    """A field without default (presets give every value) with its description and closed range."""
    return field(metadata={"help": help_text, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of the configuration: where it lives, what it takes."""

    name: str
    section: str
    type: Any
    help: str
    low: float | None
    high: float | None

    def parse(self, value: Any) -> Any:  # noqa: ANN401
        """The value in the field's type, from Python, TOML, YAML or a flag's text.

        Raises:
            ConfigError: wrong type or out of range.
        """
        if get_origin(self.type) is Literal:
            if value in get_args(self.type):
                return value
            raise ConfigError(unknown(self.name, as_text(value), get_args(self.type)))
        try:
            parsed = self._convert(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{self.name} takes {self._expected()}, not {shown(value)}") from error
        numbers = parsed if isinstance(parsed, tuple) else (parsed,)
        for number in numbers:
            if isinstance(number, str):
                continue
            if (self.low is not None and number < self.low) or (self.high is not None and number > self.high):
                bounds = f"at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"
                raise ConfigError(f"{self.name} must be {bounds}, not {as_text(value)[:100]}")
        return parsed

    def _convert(self, value: Any) -> Any:  # noqa: ANN401
        if self.type is bool:
            words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
            if isinstance(value, str) and value.lower() in words:
                return words[value.lower()]
            if isinstance(value, bool):
                return value
            raise TypeError
        if isinstance(value, bool):
            raise TypeError
        if self.type == Size:
            return _parse_size(value)
        if self.type is str:
            return str(value) if isinstance(value, str | int) else _raise_type_error()
        number = float(value)
        if self.type(number) != number:  # not whole, or not a number
            raise ValueError
        return self.type(number)

    def _expected(self) -> str:
        if self.type == Size:
            return "a number of pixels or tokens, or HEIGHTxWIDTH"
        return {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}[self.type]


def as_text(value: object) -> str:
    """A value as a user would write it; shortened unless it is text."""
    return value if isinstance(value, str) else shown(value)


def shown(value: object) -> str:
    """A value for an error, shortened."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not write whole numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _raise_type_error() -> str:
    raise TypeError


def _parse_size(value: Any) -> Size:  # noqa: ANN401
    parts = value.lower().split("x") if isinstance(value, str) else value
    if isinstance(parts, int):
        parts = [parts]
    numbers = [int(part) for part in parts]
    if len(numbers) not in (1, 2) or any(int(n) != float(p) for n, p in zip(numbers, parts, strict=True)):
        raise ValueError
    return numbers[0], numbers[-1]


def unknown(kind: str, name: str, known: Any) -> str:  # noqa: ANN401
    """One line that names what is unknown, the nearest known name, and the others."""
    names, name = sorted(str(k) for k in known), name[:100]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})"
