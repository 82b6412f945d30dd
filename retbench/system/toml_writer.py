"""Write a card as TOML that `toml_parser` reads back as the same card. Unset fields are left out."""

import json
from dataclasses import fields, is_dataclass
from typing import Any


def format_card(card: Any) -> str:
    """Write a card; fields with their default value are left out too."""
    return "\n".join(_format_lines(_build_table(card), ())) + "\n"


def format_toml_value(value: Any) -> str:
    """Write a value as JSON, which is valid TOML once DEL is escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _build_table(record: Any) -> dict[str, Any]:
    set_values = {field.name: getattr(record, field.name) for field in fields(record) if _is_set(record, field)}
    return {name: _to_plain_value(value) for name, value in set_values.items()}


def _is_set(record: Any, field: Any) -> bool:
    value = getattr(record, field.name)
    return value is not None and value != field.default


def _to_plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return _build_table(value)
    if isinstance(value, dict):
        return {key: _to_plain_value(item) for key, item in value.items() if item is not None}
    return [_to_plain_value(item) for item in value] if isinstance(value, tuple | list) else value


def _format_lines(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    """Write values first: in TOML everything after a header belongs to that table."""
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    arrays = {key: v for key, v in table.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    lines = [
        f"{_format_key(key)} = {format_toml_value(v)}"
        for key, v in table.items()
        if key not in tables and key not in arrays
    ]
    for key, value in tables.items():
        lines += ["", f"[{'.'.join(map(_format_key, (*path, key)))}]", *_format_lines(value, (*path, key))]
    for key, items in arrays.items():
        for item in items:
            lines += ["", f"[[{'.'.join(map(_format_key, (*path, key)))}]]", *_format_lines(item, (*path, key))]
    return lines


def _format_key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else format_toml_value(key)
