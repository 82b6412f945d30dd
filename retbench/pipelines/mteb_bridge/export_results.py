"""`retbench export`: writes finished runs in mteb's result format, so that they can be submitted to its leaderboard.

mteb's own evaluator scores the run with mteb's rules for the task. Only runs that mteb could have measured are
exported: whole collections with a protocol of mteb. Metrics with a cutoff deeper than the run are left out.
"""

import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from retbench.cards.method import VECTOR_KINDS, Method
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.encoders.encoder_spec import compute_length_limits
from retbench.errors import DataError, UsageError
from retbench.pipelines.mteb_bridge.search_model import MTEB_PROTOCOLS, build_model_meta
from retbench.pipelines.runs.saved_run import parse_stored_card
from retbench.records.load_run import find_run, open_recorded_collection, read_rankings
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, read_record
from retbench.scoring.external_evaluators import does_mteb_drop_same_id, import_evaluator, run_mteb_evaluator
from retbench.system.durable_files import create_writable_folder, write_file_atomically

RUN_SETTINGS_FILE = "run_settings.jsonl"  # mteb's, one for all results of a model

ScoresBySplit = dict[str, dict[str, dict[str, Any]]]  # split, subset, metric
FileRuns = list[tuple[Record, Path]]  # the runs of one file, and their folders
TASK_DEPENDENT_KEYS = ("instruction", "query_limit", "document_limit")  # encoder settings that depend on the task
OPTIONAL_KEYS = ("dimensions", "vector_dtype", "rope")  # encoder settings that exist only if the run set them


def export_results(runs: list[str], out: Path, results: Path | None = None, task: str | None = None) -> list[Path]:
    """Write one result file per model and mteb task; it holds all splits and languages of the task."""
    runs_by_file: dict[Path, FileRuns] = {}
    for run in runs:
        folder = find_run(run, results, task)
        record = read_record(folder / RECORD_FILE)
        _check_exportable(record, folder)
        runs_by_file.setdefault(_get_result_path(record, out), []).append((record, folder))
    for file, runs_of_file in runs_by_file.items():
        _check_same_settings(file, runs_of_file)
    create_writable_folder(out)
    for file, runs_of_file in runs_by_file.items():
        _write_result_file(file, runs_of_file)
    return [*runs_by_file]


def _check_exportable(record: Record, folder: Path) -> None:
    card = record.cards["task"]
    if not card["source"].get("mteb"):
        raise UsageError(f"{folder}: {record.task} is not a task of mteb", "export runs on hub collections")
    if card["protocol"] not in MTEB_PROTOCOLS:
        step = f"run the same collection with a protocol of mteb ({' or '.join(MTEB_PROTOCOLS)})"
        raise UsageError(f"{folder}: mteb does not have the protocol {card['protocol']!r}", step)
    if record.settings["sample"]:
        raise UsageError(
            f"{folder}: the run is a sample of {record.settings['sample']} queries", "run it without --sample"
        )
    if rerankers := [reranker["rerank"] for reranker in record.settings["rerankers"]]:
        raise UsageError(f"{folder}: the run was reranked by {', '.join(rerankers)}", "export the first stage")
    if (retriever := record.settings["retriever"]) not in (*VECTOR_KINDS, record.method):  # a lexical method is its own
        raise UsageError(f"{folder}: the run used {retriever} instead of exact search", "run it without --set search")


def _get_result_path(record: Record, out: Path) -> Path:
    """Return the path of the run's result file in mteb's folder layout."""
    with import_evaluator("mteb"):
        from mteb.cache import ResultCache

        return Path(ResultCache(out).get_task_result_path(record.cards["task"]["source"]["mteb"], _build_meta(record)))


def _check_same_settings(file: Path, runs_of_file: FileRuns) -> None:
    """Raise if the runs of one file differ in settings other than the task's instruction and lengths."""
    (first_record, folder), *others = runs_of_file
    for record, other_folder in others:
        if _get_model_settings(record) != _get_model_settings(first_record):
            cause = f"{folder} and {other_folder} have different settings, but mteb uses one file for both: {file}"
            raise UsageError(cause, "export each into a separate --out")


def _get_model_settings(record: Record) -> dict[str, Any]:
    settings = record.settings["encoder"] or record.settings["lexical"] or {}
    return {key: value for key, value in settings.items() if key not in TASK_DEPENDENT_KEYS}


def _write_result_file(file: Path, runs_of_file: FileRuns) -> None:
    with import_evaluator("mteb"):
        import mteb
        from mteb.results import TaskResult

        scores: ScoresBySplit = {}
        for record, folder in runs_of_file:
            source = record.cards["task"]["source"]
            scores_by_subset = scores.setdefault(record.settings["split"], {})
            if (subset_name := source["subset"] or "default") in scores_by_subset:
                raise UsageError(
                    f"there are two runs of {record.task}; {folder} is the second", "export them one by one"
                )
            scores_by_subset[subset_name] = _score_run(record, folder)
        first_record = runs_of_file[0][0]
        task = mteb.get_task(first_record.cards["task"]["source"]["mteb"])
        result: Any = TaskResult.from_task_results(
            task, scores, evaluation_time=sum(_sum_seconds(record) for record, _ in runs_of_file),
            date=datetime.fromisoformat(first_record.created),
        )  # fmt: skip
        result.dataset_revision = first_record.cards["task"]["source"]["revision"] or result.dataset_revision
        if file.exists() and _round_scores(_read_result(file)) != _round_scores(result):
            raise UsageError(f"{file} holds other scores", "name another --out; a task's languages go in one command")
        _save_result(result, _build_meta(first_record), file)


def _read_result(file: Path) -> Any:
    from mteb.results import TaskResult

    try:
        return TaskResult.from_disk(file)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:  # pydantic's error is a ValueError
        raise DataError(f"{file} is not a result file of mteb", "remove it and export again") from problem


def _save_result(result: Any, meta: Any, file: Path) -> None:
    """Let mteb write its files into a temporary folder and move them: a killed export leaves no half of a file."""
    from mteb.cache import ResultCache

    with tempfile.TemporaryDirectory() as folder:
        cache = ResultCache(folder)
        written = Path(cache.get_task_result_path(result.task_name, meta))
        written.parent.mkdir(parents=True)
        if (settings := file.with_name(RUN_SETTINGS_FILE)).is_file():  # mteb adds this task to those of the model
            shutil.copy(settings, written.parent)
        cache.save_to_cache(result, meta)
        file.parent.mkdir(parents=True, exist_ok=True)
        for path in sorted(written.parent.iterdir(), key=lambda path: path == written):  # the result last
            write_file_atomically(file.with_name(path.name), path.read_bytes())


def _round_scores(result: Any) -> dict[tuple[str, ...], float]:
    """Return every score of a result, rounded as in mteb's files."""
    return {
        (split, entry["hf_subset"], name): round(value, 6)
        for split, entries in result.scores.items()
        for entry in entries
        for name, value in entry.items()
        if isinstance(value, float)
    }


def _score_run(record: Record, folder: Path) -> dict[str, Any]:
    from mteb._evaluators.retrieval_metrics import make_score_dict

    collection = open_recorded_collection(record)
    ranked = read_rankings(folder, collection)
    run = {query: {document: float(-rank) for rank, document in enumerate(ids)} for query, ids in ranked.items()}
    source = record.cards["task"]["source"]
    metrics = run_mteb_evaluator(collection.judgments, run, does_mteb_drop_same_id(source["mteb"]))
    all_scores = make_score_dict(
        ndcg=metrics.ndcg, _map=metrics.map, recall=metrics.recall, precision=metrics.precision, mrr=metrics.mrr,
        naucs={}, naucs_mrr={}, hit_rate=metrics.hit_rate, task_scores={},
    )  # fmt: skip
    scores = {name: value for name, value in all_scores.items() if _parse_cutoff(name) <= record.settings["depth"]}
    return {**scores, "main_score": scores[record.cards["task"]["metric"]]}


def _parse_cutoff(name: str) -> int:
    cutoff = name.rpartition("_at_")[2]
    return int(cutoff) if cutoff.isdecimal() else 1


def _sum_seconds(record: Record) -> float:
    return float(sum(record.cost["seconds"].values()))


def _build_meta(record: Record) -> Any:
    kinds = {"model": ModelCard, "method": Method, "task": TaskCard}
    card, method, task = (parse_stored_card(kind, record.cards[name]) for name, kind in kinds.items())
    encoder = record.settings["encoder"] or {}
    changed = {**_list_changed_settings(encoder, card, task), **_find_unusual_dtype(record, card)}
    return build_model_meta(card, method, encoder.get("weights", "")[:40] or None, changed)


def _find_unusual_dtype(record: Record, card: ModelCard) -> dict[str, str]:
    """Return the dtype that computed if it is not the model's usual one: mteb's file then says so in its path.

    Records of earlier versions hold only the dtype that was asked for. Without one in the card they are told apart
    from nothing: whether theirs is the usual one is unknown, so it is always stated.
    """
    encoder = record.settings["encoder"]
    if not encoder or record.settings["engine"].startswith("endpoint"):
        return {}
    dtype = record.texts.get("dtype", {"computed": encoder["dtype"], "usual": card.dtype})
    computed = encoder["dtype"] if dtype["computed"] == "unknown" else dtype["computed"]
    return {} if computed == dtype["usual"] else {"dtype": computed}


def _list_changed_settings(encoder: Mapping[str, Any], card: ModelCard, task: TaskCard) -> dict[str, Any]:
    """Return the settings other than the dtype in which a run differs from its cards."""
    if not encoder:
        return {}
    changed = {key: encoder[key] for key in OPTIONAL_KEYS if key in encoder}
    lengths = (encoder["query_limit"], encoder["document_limit"])
    if lengths != compute_length_limits(task, card.max_length, card.context_length):
        changed["max_length"] = max(lengths)
    return changed
