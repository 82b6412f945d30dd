"""Finished runs in mteb's result format, so that they can be submitted to its board.

The figures are mteb's own evaluator's, on our run, under mteb's rule for the task. Only what mteb would have measured
is exported: whole collections, at a protocol that is mteb's. A cut deeper than the run is left out, not made up.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.encoders.encoder_spec import limits
from retbench.errors import UsageError
from retbench.pipelines.mteb_bridge.search_model import OFFICIAL, meta
from retbench.pipelines.runs.saved_run import card_of
from retbench.records.load_run import collection_of, find_run, rankings
from retbench.records.record import Record
from retbench.records.results_folder import RECORD, read
from retbench.scoring.external_evaluators import mteb_drops_same_id, mteb_evaluation, referee_at_work

Scores = dict[str, dict[str, dict[str, Any]]]  # split, subset, metric
Members = list[tuple[Record, Path]]  # the runs of one file, and their folders
BY_TASK = ("instruction", "query_limit", "document_limit")  # of an encoder, what its task may decide
TOLD = ("dimensions", "vector_dtype", "rope")  # of an encoder, what it has only where a run asked for it


def export(runs: list[str], out: Path, results: Path = Path("results")) -> list[Path]:
    """Write one result file a model and mteb task; splits and languages of a task go into one file."""
    groups: dict[Path, Members] = {}
    for run in runs:
        folder = find_run(run, results)
        record = read(folder / RECORD)
        _refuse(record, folder)
        groups.setdefault(_target(record, out), []).append((record, folder))
    for file, members in groups.items():
        _need_one(file, members)
    for file, members in groups.items():
        _write(file, members, out)
    return [*groups]


def _refuse(record: Record, folder: Path) -> None:
    card = record.cards["task"]
    if not card["source"].get("mteb"):
        raise UsageError(f"{folder}: {record.task} is no task of mteb's", "export runs on hub collections")
    if card["protocol"] not in OFFICIAL:
        step = f"run the same collection under a protocol of mteb's ({' or '.join(OFFICIAL)})"
        raise UsageError(f"{folder}: mteb does not measure under the protocol {card['protocol']!r}", step)
    if record.settings["sample"]:
        raise UsageError(f"{folder}: it is a sample of {record.settings['sample']} queries", "run it without --sample")
    if rerankers := [one["rerank"] for one in record.settings["rerankers"]]:
        raise UsageError(f"{folder}: it was reranked by {', '.join(rerankers)}", "export the run before the reranker")
    if (search := record.settings["retriever"]) not in ("dense", record.method):  # words rank by the method itself
        raise UsageError(f"{folder}: it was searched by {search}, not exactly", "run it without --set search")


def _target(record: Record, out: Path) -> Path:
    """Where mteb files a run."""
    with referee_at_work("mteb"):
        from mteb.cache import ResultCache

        return Path(ResultCache(out).get_task_result_path(record.cards["task"]["source"]["mteb"], _who(record)))


def _need_one(file: Path, members: Members) -> None:
    """One file is one measurement; the tasks in it may bring their own instruction and lengths."""
    (first, folder), *others = members
    for record, other in others:
        if _measured(record) != _measured(first):
            cause = f"{folder} and {other} have other settings, and mteb one file for both: {file}"
            raise UsageError(cause, "export each into an --out of its own")


def _measured(record: Record) -> dict[str, Any]:
    facts = record.settings["encoder"] or record.settings["lexical"] or {}
    return {key: value for key, value in facts.items() if key not in BY_TASK}


def _write(file: Path, members: Members, out: Path) -> None:
    with referee_at_work("mteb"):
        import mteb
        from mteb.cache import ResultCache
        from mteb.results import TaskResult

        scores: Scores = {}
        for record, folder in members:
            source = record.cards["task"]["source"]
            subset = scores.setdefault(record.settings["split"], {})
            if (name := source["subset"] or "default") in subset:
                raise UsageError(f"two runs are on {record.task} ({folder} is the second)", "export them one by one")
            subset[name] = _scores(record, folder)
        first = members[0][0]
        task = mteb.get_task(first.cards["task"]["source"]["mteb"])
        found: Any = TaskResult.from_task_results(
            task, scores, evaluation_time=sum(_seconds(record) for record, _ in members),
            date=datetime.fromisoformat(first.created),
        )  # fmt: skip
        found.dataset_revision = first.cards["task"]["source"]["revision"] or found.dataset_revision
        if file.exists() and _figures(TaskResult.from_disk(file)) != _figures(found):
            raise UsageError(f"{file} holds other scores", "name another --out; a task's languages go in one command")
        ResultCache(out).save_to_cache(found, _who(first))


def _figures(result: Any) -> dict[tuple[str, ...], float]:
    """Every figure of a result, as mteb rounds it in a file."""
    return {
        (split, entry["hf_subset"], name): round(value, 6)
        for split, entries in result.scores.items()
        for entry in entries
        for name, value in entry.items()
        if isinstance(value, float)
    }


def _scores(record: Record, folder: Path) -> dict[str, Any]:
    from mteb._evaluators.retrieval_metrics import make_score_dict

    collection = collection_of(record)
    ranked = rankings(folder, collection)
    run = {query: {document: float(-rank) for rank, document in enumerate(ids)} for query, ids in ranked.items()}
    source = record.cards["task"]["source"]
    found = mteb_evaluation(collection.judgments, run, mteb_drops_same_id(source["mteb"]))
    told = make_score_dict(
        ndcg=found.ndcg, _map=found.map, recall=found.recall, precision=found.precision, mrr=found.mrr, naucs={},
        naucs_mrr={}, hit_rate=found.hit_rate, task_scores={},
    )  # fmt: skip
    scores = {name: value for name, value in told.items() if _cut(name) <= record.settings["depth"]}
    return {**scores, "main_score": scores[record.cards["task"]["metric"]]}


def _cut(name: str) -> int:
    cut = name.rpartition("_at_")[2]
    return int(cut) if cut.isdecimal() else 1


def _seconds(record: Record) -> float:
    return float(sum(record.cost["seconds"].values()))


def _who(record: Record) -> Any:
    kinds = {"model": ModelCard, "method": Method, "task": TaskCard}
    card, method, task = (card_of(kind, record.cards[name]) for name, kind in kinds.items())
    encoder = record.settings["encoder"] or {}
    return meta(card, method, encoder.get("weights", "")[:40] or None, _changed(encoder, card, task))


def _changed(encoder: Mapping[str, Any], card: ModelCard, task: TaskCard) -> dict[str, Any]:
    """What a run did otherwise than its cards say; not its dtype, which may be the machine's choice."""
    if not encoder:
        return {}
    changed = {key: encoder[key] for key in TOLD if key in encoder}
    asked = (encoder["query_limit"], encoder["document_limit"])
    if asked != limits(task, card.max_length, card.context_length):
        changed["max_length"] = max(asked)
    return changed
