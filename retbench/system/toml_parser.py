"""Parse TOML into frozen dataclasses; every error names file, line and field.

The dataclass is the schema: its field names, type hints and defaults. Its class variable `renamed_fields` maps old
names of fields to new ones; a card with an old name is refused, and the error names the new one.
"""

import math
import re
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from retbench.errors import DataError, suggest_names
from retbench.system.text_parsers import parse_toml

T = TypeVar("T")

MAX_INTEGER = (1 << 63) - 1  # the limit of TOML


@dataclass(frozen=True)
class CardLocation:
    """A field in a card: the file, its text, and the keys that lead to the field; list items count from 1.

    A number may be nan only below a field that its class names in `nan_fields` (of a table with missing scores).
    """

    file: Path
    text: str
    keys: tuple[str, ...] = ()
    may_be_nan: bool = False

    def child(self, key: str, may_be_nan: bool = False) -> "CardLocation":
        """Return the location of the field `key` below this one."""
        return CardLocation(self.file, self.text, (*self.keys, key), self.may_be_nan or may_be_nan)

    def find_line(self) -> int:
        """Find the line of the field; if it is missing, of the nearest enclosing key or table, or 1."""
        table: tuple[str, ...] = ()
        tables: Counter[str] = Counter()
        depth, field_line = 0, 1
        for number, line in enumerate(self.text.split("\n"), start=1):
            if header := re.match(r"\s*\[(\[?)([^\]]+)\]", line):
                tables[header[2]] += 1
                table = (*_split_key(header[2]), *([str(tables[header[2]])] if header[1] else []))
            key = re.match(r"\s*([\w.\"'-]+)\s*=", line)
            path = (*table, *(_split_key(key[1]) if key else ()))
            if len(path) > depth and path == self.keys[: len(path)]:
                depth, field_line = len(path), number
        return field_line

    def make_error(self, problem: str, next_step: str) -> DataError:
        """Build an error that names this location."""
        return DataError(f"{self.file}:{self.find_line()}: {'.'.join(self.keys) or 'card'}: {problem}", next_step)


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(name.strip(" \"'") for name in dotted.split("."))


def load_card(cls: type[T], file: Path, **extra_fields: Any) -> T:
    """Load one card; `extra_fields` come from the file's location, not from its text."""
    try:
        text = file.read_text(encoding="utf-8")
        table = parse_toml(text)
    except UnicodeDecodeError as problem:
        raise DataError(f"{file}: not UTF-8 text", "save the card as UTF-8") from problem
    except ValueError as problem:
        raise DataError(f"{file}: not valid TOML: {problem}", "correct that line") from problem
    return _build_dataclass(cls, {**table, **extra_fields}, CardLocation(file, text))


def _build_dataclass(cls: type[T], table: object, location: CardLocation) -> T:
    if not isinstance(table, dict):
        raise location.make_error(f"expected a table, got {table!r}", "write it as a [table]")
    hints, known_fields = get_type_hints(cls), {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    renamed_fields: dict[str, str] = getattr(cls, "renamed_fields", {})
    for key in table:
        if key in renamed_fields:
            new_key = renamed_fields[key]
            raise location.child(key).make_error(f"this key is now {new_key}", f"rename {key} to {new_key}")
        if key not in known_fields:
            raise location.child(key).make_error("unknown field", suggest_names(key, known_fields))
    missing = [name for name, field in known_fields.items() if name not in table and not _has_default(field)]
    if missing:
        raise location.child(missing[0]).make_error("missing", f"add `{missing[0]}` to the card")
    nan_fields: tuple[str, ...] = getattr(cls, "nan_fields", ())
    values = {
        key: convert_value(hints[key], value, location.child(key, key in nan_fields)) for key, value in table.items()
    }
    try:
        return cls(**values)
    except DataError as problem:  # raised by the dataclass's own checks
        raise location.make_error(problem.cause, problem.next_step) from problem


def _has_default(field: "Field[Any]") -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def convert_value(hint: Any, value: Any, location: CardLocation) -> Any:
    """Convert one value by its type hint; tables become dataclasses, arrays become tuples."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return convert_value(next(h for h in inner if h is not type(None)), value, location)
    if origin is not None:
        return _CONVERTERS[origin](inner, value, location)
    if isinstance(hint, type) and is_dataclass(hint):
        return _build_dataclass(hint, value, location)
    if hint is Any:
        return value
    if type(value) is int and abs(value) > MAX_INTEGER:
        raise location.make_error("the number is too large", "write a number that fits into 64 bits")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise location.make_error(f"expected {hint.__name__}, found {value!r}", f"write it as {hint.__name__}")
    if hint is float and not math.isfinite(value) and not (location.may_be_nan and math.isnan(value)):
        raise location.make_error(f"{value} is not allowed", "write a finite number")
    return value


def _convert_literal(choices: tuple[Any, ...], value: Any, location: CardLocation) -> Any:
    if value not in choices:
        raise location.make_error(f"{value!r} is not allowed", suggest_names(str(value), map(str, choices)))
    return value


def _convert_list(inner: tuple[Any, ...], value: Any, location: CardLocation) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise location.make_error(f"expected a list, found {value!r}", "write it as [ ... ]")
    return tuple(
        convert_value(inner[0], item, location.child(str(number))) for number, item in enumerate(value, start=1)
    )


def _convert_table(inner: tuple[Any, ...], value: Any, location: CardLocation) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise location.make_error(f"expected a table, found {value!r}", "write it as a [table]")
    return {key: convert_value(inner[1], item, location.child(key)) for key, item in value.items()}


_CONVERTERS: dict[Any, Callable[[tuple[Any, ...], Any, CardLocation], Any]] = {
    Literal: _convert_literal,
    tuple: _convert_list,
    dict: _convert_table,
}
