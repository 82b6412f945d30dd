"""Parse untrusted JSON and TOML: every problem is a ValueError, also nesting too deep for the parser."""

import json
import tomllib
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text."""
    try:
        return json.loads(text)
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML text."""
    try:
        return tomllib.loads(text)
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem
