"""What was fetched first is what is meant later: `pins.toml` in the cache holds revision and fingerprint."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from retbench.cards import user_config
from retbench.cards.text_parsers import parse_toml
from retbench.errors import DataError


@dataclass(frozen=True)
class Pin:
    """The revision a name stood for at its first fetch, and what came."""

    revision: str
    fingerprint: str


def get_pins_file() -> Path:
    """Where the pins are."""
    return user_config.cache_folder() / "pins.toml"


def read_pin(kind: str, name: str) -> Pin | None:
    """The pin of one name; `kind` is its table, such as `models`."""
    entry = _read_tables().get(kind, {}).get(name)
    try:
        return Pin(**entry) if entry else None
    except TypeError as problem:
        raise DataError(
            f"{get_pins_file()}: {kind}.{name} is not a pin", "delete that entry; the next fetch writes it"
        ) from problem


def write_pin(kind: str, name: str, pin: Pin) -> None:
    """Write the pin; a revision that brings other bytes than it did at first is refused."""
    get_pins_file().parent.mkdir(parents=True, exist_ok=True)
    with FileLock(get_pins_file().with_suffix(".lock")):
        first = read_pin(kind, name)
        if first and first.revision == pin.revision and first.fingerprint != pin.fingerprint:
            raise DataError(
                f"{name} at {pin.revision} has fingerprint {pin.fingerprint[:16]}; at the first fetch it was "
                f"{first.fingerprint[:16]}",
                f"something changed it: fetch again, or delete its entry in {get_pins_file()} if the change is meant",
            )
        tables = _read_tables()
        tables.setdefault(kind, {})[name] = asdict(pin)
        _write_tables(tables)


def _read_tables() -> dict[str, Any]:
    if not get_pins_file().exists():
        return {}
    try:
        tables = parse_toml(get_pins_file().read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(
            f"{get_pins_file()}: not valid TOML: {problem}", "mend the line it names, or delete the file"
        ) from problem
    if not all(isinstance(entry, dict) for kind in tables.values() for entry in _list_entries(kind)):
        raise DataError(
            f"{get_pins_file()}: there is more in it than pins", "mend or delete the file; the next fetch writes it"
        )
    return tables


def _list_entries(kind: object) -> list[object]:
    return list(kind.values()) if isinstance(kind, dict) else [kind]


def _write_tables(tables: dict[str, Any]) -> None:
    """A string in JSON is a string in TOML, so json quotes the names."""
    lines = [
        f"[{kind}.{json.dumps(name)}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
        for kind, entries in sorted(tables.items())
        for name, entry in sorted(entries.items())
    ]
    fresh = get_pins_file().with_suffix(".partial")
    fresh.write_text("\n".join(lines), encoding="utf-8")
    os.replace(fresh, get_pins_file())
