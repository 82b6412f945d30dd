"""Fetch weights and collections into the cache by name, and list what is cached.

A failed item (no licence, no network) does not stop the others, and finished downloads are not repeated after an
interruption.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.corpora import open_collection
from retbench.corpora.cache_status import CacheStatus, get_cache_status, measure_size
from retbench.engines import weights, weights_cache
from retbench.errors import RetbenchError, UsageError, suggest_names

FetchRow = dict[str, Any]


def fetch_by_name(name: str, log_status: Callable[[str], None]) -> Iterator[FetchRow]:
    """Fetch a model, a task or every task of a suite; a failure is a row with its error."""
    for task in _resolve_tasks(name):
        yield _try_fetch(task, "collection", lambda task=task: _fetch_collection(task, log_status))  # type: ignore[misc]  # a default argument binds the loop variable
    if not _resolve_tasks(name):
        card = _find_model(name)
        yield _try_fetch(card.name, "weights", lambda: _fetch_weights(card, log_status))


def list_cached(names: list[str]) -> list[FetchRow]:
    """List the cached state and size of tasks and models; without names, of the cached weights and of every suite."""
    if not names:
        return [*_list_cached_models(), *(_build_suite_row(suite.name) for suite in catalog.load_suites())]
    return [
        row
        for name in names
        for row in (
            map(_build_task_row, _resolve_tasks(name))
            if _resolve_tasks(name)
            else [_build_model_row(_find_model(name))]
        )
    ]


def _list_cached_models() -> Iterator[FetchRow]:
    """The models whose weights are in the cache; damaged ones with their error."""
    for card in catalog.load_model_cards():
        if card.weights and weights_cache.get_weights_folder(card.name).is_dir():
            row = _try_fetch(card.name, "weights", partial(_build_model_row, card))
            if row.get("state") != "missing":
                yield row


def _resolve_tasks(name: str) -> tuple[str, ...]:
    """The tasks of a suite, and the task of that name: `msmarco` is both."""
    of_suite = catalog.load_suites().find(name).expand_tasks() if name in catalog.load_suites() else ()
    of_name = (catalog.load_task_cards().find(name).name,) if name in catalog.load_task_cards() else ()
    return tuple(dict.fromkeys([*of_suite, *of_name]))


def _find_model(name: str) -> ModelCard:
    if name in catalog.load_model_cards() or "/" in name:
        return catalog.find_model_card(name)
    registries = (catalog.load_model_cards(), catalog.load_task_cards(), catalog.load_suites(), catalog.load_studies())
    known_names = [card for registry in registries for card in registry.cards]
    step = suggest_names(name, known_names, "retbench list models|tasks|suites|studies")
    raise UsageError(f"there is no model, task, suite or study called {name!r}", step)


def _try_fetch(name: str, kind: str, fetch: Callable[[], FetchRow]) -> FetchRow:
    try:
        return fetch()
    except RetbenchError as error:
        failure = {"error": error.cause, "next_step": error.next_step, "exit_code": error.exit_code}
        return {"name": name, "kind": kind, **failure}


def _fetch_weights(card: ModelCard, log_status: Callable[[str], None]) -> FetchRow:
    if card.weights is None:
        return {"name": card.name, "kind": "model without weights", "megabytes": 0.0, "fingerprint": "-"}
    local = weights.fetch_weights(card, log_status)
    return {"name": card.name, "kind": "weights", "megabytes": local.bytes / 1e6, "fingerprint": local.fingerprint}


def _fetch_collection(name: str, log_status: Callable[[str], None]) -> FetchRow:
    card = catalog.find_task_card(name)
    collection = open_collection.fetch_collection(card, log_status)
    megabytes = get_cache_status(card).megabytes
    return {"name": name, "kind": "collection", "megabytes": megabytes, "fingerprint": collection.fingerprint}


def _build_task_row(task: str) -> FetchRow:
    status = get_cache_status(catalog.find_task_card(task))
    return {
        "name": task, "kind": "collection", "state": status.state, "documents": status.documents,
        "queries": status.queries, "megabytes": status.megabytes, "origin": status.origin,
    }  # fmt: skip


def _build_model_row(card: ModelCard) -> FetchRow:
    local = weights.find_local_weights(card) if card.weights else None
    state = "cached" if local else "missing" if card.weights else "needs none"
    megabytes = round(local.bytes / 1e6, 1) if local else 0.0
    origin = card.weights.repo or card.weights.source if card.weights else "-"
    return {"name": card.name, "kind": "weights", "state": state, "megabytes": megabytes, "origin": origin}


def _build_suite_row(suite: str) -> FetchRow:
    """Build the row of a suite; files shared by several tasks count once."""
    statuses = [
        get_cache_status(catalog.find_task_card(task)) for task in catalog.load_suites().find(suite).expand_tasks()
    ]
    missing = [status.task for status in statuses if status.state == "missing"]
    return {
        "name": suite, "kind": "suite", "state": f"{len(statuses) - len(missing)} of {len(statuses)} available",
        "megabytes": round(sum(map(measure_size, _collect_paths(statuses))) / 1e6, 1), "missing": missing,
    }  # fmt: skip


def _collect_paths(statuses: list[CacheStatus]) -> set[Path]:
    return {path for status in statuses for path in status.paths}


def format_row(row: FetchRow) -> str:
    """Format what became of one name as a line of text."""
    if "error" in row:
        return f"{row['name']}: not fetched"
    return f"{row['name']}: {row['megabytes']:,.1f} MB in the cache ({row['kind']}, {row['fingerprint'][:12]})"
