"""Finished runs in mteb's result format, so that they can be submitted to its board.

The figures are mteb's own evaluator's, on our run, under mteb's rule for the task. Only what mteb would have measured
is exported: whole collections, at a protocol that is mteb's. A cut deeper than the run is left out, not made up.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from retbench.cards import parse
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.errors import UsageError
from retbench.pipelines.inside_mteb import OFFICIAL, meta
from retbench.pipelines.recall import collection_of, find_run, rankings
from retbench.pipelines.referees import mteb_drops_same_id, mteb_evaluation, referee_at_work
from retbench.records.ledger import RECORD, read
from retbench.records.record import Record

Scores = dict[str, dict[str, dict[str, Any]]]  # split, subset, metric


def export(runs: list[str], out: Path, results: Path = Path("results")) -> list[Path]:
    """Write one result file a model and mteb task; splits and languages of a task go into one file."""
    groups: dict[tuple[str, str], list[tuple[Record, Path]]] = {}
    for run in runs:
        folder = find_run(run, results)
        record = read(folder / RECORD)
        _refuse(record, folder)
        name = f"{record.model} {record.method} {record.settings['encoder']}"
        groups.setdefault((name, record.cards["task"]["source"]["mteb"]), []).append((record, folder))
    return [_write(task, members, out) for (_, task), members in groups.items()]


def _refuse(record: Record, folder: Path) -> None:
    card = record.cards["task"]
    if not card["source"].get("mteb"):
        raise UsageError(f"{folder}: {record.task} is no task of mteb's", "export runs on hub collections")
    if card["protocol"] not in OFFICIAL:
        step = f"run the same collection under a protocol of mteb's ({' or '.join(OFFICIAL)})"
        raise UsageError(f"{folder}: mteb does not measure under the protocol {card['protocol']!r}", step)
    if record.settings["sample"]:
        raise UsageError(f"{folder}: it is a sample of {record.settings['sample']} queries", "run it without --sample")


def _write(task: str, members: list[tuple[Record, Path]], out: Path) -> Path:
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
        found: Any = TaskResult.from_task_results(
            mteb.get_task(task), scores, evaluation_time=sum(_seconds(record) for record, _ in members),
            date=datetime.fromisoformat(first.created),
        )  # fmt: skip
        found.dataset_revision = first.cards["task"]["source"]["revision"] or found.dataset_revision
        cache, who = ResultCache(out), _who(first)
        cache.save_to_cache(found, who)
        return Path(cache.get_task_result_path(task, who))


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
    return int(cut) if cut.isdigit() else 1


def _seconds(record: Record) -> float:
    return float(sum(record.cost["seconds"].values()))


def _who(record: Record) -> Any:
    place = parse.Place(Path(RECORD), "", ("cards",))
    card = parse.convert(ModelCard, _plain(record.cards["model"]), place.at("model"))
    method = parse.convert(Method, _plain(record.cards["method"]), place.at("method"))
    return meta(card, method, (record.settings["encoder"] or {}).get("weights", "")[:40] or None)


def _plain(card: Mapping[str, Any]) -> dict[str, Any]:
    """A card's content from a record, without what it left open."""
    return {
        key: _plain(value) if isinstance(value, dict) else value for key, value in card.items() if value is not None
    }
