"""The two runs of a comparison: a retbench run, an mteb result file, or a TREC run of any system."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import open_collection
from retbench.errors import DataError, RetbenchError, UsageError
from retbench.records.load_run import (
    describe_missing_queries,
    find_run,
    get_task_name,
    load_trec_run,
    open_recorded_collection,
    read_rankings,
)
from retbench.records.mteb_results import MtebResult, read_mteb_results
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, read_record
from retbench.records.scored_run import load_scored_run
from retbench.reports.comparison import flatten_record
from retbench.retrievers.ranking import get_excluded_ids
from retbench.scoring.metrics import compute_mean_scores, score_run

MIN_DEPTH = 100  # a TREC run has no depth; as in trec_eval, a document that it does not list was not found


@dataclass
class ComparedRun:
    """One run of a comparison; `per_query` is empty if only mean scores were published."""

    name: str
    task: str
    metric: str
    facts: dict[str, str]
    scores: Mapping[str, float]
    per_query: dict[str, float] = field(default_factory=dict)
    rankings: dict[str, list[str]] = field(default_factory=dict)
    collection: Collection | None = None
    record: Record | None = None
    remarks: list[str] = field(default_factory=list)


def load_compared_runs(
    a: str, b: str, results: Path | None, task: str | None, metric: str | None = None
) -> tuple[ComparedRun, ComparedRun]:
    """Load both runs; a TREC run is scored by the judgments of the other run unless a task is named."""
    is_trec_run = [_is_trec_run(a), _is_trec_run(b)]
    if all(is_trec_run) and task is None:
        raise UsageError("two TREC runs have no judgments", "name the collection: --task TASK")
    name = task and get_task_name(task)
    if not any(is_trec_run):
        name = name or _read_recorded_task(a, results) or _read_recorded_task(b, results)
        return _load_described_run(a, results, name, metric), _load_described_run(b, results, name, metric)
    if all(is_trec_run):
        return _load_trec_run(a, task, None, metric), _load_trec_run(b, task, None, metric)
    if is_trec_run[0]:
        described = _load_described_run(b, results, name, metric)
        return _load_trec_run(a, task, described, metric), described
    described = _load_described_run(a, results, name, metric)
    return described, _load_trec_run(b, task, described, metric)


def _is_trec_run(argument: str) -> bool:
    path = Path(argument)
    return path.is_file() and path.suffix != ".json"


def _is_mteb_file(argument: str) -> bool:
    path = Path(argument)
    return path.is_file() and path.name != RECORD_FILE


def _read_recorded_task(argument: str, results: Path | None) -> str | None:
    """Return the task of a retbench run; None for an mteb file."""
    return None if _is_mteb_file(argument) else read_record(find_run(argument, results) / RECORD_FILE).task


def _select_result(path: Path, task: str | None) -> MtebResult:
    """Return the result of an mteb file; if it has several, the one of the task."""
    results = read_mteb_results(path)
    selected = [result for result in results if result.task == task] if len(results) > 1 else results
    if not selected:
        tasks = ", ".join(result.task for result in results) or "no results"
        raise UsageError(f"{path} has {tasks}, but not {task}", "name one of them: --task TASK")
    return selected[0]


def _load_described_run(argument: str, results: Path | None, task: str | None, metric: str | None) -> ComparedRun:
    """Load a run that contains its description: a retbench run or an mteb result file."""
    path = Path(argument)
    if _is_mteb_file(argument):
        result = _select_result(path, task)
        known = result.task in catalog.load_task_cards()
        metric = metric or (catalog.find_task_card(result.task).metric if known else "ndcg_at_10")
        facts = {"model": repr(result.model), "task": repr(result.task), **result.facts}
        return ComparedRun(f"{result.model} on {result.task} (mteb result)", result.task, metric, facts, result.scores)
    folder = find_run(argument, results, task)
    run = load_scored_run(folder, read_record(folder / RECORD_FILE), metric)
    record, facts = run.record, flatten_record(run.record)
    compared = ComparedRun(_format_name(record), record.task, run.metric, facts, record.scores, record=record)
    compared.per_query = dict(zip(run.queries, run.values.tolist(), strict=True))
    try:
        compared.collection = open_recorded_collection(record)
        compared.rankings = read_rankings(folder, compared.collection)
    except RetbenchError:  # scores can be compared without the texts
        compared.collection = None
    return compared


def _format_name(record: Record) -> str:
    return f"{record.model} · {record.method} · {record.task} ({record.settings_id})"


def _load_trec_run(argument: str, task: str | None, other: ComparedRun | None, metric: str | None) -> ComparedRun:
    """Load and score a TREC run, by the given task or by the collection of the other run."""
    collection, main_metric, rules = _load_judgments(task, other)
    metric = metric or main_metric
    run = load_trec_run(Path(argument))
    if not run.scored.keys() & collection.judgments.keys():
        raise DataError(
            f"{argument} has none of the {len(collection.judgments)} queries", "name the task it was made for: --task"
        )
    rankings = _remove_excluded(run.rankings, collection, rules["same_id"] == "drop")
    depth = max([MIN_DEPTH, *map(len, rankings.values())])
    per_query = score_run(rankings, collection.judgments, depth, rules.get("relevant_from", 1))
    scores = compute_mean_scores(per_query)
    if metric not in scores:
        raise DataError(f"{argument} has no {metric}: it ranks {depth} documents", f"choose one of {', '.join(scores)}")
    name_of_task = get_task_name(task) if task else other.task if other else ""
    values = {query: row[metric] for query, row in per_query.items()}
    name = f"{Path(argument).name} (TREC run)"
    facts = {"task": repr(name_of_task)}
    missing = describe_missing_queries(Path(argument), run.scored.keys(), collection.judgments.keys())
    remarks = [missing, run.describe_contradiction(Path(argument))]
    return ComparedRun(
        name, name_of_task, metric, facts, scores, values, rankings, collection, remarks=[*filter(None, remarks)]
    )


def _remove_excluded(
    rankings: dict[str, list[str]], collection: Collection, drop_same_id: bool
) -> dict[str, list[str]]:
    """Remove the documents that the task does not rank; the other system may not have done it."""
    filtered = {}
    for query, documents in rankings.items():
        excluded = get_excluded_ids(collection, query, drop_same_id)
        filtered[query] = [document for document in documents if document not in excluded]
    return filtered


def _load_judgments(task: str | None, other: ComparedRun | None) -> tuple[Collection, str, dict[str, Any]]:
    """Return the collection of the other run, at its split and sample; of another task, that of the task's card."""
    if other and other.record and other.collection and (task is None or other.task == get_task_name(task)):
        return other.collection, other.metric, other.record.settings
    if task is not None:
        card = catalog.find_task_card(task)
        rules = {"relevant_from": card.relevant_from, "same_id": card.same_id}
        return open_collection(card, with_images=True), card.metric, rules
    if other is None or other.record is None:
        raise UsageError("a TREC run has no judgments", "name the collection: --task TASK")
    return open_recorded_collection(other.record), other.metric, other.record.settings
