"""Parse `name:key=value,key=value`: a card by name with some of its fields changed for one run.

The fields of the dataclass are the options, and its type hints define their values.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from retbench.errors import DataError, UsageError, suggest_names
from retbench.system import toml_parser

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    DataclassT = TypeVar("DataclassT", bound="DataclassInstance")
else:
    DataclassT = TypeVar("DataclassT")


OPTION_PLACE = "option:1: "  # where a parser of files says that an option stands


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Split `name:key=value,...` into the name and the options."""
    name, _, option_text = text.partition(":")
    pairs = [pair.partition("=") for pair in option_text.split(",")] if option_text else []
    key_without_value = next((key for key, equals, _ in pairs if not equals), None)
    if key_without_value is not None:
        raise UsageError(f"{text}: {key_without_value!r} has no value", f"write {name}:KEY=VALUE,KEY=VALUE")
    return name, {key: value for key, _, value in pairs}


def join_options(name: str, options: dict[str, str]) -> str:
    """Write a name and its options in canonical order."""
    return f"{name}:{','.join(f'{key}={options[key]}' for key in sorted(options))}" if options else name


def apply_options(
    card: DataclassT,
    options: dict[str, str],
    fixed: tuple[str, ...] = (),
    renamed: Mapping[str, str] = MappingProxyType({}),
    parsed: Mapping[str, Any] = MappingProxyType({}),
) -> DataclassT:
    """Return the card with the options applied; `fixed` fields are not options, `renamed` maps old to new names.

    `parsed` are fields that change together with the options, because a card is checked as a whole.
    """
    hints = get_type_hints(type(card))
    option_names = [field.name for field in fields(card) if field.name not in fixed]
    for key, text in options.items():
        if key in renamed:
            raise UsageError(f"the option {key!r} was renamed to {renamed[key]!r}", f"write {renamed[key]}={text}")
        if key not in option_names:
            raise UsageError(f"there is no option {key!r}", suggest_names(key, option_names))
    try:
        values = {key: _parse_value(hints[key], key, text) for key, text in options.items()}
        return replace(card, **values, **parsed)
    except DataError as problem:
        raise UsageError(problem.cause.removeprefix(OPTION_PLACE), problem.next_step) from problem


def _parse_value(hint: Any, key: str, text: str) -> Any:
    location = toml_parser.CardLocation(Path("option"), "", (key,))
    if hint is str or (get_origin(hint) in (Union, UnionType) and str in get_args(hint)):
        return text
    try:
        return toml_parser.convert_value(hint, tomllib.loads(f"value = {text}")["value"], location)
    except tomllib.TOMLDecodeError:
        return toml_parser.convert_value(hint, text, location)
