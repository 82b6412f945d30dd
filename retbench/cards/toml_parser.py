"""TOML text into frozen dataclasses; every complaint names file, line and field.

The dataclass is the schema: its field names, its type hints and its defaults. Nothing else describes a card.
"""

import re
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from retbench.cards.decode import from_toml
from retbench.errors import DataError, closest

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A spot in a card: the file, its text, and the keys that lead to the field; list items count from 1."""

    file: Path
    text: str
    keys: tuple[str, ...] = ()

    def at(self, key: str) -> "Place":
        """The field `key` below this place."""
        return Place(self.file, self.text, (*self.keys, key))

    def line(self) -> int:
        """Where the field stands; where it is missing, the nearest key or table around it, or 1."""
        table: tuple[str, ...] = ()
        tables: Counter[str] = Counter()
        depth, found = 0, 1
        for number, line in enumerate(self.text.split("\n"), start=1):
            if header := re.match(r"\s*\[(\[?)([^\]]+)\]", line):
                tables[header[2]] += 1
                table = (*_names(header[2]), *([str(tables[header[2]])] if header[1] else []))
            key = re.match(r"\s*([\w.\"'-]+)\s*=", line)
            path = (*table, *(_names(key[1]) if key else ()))
            if len(path) > depth and path == self.keys[: len(path)]:
                depth, found = len(path), number
        return found

    def wrong(self, problem: str, next_step: str) -> DataError:
        """The error that names this place."""
        return DataError(f"{self.file}:{self.line()}: {'.'.join(self.keys) or 'card'}: {problem}", next_step)


def _names(dotted: str) -> tuple[str, ...]:
    return tuple(name.strip(" \"'") for name in dotted.split("."))


def load(cls: type[T], file: Path, **given: Any) -> T:
    """Read one card; `given` are fields that come from where the file lies, not from its text."""
    try:
        text = file.read_text(encoding="utf-8")
        table = from_toml(text)
    except UnicodeDecodeError as problem:
        raise DataError(f"{file}: not UTF-8 text", "save the card as UTF-8") from problem
    except ValueError as problem:
        raise DataError(f"{file}: not valid TOML: {problem}", "mend the line it names") from problem
    return _record(cls, {**table, **given}, Place(file, text))


def _record(cls: type[T], table: object, place: Place) -> T:
    if not isinstance(table, dict):
        raise place.wrong(f"expected a table, found {table!r}", "write it as a [table]")
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    for key in table:
        if key not in known:
            raise place.at(key).wrong("unknown field", closest(key, known))
    missing = [name for name, field in known.items() if name not in table and not _has_default(field)]
    if missing:
        raise place.at(missing[0]).wrong("missing", f"add `{missing[0]}` to the card")
    values = {key: convert(hints[key], value, place.at(key)) for key, value in table.items()}
    try:
        return cls(**values)
    except DataError as problem:  # what the record itself refuses
        raise place.wrong(problem.cause, problem.next_step) from problem


def _has_default(field: "Field[Any]") -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def convert(hint: Any, value: Any, place: Place) -> Any:
    """Check one value against a type hint; tables become dataclasses, arrays become tuples."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return convert(next(h for h in inner if h is not type(None)), value, place)
    if origin is not None:
        return _CONTAINERS[origin](inner, value, place)
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, value, place)
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise place.wrong(f"expected {hint.__name__}, found {value!r}", f"write it as {hint.__name__}")
    return value


def _literal(choices: tuple[Any, ...], value: Any, place: Place) -> Any:
    if value not in choices:
        raise place.wrong(f"{value!r} is not a choice", closest(str(value), map(str, choices)))
    return value


def _tuple(inner: tuple[Any, ...], value: Any, place: Place) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise place.wrong(f"expected a list, found {value!r}", "write it as [ ... ]")
    return tuple(convert(inner[0], item, place.at(str(number))) for number, item in enumerate(value, start=1))


def _dict(inner: tuple[Any, ...], value: Any, place: Place) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.wrong(f"expected a table, found {value!r}", "write it as a [table]")
    return {key: convert(inner[1], item, place.at(key)) for key, item in value.items()}


_CONTAINERS: dict[Any, Callable[[tuple[Any, ...], Any, Place], Any]] = {Literal: _literal, tuple: _tuple, dict: _dict}
