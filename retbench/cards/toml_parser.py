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

from retbench.cards.text_parsers import parse_toml
from retbench.errors import DataError, suggest_names

T = TypeVar("T")


@dataclass(frozen=True)
class CardLocation:
    """A spot in a card: the file, its text, and the keys that lead to the field; list items count from 1."""

    file: Path
    text: str
    keys: tuple[str, ...] = ()

    def child(self, key: str) -> "CardLocation":
        """The field `key` below this place."""
        return CardLocation(self.file, self.text, (*self.keys, key))

    def find_line(self) -> int:
        """Where the field stands; where it is missing, the nearest key or table around it, or 1."""
        table: tuple[str, ...] = ()
        tables: Counter[str] = Counter()
        depth, found = 0, 1
        for number, line in enumerate(self.text.split("\n"), start=1):
            if header := re.match(r"\s*\[(\[?)([^\]]+)\]", line):
                tables[header[2]] += 1
                table = (*_split_key(header[2]), *([str(tables[header[2]])] if header[1] else []))
            key = re.match(r"\s*([\w.\"'-]+)\s*=", line)
            path = (*table, *(_split_key(key[1]) if key else ()))
            if len(path) > depth and path == self.keys[: len(path)]:
                depth, found = len(path), number
        return found

    def make_error(self, problem: str, next_step: str) -> DataError:
        """The error that names this place."""
        return DataError(f"{self.file}:{self.find_line()}: {'.'.join(self.keys) or 'card'}: {problem}", next_step)


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(name.strip(" \"'") for name in dotted.split("."))


def load_card(cls: type[T], file: Path, **extra_fields: Any) -> T:
    """Read one card; `given` are fields that come from where the file lies, not from its text."""
    try:
        text = file.read_text(encoding="utf-8")
        table = parse_toml(text)
    except UnicodeDecodeError as problem:
        raise DataError(f"{file}: not UTF-8 text", "save the card as UTF-8") from problem
    except ValueError as problem:
        raise DataError(f"{file}: not valid TOML: {problem}", "mend the line it names") from problem
    return _build_dataclass(cls, {**table, **extra_fields}, CardLocation(file, text))


def _build_dataclass(cls: type[T], table: object, place: CardLocation) -> T:
    if not isinstance(table, dict):
        raise place.make_error(f"expected a table, found {table!r}", "write it as a [table]")
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # cls is a dataclass
    for key in table:
        if key not in known:
            raise place.child(key).make_error("unknown field", suggest_names(key, known))
    missing = [name for name, field in known.items() if name not in table and not _has_default(field)]
    if missing:
        raise place.child(missing[0]).make_error("missing", f"add `{missing[0]}` to the card")
    values = {key: convert_value(hints[key], value, place.child(key)) for key, value in table.items()}
    try:
        return cls(**values)
    except DataError as problem:  # what the record itself refuses
        raise place.make_error(problem.cause, problem.next_step) from problem


def _has_default(field: "Field[Any]") -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def convert_value(hint: Any, value: Any, place: CardLocation) -> Any:
    """Check one value against a type hint; tables become dataclasses, arrays become tuples."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return convert_value(next(h for h in inner if h is not type(None)), value, place)
    if origin is not None:
        return _CONVERTERS[origin](inner, value, place)
    if isinstance(hint, type) and is_dataclass(hint):
        return _build_dataclass(hint, value, place)
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise place.make_error(f"expected {hint.__name__}, found {value!r}", f"write it as {hint.__name__}")
    return value


def _convert_literal(choices: tuple[Any, ...], value: Any, place: CardLocation) -> Any:
    if value not in choices:
        raise place.make_error(f"{value!r} is not a choice", suggest_names(str(value), map(str, choices)))
    return value


def _convert_list(inner: tuple[Any, ...], value: Any, place: CardLocation) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise place.make_error(f"expected a list, found {value!r}", "write it as [ ... ]")
    return tuple(convert_value(inner[0], item, place.child(str(number))) for number, item in enumerate(value, start=1))


def _convert_table(inner: tuple[Any, ...], value: Any, place: CardLocation) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise place.make_error(f"expected a table, found {value!r}", "write it as a [table]")
    return {key: convert_value(inner[1], item, place.child(key)) for key, item in value.items()}


_CONVERTERS: dict[Any, Callable[[tuple[Any, ...], Any, CardLocation], Any]] = {
    Literal: _convert_literal,
    tuple: _convert_list,
    dict: _convert_table,
}
