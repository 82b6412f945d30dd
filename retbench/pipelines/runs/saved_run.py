"""Saved runs: a run of retbench or a TREC run file, read back as a ranking, for example for a reranker."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards import catalog
from retbench.cards.method import ROLES, Method
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.corpora.candidate_lists import read_candidate_lists
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import open_collection
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.errors import DataError, UsageError
from retbench.pipelines.runs.build_record import RunInputs, build_record, describe_task_settings
from retbench.records.load_run import (
    describe_missing_queries,
    open_recorded_collection,
    read_rankings,
    read_scored_trec_run,
)
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, ResultsFolder, read_record
from retbench.records.scored_run import read_raw_scores
from retbench.retrievers.ranking import Ranking
from retbench.retrievers.score_ranking import score_ranking
from retbench.system import toml_parser
from retbench.system.checksums import compute_sha256

log = logging.getLogger(__name__)

IMPORTED_METHOD = Method("run", "a run of another system", "ours", "a TREC run file", "mean")


@dataclass(frozen=True)
class SavedRun:
    """A finished run with its collection."""

    record: Record
    collection: Collection
    card: TaskCard
    ranking: Ranking

    @property
    def method(self) -> Method:
        """The method, from the record."""
        method: Method = parse_stored_card(Method, self.record.cards["method"])
        return method

    @property
    def spec(self) -> EncoderSpec | None:
        """The encoder, from the record; None for a lexical or an imported run."""
        settings = self.record.settings["encoder"]
        if not settings:
            return None
        stored = settings["method"]  # a task's card may replace the method's own templates
        templates = {role: stored.get(role, getattr(Method, role)) for role in ROLES}
        return EncoderSpec(**{**settings, "method": replace(self.method, **templates)})


def load_run(folder: Path, collection: Collection | None = None, card: TaskCard | None = None) -> SavedRun:
    """Load a run of retbench; `collection` and `card` are given where they are open already."""
    record = read_record(folder / RECORD_FILE)
    collection = collection or _choose_recorded_inputs(open_recorded_collection(record), record)
    scores, rankings = read_raw_scores(folder), read_rankings(folder, collection)
    scored_ids = {query: list(zip(ids, scores[query], strict=True)) for query, ids in rankings.items()}
    card = card or parse_stored_card(TaskCard, record.cards["task"])
    return SavedRun(record, collection, card, _build_ranking(scored_ids, collection, folder))


def _choose_recorded_inputs(collection: Collection, record: Record) -> Collection:
    """Return a collection as the model of a run read it: with `images = "prefer"` its images, or its texts."""
    if record.settings.get("images") != "prefer":
        return collection
    has_seen = {"document_images", "query_images"} & record.collection.keys()
    return collection.prefer_images() if has_seen else collection.drop_images()


def import_trec_run(file: Path, task: str, out: Path, command: str) -> tuple[SavedRun, Path]:
    """Score the run or the candidate lists of another system; written as a run, they are on the leaderboard too."""
    card = catalog.find_task_card(task)
    collection = open_collection(card, with_images=True)
    scored_ids = _read_scored_run(file)
    if missing := describe_missing_queries(file, scored_ids.keys(), collection.judgments.keys()):
        log.warning(missing)
    scored = score_ranking(_build_ranking(scored_ids, collection, file), collection, card)
    record = _build_imported_record(file, card, collection, scored.compute_means(), command)
    folder = ResultsFolder(out).write_run(record, scored.to_run_files({}))
    return SavedRun(record, collection, card, scored.ranking), folder


def _read_scored_run(file: Path) -> dict[str, list[tuple[str, float]]]:
    """Read a TREC run, or candidate lists, whose texts are those of the collection."""
    if not re.search(r"\.jsonl(\.gz)?$", file.name):
        return read_scored_trec_run(file)
    return {
        entry.query_id: [(document, score) for document, score, _ in entry.candidates]
        for entry in read_candidate_lists(file)
    }


def _build_imported_record(
    file: Path, card: TaskCard, collection: Collection, scores: dict[str, float], command: str
) -> Record:
    settings: dict[str, Any] = {
        "encoder": None,
        "lexical": None,
        "retriever": "run",
        "engine": "none",
        "run": compute_sha256(file),
        "rerankers": [],
        **describe_task_settings(card, collection, sample=None),
    }
    model = ModelCard(file.name.split(".")[0].lower(), "lexical", "a run of another system")
    unknown = ("tokens_per_second", "documents_per_second", "peak_memory_mb", "parameters", "weights_mb")
    cost: dict[str, Any] = {"seconds": {}, **dict.fromkeys(unknown)}
    inputs = RunInputs.describe(model, IMPORTED_METHOD, card, collection, texts={})
    return build_record(inputs, settings, cost, scores, command)


def _build_ranking(scored_ids: dict[str, list[tuple[str, float]]], collection: Collection, source: Path) -> Ranking:
    """Replace document ids by rows; an unknown or repeated document means that the run is of another collection."""
    row_by_id = {name: row for row, name in enumerate(collection.corpus.read_ids().to_pylist())}
    queries: Sequence[str] = collection.queries.read_ids().to_pylist()
    if not scored_ids.keys() & set(queries):
        raise DataError(
            f"{source.name} has none of the {len(queries)} queries", "name the task it was made for: --task TASK"
        )
    rows, scores = [], []
    for query in queries:
        entries = scored_ids.get(query, [])
        unknown = next((name for name, _ in entries if name not in row_by_id), None)
        if unknown is not None:
            raise DataError(
                f"{source.name}: query {query!r} ranks {unknown!r}, which is not in the collection",
                "name the task it was made for: --task TASK",
            )
        if len({name for name, _ in entries}) < len(entries):
            raise DataError(f"{source.name}: query {query!r} ranks a document twice", "correct the run file")
        rows.append(np.array([row_by_id[name] for name, _ in entries], dtype=np.int64))
        scores.append(np.array([score for _, score in entries], dtype=np.float64))
    return Ranking(rows, scores)


def parse_stored_card(kind: Any, facts: dict[str, Any]) -> Any:
    """Parse a card from a record, where a field without a value is null; in a card file it is absent."""
    values = _drop_nulls(json.loads(json.dumps(facts)))
    return toml_parser.convert_value(kind, values, toml_parser.CardLocation(Path(RECORD_FILE), ""))


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    return [_drop_nulls(item) for item in value] if isinstance(value, list) else value


def require_task(task: str | None) -> str:
    """Return the task of an imported run, which does not contain it."""
    if task is None:
        raise UsageError("a TREC run has no judgments", "name the collection: --task TASK")
    return task
