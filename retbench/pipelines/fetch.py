"""The fetch story: a name becomes weights or collections in the cache, each verified; and what is there already.

One that fails, for want of a licence or of a network, does not stop the others, and what came before an interruption
is not fetched again.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.corpora import open_collection
from retbench.corpora.cache_status import Stock, size, stock
from retbench.engines import weights
from retbench.errors import RetbenchError, UsageError, closest

Row = dict[str, Any]
SHOWN = 6  # missing tasks named in a summary


def fetch_all(name: str, say: Callable[[str], None]) -> Iterator[Row]:
    """A model, a task or every task of a suite; a failure is a row with its error."""
    for task in _tasks(name):
        yield _tried(task, "collection", lambda task=task: _collection(task, say))  # type: ignore[misc]  # a default binds it now
    if not _tasks(name):
        card = _model(name)
        yield _tried(card.name, "weights", lambda: _weights(card, say))


def stocks(names: list[str]) -> list[Row]:
    """What is here and how large: of each task and model named; without names, of every suite."""
    if not names:
        return [_summary(suite.name) for suite in catalog.suites()]
    return [
        row for name in names for row in (map(_stocked, _tasks(name)) if _tasks(name) else [_weighed(_model(name))])
    ]


def _tasks(name: str) -> tuple[str, ...]:
    if name in catalog.suites():
        return catalog.suites().find(name).members()
    return (catalog.tasks().find(name).name,) if name in catalog.tasks() else ()


def _model(name: str) -> ModelCard:
    if name in catalog.models() or "/" in name:
        return catalog.model(name)
    known = [*catalog.models().cards, *catalog.tasks().cards, *catalog.suites().cards]
    raise UsageError(f"there is no model, task or suite called {name!r}", closest(name, known))


def _tried(name: str, kind: str, fetch: Callable[[], Row]) -> Row:
    try:
        return fetch()
    except RetbenchError as error:
        failure = {"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code}
        return {"name": name, "kind": kind, **failure}


def _weights(card: ModelCard, say: Callable[[str], None]) -> Row:
    if card.weights is None:
        return {"name": card.name, "kind": "model without weights", "megabytes": 0.0, "fingerprint": "-"}
    local = weights.fetch(card, say)
    return {"name": card.name, "kind": "weights", "megabytes": local.bytes / 1e6, "fingerprint": local.fingerprint}


def _collection(name: str, say: Callable[[str], None]) -> Row:
    card = catalog.task(name)
    collection = open_collection.fetch(card, say)
    megabytes = stock(card).megabytes
    return {"name": name, "kind": "collection", "megabytes": megabytes, "fingerprint": collection.fingerprint}


def _stocked(task: str) -> Row:
    found = stock(catalog.task(task))
    return {
        "name": task, "kind": "collection", "state": found.state, "documents": found.documents,
        "queries": found.queries, "megabytes": found.megabytes, "origin": found.origin,
    }  # fmt: skip


def _weighed(card: ModelCard) -> Row:
    local = weights.find(card) if card.weights else None
    state = "cached" if local else "missing" if card.weights else "needs none"
    megabytes = round(local.bytes / 1e6, 1) if local else 0.0
    origin = card.weights.repo or card.weights.source if card.weights else "-"
    return {"name": card.name, "kind": "weights", "state": state, "megabytes": megabytes, "origin": origin}


def _summary(suite: str) -> Row:
    """One suite; a place that tasks share is counted once."""
    found = [stock(catalog.task(task)) for task in catalog.suites().find(suite).members()]
    missing = [one.task for one in found if one.state == "missing"]
    return {
        "name": suite, "kind": "suite", "state": f"{len(found) - len(missing)} of {len(found)} here",
        "megabytes": round(sum(map(size, _places(found))) / 1e6, 1), "missing": missing,
    }  # fmt: skip


def _places(found: list[Stock]) -> set[Path]:
    return {place for one in found for place in one.places}


def line(row: Row) -> str:
    """One row for a reader."""
    if "error" in row:
        return f"{row['name']}: not fetched"
    if "state" not in row:
        return f"{row['name']}: {row['megabytes']:,.1f} MB in the cache ({row['kind']}, {row['fingerprint'][:12]})"
    counts = "".join(f", {row[what]:,} {what}" for what in ("documents", "queries") if row.get(what) is not None)
    absent = row.get("missing", [])
    more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
    missing = f"; missing: {', '.join(absent[:SHOWN])}{more}" if absent else ""
    return f"{row['name']}: {row['state']}, {row['megabytes']:,.1f} MB{counts}{missing}"
