"""`retbench compare`: the differing settings of two runs, their scores, a test, and the queries that changed most."""

from pathlib import Path

import numpy as np

from retbench.corpora.collection import Collection
from retbench.corpora.text_excerpts import find_rows, shorten_text
from retbench.corpora.texts import describe_row
from retbench.pipelines.runs.compare_inputs import ComparedRun, load_compared_runs
from retbench.reports.comparison import (
    Comparison,
    PairedTest,
    QueryChange,
    compute_paired_test,
    list_setting_differences,
)

SHOWN_DOCUMENTS = 3


def compare_runs(
    a: str,
    b: str,
    results: Path | None = None,
    task: str | None = None,
    queries: int = 5,
    metric: str | None = None,
) -> Comparison:
    """Compare A with B: each is a run's folder or settings-id, an mteb result file, or a TREC run.

    `metric` replaces the task's main metric in the test.
    """
    run_a, run_b = load_compared_runs(a, b, results, task, metric)
    shared = {m: (run_a.scores[m], run_b.scores[m]) for m in run_a.scores if m in run_b.scores}
    main_metric = {run_a.metric: shared[run_a.metric]} if run_a.metric in shared else {}
    remarks, test, changes = _find_obstacles(run_a, run_b), None, list[QueryChange]()
    if not remarks:
        test, changes = _test_difference(run_a, run_b, queries)
        if changes and changes[0].text is None:
            remarks.append("the texts are not in the cache, so the queries are shown without them")
    remarks += [*run_a.remarks, *run_b.remarks]
    settings = list_setting_differences(run_a.facts, run_b.facts)
    return Comparison(run_a.name, run_b.name, run_a.task, settings, {**main_metric, **shared}, test, changes, remarks)


def _find_obstacles(a: ComparedRun, b: ComparedRun) -> list[str]:
    """Return why the queries cannot be paired; nothing if they can."""
    if a.task != b.task:
        return [f"no test: A is on {a.task} and B on {b.task}"]
    means_only = [run.name for run in (a, b) if not run.per_query]
    if means_only:
        return [f"no test: {' and '.join(means_only)} has only mean scores"]
    if a.metric != b.metric:
        return [f"no test: A is measured by {a.metric} and B by {b.metric}"]
    if a.per_query.keys() != b.per_query.keys():
        return [f"no test: A has {len(a.per_query)} queries and B {len(b.per_query)}, and they are not the same"]
    if a.record and b.record and a.record.collection["fingerprint"] != b.record.collection["fingerprint"]:
        return ["no test: the documents, queries or judgments are not the same (collection.fingerprint)"]
    return []


def _test_difference(a: ComparedRun, b: ComparedRun, max_changes: int) -> tuple[PairedTest, list[QueryChange]]:
    names = list(a.per_query)
    scores_a, scores_b = (np.array([run.per_query[name] for name in names]) for run in (a, b))
    order = np.argsort(-np.abs(scores_a - scores_b), kind="stable")[:max_changes]
    collection = a.collection or b.collection
    changes = [
        QueryChange(names[i], float(scores_a[i]), float(scores_b[i]), *_load_query_texts(collection, names[i], a, b))
        for i in order
        if scores_a[i] != scores_b[i]
    ]
    return compute_paired_test(a.metric, scores_a, scores_b), changes


def _load_query_texts(
    collection: Collection | None, query: str, a: ComparedRun, b: ComparedRun
) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    if collection is None:
        return None, (), ()
    text = describe_row(collection.queries, find_rows(collection.queries, [query])[query], ("text",))
    return (
        shorten_text(text),
        format_documents(collection, query, a.rankings.get(query, [])[:SHOWN_DOCUMENTS]),
        format_documents(collection, query, b.rankings.get(query, [])[:SHOWN_DOCUMENTS]),
    )


def format_documents(collection: Collection, query: str, names: list[str]) -> tuple[str, ...]:
    """Format documents for a reader: grade, id, the beginning of the text."""
    row_by_id = find_rows(collection.corpus, names)
    judged = collection.judgments.get(query, {})
    lines = []
    for name in names:
        text = (
            shorten_text(describe_row(collection.corpus, row_by_id[name])) if name in row_by_id else "not in the corpus"
        )
        lines.append(f"[{judged.get(name, '-')}] {name}: {text}")
    return tuple(lines)
