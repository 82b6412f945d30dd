"""`pins.toml` in the cache: the revision and fingerprint of the first fetch, which later fetches must match."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retbench.errors import DataError
from retbench.system import user_config
from retbench.system.durable_files import write_file_atomically
from retbench.system.file_locks import hold_lock
from retbench.system.text_parsers import parse_toml


@dataclass(frozen=True)
class Pin:
    """The revision at the first fetch, and the fingerprint of what was fetched."""

    revision: str
    fingerprint: str


def get_pins_file() -> Path:
    """Return the path of `pins.toml`."""
    return user_config.get_cache_folder() / "pins.toml"


def read_pin(kind: str, name: str) -> Pin | None:
    """Read the pin of one name; `kind` is its table, such as `models`."""
    entry = _read_tables().get(kind, {}).get(name)
    try:
        return Pin(**entry) if entry else None
    except TypeError as problem:
        raise DataError(
            f"{get_pins_file()}: {kind}.{name} is not a pin", "delete that entry; the next fetch writes it"
        ) from problem


def write_pin(kind: str, name: str, pin: Pin) -> None:
    """Write a pin; refuse a revision whose fingerprint changed since the first fetch."""
    get_pins_file().parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(get_pins_file().with_suffix(".lock")):
        first = read_pin(kind, name)
        if first and first.revision == pin.revision and first.fingerprint != pin.fingerprint:
            raise DataError(
                f"{name} at {pin.revision} has fingerprint {pin.fingerprint[:16]}; at the first fetch it was "
                f"{first.fingerprint[:16]}",
                f"its content changed: fetch again, or delete its entry in {get_pins_file()} if the change is intended",
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
            f"{get_pins_file()}: not valid TOML: {problem}", "correct that line, or delete the file"
        ) from problem
    if not all(isinstance(entry, dict) for kind in tables.values() for entry in _list_entries(kind)):
        raise DataError(
            f"{get_pins_file()}: it holds entries that are not pins",
            "correct or delete the file; the next fetch writes it",
        )
    return tables


def _list_entries(kind: object) -> list[object]:
    return list(kind.values()) if isinstance(kind, dict) else [kind]


def _write_tables(tables: dict[str, Any]) -> None:
    """Write the tables; a JSON string is a valid TOML string, so json quotes the names."""
    lines = [
        f"[{kind}.{json.dumps(name)}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
        for kind, entries in sorted(tables.items())
        for name, entry in sorted(entries.items())
    ]
    write_file_atomically(get_pins_file(), "\n".join(lines).encode())
