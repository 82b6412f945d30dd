"""`name:key=value,key=value`: a card by name, with some of its fields changed for one run.

The fields of the dataclass are the options, its type hints say what a value may be; nothing else describes them.
"""

import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from retbench.cards import toml_parser
from retbench.errors import DataError, UsageError, suggest_names

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound="DataclassInstance")
else:
    D = TypeVar("D")


def split_options(word: str) -> tuple[str, dict[str, str]]:
    """The name, and the options after the colon."""
    name, _, rest = word.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",")] if rest else []
    wrong = next((key for key, equals, _ in pairs if not equals), None)
    if wrong is not None:
        raise UsageError(f"{word}: {wrong!r} has no value", f"write {name}:KEY=VALUE,KEY=VALUE")
    return name, {key: value for key, _, value in pairs}


def join_options(name: str, options: dict[str, str]) -> str:
    """The one way to write it, whatever the order it was typed in."""
    return f"{name}:{','.join(f'{key}={options[key]}' for key in sorted(options))}" if options else name


def apply_options(card: D, options: dict[str, str], fixed: tuple[str, ...] = ()) -> D:
    """The card with options applied; `fixed` fields are not options."""
    hints = get_type_hints(type(card))
    known = [field.name for field in fields(card) if field.name not in fixed]
    for key in options:
        if key not in known:
            raise UsageError(f"there is no option {key!r}", suggest_names(key, known))
    try:
        values = {key: _parse_value(hints[key], key, text) for key, text in options.items()}
        return replace(card, **values)
    except DataError as problem:
        raise UsageError(problem.cause, problem.next_step) from problem


def _parse_value(hint: Any, key: str, text: str) -> Any:
    place = toml_parser.CardLocation(Path("option"), "", (key,))
    if hint is str or str in get_args(hint):
        return text
    try:
        return toml_parser.convert_value(hint, tomllib.loads(f"value = {text}")["value"], place)
    except tomllib.TOMLDecodeError:
        return toml_parser.convert_value(hint, text, place)
