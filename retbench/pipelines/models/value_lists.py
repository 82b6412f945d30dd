"""Lists in the values of `--set`: `dimensions=64,128` gives a row for each value.

Each combination of several lists is a variant. Variants that differ only in what is done with stored vectors (the
dimensions, the search) share one embedding.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from retbench.errors import UsageError


def expand_value_lists(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the lists, in the order given; the values themselves if there is no list."""
    lists = {key: _split_list(key, value) if isinstance(value, str) else [value] for key, value in values.items()}
    return [dict(zip(lists, combination, strict=True)) for combination in product(*lists.values())]


def _split_list(key: str, text: str) -> list[str | int]:
    """The values of one list. In `ivf:lists=9,probes=2,exact` the second part is an option, and no value."""
    parts: list[str] = []
    for part in text.split(","):
        is_option = bool(parts) and ":" in parts[-1] and "=" in part.partition(":")[0]
        parts[-1:] = [f"{parts[-1]},{part}"] if is_option else [*parts[-1:], part]
    if len(parts) == 1:
        return [text]
    if "" in parts:
        raise UsageError(f"--set {key}={text} has an empty value", f"write {key}=VALUE,VALUE")
    return [int(part) if part.isascii() and part.isdecimal() else part for part in dict.fromkeys(parts)]
