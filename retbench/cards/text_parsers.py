"""JSON and TOML from anywhere: whatever is wrong with the text is a ValueError, also nesting no parser can follow."""

import json
import tomllib
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value a JSON text stands for."""
    try:
        return json.loads(text)
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem


def parse_toml(text: str) -> dict[str, Any]:
    """The table a TOML text stands for."""
    try:
        return tomllib.loads(text)
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem
