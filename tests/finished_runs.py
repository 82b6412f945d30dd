"""Writes finished runs without running anything: records with the given per-query scores."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retbench.cards.method import Method
from retbench.cards.model import LexicalSettings, ModelCard
from retbench.cards.task import SourceSpec, TaskCard
from retbench.records.failure import Failure
from retbench.records.record import Record
from retbench.records.results_folder import ResultsFolder, RunFiles
from retbench.store.digest import compute_digest

METRIC = "ndcg_at_10"
HOSTILE_NAME = "<img src=x onerror=alert(1)>|`&\\_^~{}$%#\"'*[x](y)\n=cmd"


def write_finished_run(
    root: Path,
    model: str,
    task: str,
    scores: Sequence[float],
    *,
    method: str = "bm25",
    suite: str = "mine",
    settings: dict[str, Any] | None = None,
    created: str = "2026-01-01T00:00:00+00:00",
    fingerprint: str = "",
    cost: dict[str, Any] | None = None,
    more_scores: dict[str, Sequence[float]] | None = None,
    **card: Any,
) -> Path:
    """Write one finished run; return its folder."""
    queries = [f"q{number:03}" for number in range(len(scores))]
    metrics = {METRIC: scores, **(more_scores or {})}
    means = {name: sum(values) / len(values) for name, values in metrics.items()}
    model_card = ModelCard(model, **{"kind": "lexical", "lexical": LexicalSettings(), **card})
    task_card = TaskCard(task, SourceSpec("folder", path=task), suite)
    stamp = fingerprint or compute_digest([task, queries])
    facts = {
        "encoder": None, "lexical": {"name": model}, "retriever": "bm25", "engine": "bm25s", "rerankers": [],
        "fields": ["title", "text"], "same_id": "keep", "depth": 100, "protocol": "standard", "split": "test",
        "sample": None, "collection": stamp, **(settings or {}),
    }  # fmt: skip
    costs = {
        "seconds": {"search": 1.0}, "tokens_per_second": None, "documents_per_second": 100.0, "peak_memory_mb": 200.0,
        "parameters": card.get("parameters"), "weights_mb": None, **(cost or {}),
    }  # fmt: skip
    cards = {
        "model": asdict(model_card),
        "method": asdict(Method(method, "t", "ours", "s", "mean")),
        "task": asdict(task_card),
    }
    counts = {"documents": 3, "queries": len(queries), "judgments": 3, "fingerprint": stamp, "corpus": stamp}
    record = Record(
        model, method, task, suite, compute_digest(facts)[:12], facts, cards, counts, {},
        {"cpu": "a processor", "packages": {}}, costs, means,
        f"retbench run --model {model}", created,
    )  # fmt: skip
    rankings = {query: ["d1", "d2"] for query in queries}
    raw = {query: [2.0, 1.0] for query in queries}
    per_query = {
        query: {name: float(values[number]) for name, values in metrics.items()} for number, query in enumerate(queries)
    }
    return ResultsFolder(root).write_run(record, RunFiles(rankings, raw, per_query, {"query": {"text": "?"}}))


def write_failed_run(
    root: Path, model: str, task: str, *, method: str = "bm25", suite: str = "mine", error: str = "no weights"
) -> None:
    """Write one failed cell."""
    note = Failure(
        model, method, task, suite, "test", "standard", None, "failed", error, "fetch them", 3, "retbench run"
    )
    ResultsFolder(root).write_failure(note)
