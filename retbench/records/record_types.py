"""The types of the values in `record.json` that reports read. Other values may have any type: versions add fields.

A record may have been edited, or written by another program. One that does not fit is left out of a report with its
reason; without this check it would end the whole report.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ValuesOf:
    """An object with any keys, whose values all have one type."""

    type: Any


@dataclass(frozen=True)
class NotNegative:
    """A number of one type that is at least zero."""

    type: type


TEXT, COUNT, NUMBER = (str,), (NotNegative(int),), (int, float)
LIST_OF_TEXT = [TEXT]
COST, OPTIONAL_TEXT = (NotNegative(int), NotNegative(float)), (str, None)
OPTIONAL_COST, OPTIONAL_COUNT = (*COST, None), (*COUNT, None)

# A tuple holds the allowed types, None among them; a dict holds named values, of which those with `?` may be missing.
RECORD_TYPES: dict[str, Any] = {
    "model": TEXT,
    "method": TEXT,
    "task": TEXT,
    "suite": TEXT,
    "settings_id": TEXT,
    "command": TEXT,
    "created": TEXT,
    "settings": {
        "split": TEXT,
        "sample": (int, None),
        "engine": TEXT,
        "retriever": TEXT,
        "rerankers": [{"rerank": TEXT}],
        "protocol?": TEXT,
        "fields?": [TEXT],
        "depth?": COUNT,
        "run?": TEXT,
        "encoder?": (
            {
                "query_limit": COUNT,
                "document_limit": COUNT,
                "dtype": TEXT,
                "weights": TEXT,
                "rope?": OPTIONAL_TEXT,
                "adaptor?": OPTIONAL_TEXT,
            },
            None,
        ),
    },
    "cards": {
        "model": {
            "training_sets?": ([TEXT], None),
            **dict.fromkeys(("name?", "family?", "kind?", "specialisation?", "parent?"), OPTIONAL_TEXT),
            "parameters?": OPTIONAL_COUNT,
            "shape?": ({"layers": COUNT, "width": COUNT, "vocabulary": COUNT}, None),
            "training?": (
                {
                    "recipe": {"name?": OPTIONAL_TEXT, "seed?": (int, None)},
                    "data": {"set?": OPTIONAL_TEXT, "fingerprint?": OPTIONAL_TEXT},
                    "run": {},
                },
                None,
            ),
        },
        "method": {"name": TEXT, "fidelity?": TEXT, "kind?": TEXT},
        "task": {
            "name": TEXT,
            "metric": TEXT,
            "collection?": OPTIONAL_TEXT,
            "license?": OPTIONAL_TEXT,
            "lengths?": ({"query": COUNT, "document": COUNT}, None),
        },
    },
    "collection": {"documents": COUNT, "queries": COUNT, "fingerprint": TEXT},
    "texts": {},
    "machine": {},
    "cost": {
        "seconds": ValuesOf(COST),
        "tokens_per_second": OPTIONAL_COST,
        "documents_per_second?": OPTIONAL_COST,
        "peak_memory_mb?": OPTIONAL_COST,
        "parameters?": OPTIONAL_COST,
        "weights_mb?": OPTIONAL_COST,
        "cpu_joules?": OPTIONAL_COST,
        "gpu_joules?": OPTIONAL_COST,
        "active_parameters?": OPTIONAL_COST,
        "embedding_parameters?": OPTIONAL_COST,
        "price?": OPTIONAL_COST,
        "price_per_million_documents?": OPTIONAL_COST,
    },
    "scores": ValuesOf(NUMBER),
}


def find_wrong_type(facts: object, types: dict[str, Any] = RECORD_TYPES) -> str | None:
    """Describe the first value of a record or a failure that has another type than reports expect; None if all fit."""
    return next(_find_problems(vars(facts), types, ""), None)


def _find_problems(value: Any, expected: Any, path: str) -> Iterator[str]:
    if isinstance(expected, tuple):
        if not any(_fits(value, one, path) for one in expected):
            yield f"{path} is {value!r:.40}"
    elif isinstance(expected, list):
        if not isinstance(value, list | tuple):
            yield f"{path} is {value!r:.40}, not a list"
            return
        for number, item in enumerate(value):
            yield from _find_problems(item, expected[0], f"{path}[{number}]")
    elif not isinstance(value, dict):
        yield f"{path} is {value!r:.40}, not an object"
    elif isinstance(expected, ValuesOf):
        for key, item in value.items():
            yield from _find_problems(item, expected.type, f"{path}.{key}")
    else:
        yield from _find_field_problems(value, expected, path)


def _find_field_problems(value: dict[str, Any], expected: dict[str, Any], path: str) -> Iterator[str]:
    for key, field_type in expected.items():
        name = key.removesuffix("?")
        if name in value:
            yield from _find_problems(value[name], field_type, f"{path}.{name}".lstrip("."))
        elif name == key:
            yield f"{path}.{name} is missing".lstrip(".")


def _fits(value: Any, expected: Any, path: str) -> bool:
    if expected is None:
        return value is None
    if isinstance(expected, NotNegative):
        return _fits(value, expected.type, path) and value >= 0
    if not isinstance(expected, type):
        return not any(_find_problems(value, expected, path))
    return type(value) is expected and not (isinstance(value, float) and not math.isfinite(value))
