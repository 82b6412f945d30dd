"""A side of a comparison: a run of ours, an mteb result file, or anybody's TREC run, each read as far as it goes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import open_collection
from retbench.errors import RetbenchError, UsageError
from retbench.records.load_run import find_run, open_recorded_collection, read_rankings, read_trec_run
from retbench.records.mteb_results import MtebResult, read_mteb_results
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, read_record
from retbench.records.scored_run import load_scored_run
from retbench.reports.comparison import flatten_record
from retbench.retrievers.ranking import get_excluded_ids
from retbench.scoring.metrics import compute_mean_scores, score_run

DEPTH = 100  # a run does not say where it was cut; as in trec_eval, what it does not list was not found


@dataclass
class ComparedRun:
    """What is known of one side; `per_query` is empty where only means were published."""

    name: str
    task: str
    metric: str
    facts: dict[str, str]
    scores: Mapping[str, float]
    per_query: dict[str, float] = field(default_factory=dict)
    rankings: dict[str, list[str]] = field(default_factory=dict)
    collection: Collection | None = None
    record: Record | None = None


def load_compared_runs(a: str, b: str, results: Path, task: str | None) -> tuple[ComparedRun, ComparedRun]:
    """Both sides; a TREC run borrows the other side's judgments unless a task is named."""
    foreign = [_is_run(a), _is_run(b)]
    if all(foreign) and task is None:
        raise UsageError("two TREC runs hold no judgments", "name the collection: --task TASK")
    if not any(foreign):
        wanted = task or _recorded(a, results) or _recorded(b, results)
        return _stated(a, results, wanted), _stated(b, results, wanted)
    if all(foreign):
        return _run(a, task, None), _run(b, task, None)
    ours = _stated(b if foreign[0] else a, results, task)
    theirs = _run(a if foreign[0] else b, task, ours)
    return (theirs, ours) if foreign[0] else (ours, theirs)


def _is_run(argument: str) -> bool:
    path = Path(argument)
    return path.is_file() and path.suffix != ".json"


def _is_result(argument: str) -> bool:
    path = Path(argument)
    return path.is_file() and path.name != RECORD_FILE


def _recorded(argument: str, results: Path) -> str | None:
    """The task of a run of ours."""
    return None if _is_result(argument) else read_record(find_run(argument, results) / RECORD_FILE).task


def _chosen(path: Path, task: str | None) -> MtebResult:
    """The result of an mteb file; of several the one of the task asked for."""
    found = read_mteb_results(path)
    fitting = [one for one in found if one.task == task] if len(found) > 1 else found
    if not fitting:
        held = ", ".join(one.task for one in found) or "nothing"
        raise UsageError(f"{path} holds {held}, and not {task}", "name one of them: --task TASK")
    return fitting[0]


def _stated(argument: str, results: Path, task: str | None) -> ComparedRun:
    """A side that says itself what it is: a record of ours or an mteb result file."""
    path = Path(argument)
    if _is_result(argument):
        result = _chosen(path, task)
        metric = (
            catalog.find_task_card(result.task).metric if result.task in catalog.load_task_cards() else "ndcg_at_10"
        )
        stated = {"model": repr(result.model), "task": repr(result.task), **result.facts}
        return ComparedRun(f"{result.model} on {result.task} (mteb result)", result.task, metric, stated, result.scores)
    folder = find_run(argument, results)
    run = load_scored_run(folder, read_record(folder / RECORD_FILE))
    side = ComparedRun(
        _name(run.record), run.record.task, run.metric, flatten_record(run.record), run.record.scores, record=run.record
    )
    side.per_query = dict(zip(run.queries, run.values.tolist(), strict=True))
    try:
        side.collection = open_recorded_collection(run.record)
        side.rankings = read_rankings(folder, side.collection)
    except RetbenchError:  # without the texts the scores still stand
        side.collection = None
    return side


def _name(record: Record) -> str:
    return f"{record.model} · {record.method} · {record.task} ({record.settings_id})"


def _run(argument: str, task: str | None, other: ComparedRun | None) -> ComparedRun:
    """A foreign run, scored here on the task named or on the other side's collection."""
    collection, metric, rules = _judged(task, other)
    found = _allowed(read_trec_run(Path(argument)), collection, rules["same_id"] == "drop")
    depth = max([DEPTH, *map(len, found.values())])
    per_query = score_run(found, collection.judgments, depth, rules.get("relevant_from", 1))
    scores = compute_mean_scores(per_query)
    stated = {"task": repr(task or (other.task if other else ""))}
    values = {query: row[metric] for query, row in per_query.items()}
    name = f"{Path(argument).name} (TREC run)"
    return ComparedRun(name, task or (other.task if other else ""), metric, stated, scores, values, found, collection)


def _allowed(found: dict[str, list[str]], collection: Collection, drop_same_id: bool) -> dict[str, list[str]]:
    """A run without what its task does not rank; another system may not know the rule."""
    kept = {}
    for query, documents in found.items():
        out = get_excluded_ids(collection, query, drop_same_id)
        kept[query] = [document for document in documents if document not in out]
    return kept


def _judged(task: str | None, other: ComparedRun | None) -> tuple[Collection, str, dict[str, Any]]:
    if task is not None:
        card = catalog.find_task_card(task)
        return open_collection(card), card.metric, {"relevant_from": card.relevant_from, "same_id": card.same_id}
    if other is None or other.record is None:
        raise UsageError("a TREC run holds no judgments", "name the collection: --task TASK")
    return other.collection or open_recorded_collection(other.record), other.metric, other.record.settings
