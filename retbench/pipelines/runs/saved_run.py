"""A first stage: a saved run, ours or anybody's TREC run, read back as a ranking that a reranker can take."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards import catalog, toml_parser
from retbench.cards.checksums import cached_sha256
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import open_collection
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.errors import DataError, UsageError
from retbench.records import machine
from retbench.records.load_run import collection_of, rankings, scored_run
from retbench.records.record import Record
from retbench.records.results_folder import RECORD, Ledger, Run, read
from retbench.records.scored_run import raw_scores
from retbench.retrievers.ranking import Ranking
from retbench.scoring.metrics import mean_scores, score_run
from retbench.store.digest import compute_digest

FOREIGN = Method("run", "a run of another system", "ours", "a TREC run file", "mean")


@dataclass(frozen=True)
class First:
    """A finished run with its collection."""

    record: Record
    collection: Collection
    card: TaskCard
    ranking: Ranking

    @property
    def method(self) -> Method:
        """The method of the run, as its record holds it."""
        method: Method = card_of(Method, self.record.cards["method"])
        return method

    @property
    def spec(self) -> EncoderSpec | None:
        """The encoder of the run; none where words were searched, or where the run is a foreign one."""
        told = self.record.settings["encoder"]
        return EncoderSpec(**{**told, "method": self.method}) if told else None


def ours(folder: Path, collection: Collection | None = None, card: TaskCard | None = None) -> First:
    """A run of ours."""
    record = read(folder / RECORD)
    collection = collection or collection_of(record)
    scores = raw_scores(folder)
    ranked = {
        query: list(zip(found, scores[query], strict=True)) for query, found in rankings(folder, collection).items()
    }
    return First(
        record, collection, card or card_of(TaskCard, record.cards["task"]), _ranking(ranked, collection, folder)
    )


def foreign(file: Path, task: str, out: Path, command: str) -> tuple[First, Path]:
    """A run of another system, scored here and kept as a run of ours: it stands in the board beside its reranking."""
    card = catalog.find_task_card(task)
    collection = open_collection(card)
    ranking = _ranking(scored_run(file), collection, file).filter_and_cut(
        collection, card.same_id == "drop", card.depth
    )
    named = ranking.to_document_ids(collection)
    per_query = score_run(named, collection.judgments, card.depth, card.relevant_from)
    record = _record(file, card, collection, mean_scores(per_query), command)
    raw = dict(zip(named, (scores.tolist() for scores in ranking.scores), strict=True))
    folder = Ledger(out).write(record, Run(named, raw, per_query, {}))
    return First(record, collection, card, ranking), folder


def _record(file: Path, card: TaskCard, collection: Collection, scores: dict[str, float], command: str) -> Record:
    settings: dict[str, Any] = {
        "encoder": None, "lexical": None, "retriever": "run", "engine": "none", "run": cached_sha256(file), "rerankers": [],
        "fields": card.fields, "same_id": card.same_id, "excluded": card.excluded, "relevant_from": card.relevant_from,
        "depth": card.depth, "protocol": card.protocol, "split": card.split, "sample": None,
        "collection": collection.fingerprint,
    }  # fmt: skip
    counts = {
        "documents": len(collection.corpus),
        "queries": len(collection.queries),
        "judgments": sum(map(len, collection.judgments.values())),
        "fingerprint": collection.fingerprint,
        "corpus": collection.corpus.fingerprint,
    }
    model = ModelCard(file.name.split(".")[0].lower(), "lexical", "a run of another system")
    cards = {"model": asdict(model), "method": asdict(FOREIGN), "task": asdict(card)}
    cards["task"]["source"]["path"] = card.source.path and Path(card.source.path).name
    cost: dict[str, Any] = {"seconds": {}, "tokens_per_second": None, "documents_per_second": None,
                            "peak_memory_mb": None, "parameters": None, "weights_mb": None}  # fmt: skip
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(model.name, FOREIGN.name, card.name, card.suite, compute_digest(settings)[:12], settings, cards, counts, {},
                  machine.describe(), cost, scores, command, now)  # fmt: skip


def _ranking(found: dict[str, list[tuple[str, float]]], collection: Collection, source: Path) -> Ranking:
    """Ids into rows; a document that is not in the collection, or stands twice, makes the run another collection's."""
    known = {name: row for row, name in enumerate(collection.corpus.ids().to_pylist())}
    queries: Sequence[str] = collection.queries.ids().to_pylist()
    if not found.keys() & set(queries):
        raise DataError(
            f"{source.name} has none of the {len(queries)} queries", "name the task it was made for: --task TASK"
        )
    rows, scores = [], []
    for query in queries:
        entries = found.get(query, [])
        strange = next((name for name, _ in entries if name not in known), None)
        if strange is not None:
            raise DataError(
                f"{source.name}: query {query!r} ranks {strange!r}, which is not in the collection",
                "name the task it was made for: --task TASK",
            )
        if len({name for name, _ in entries}) < len(entries):
            raise DataError(f"{source.name}: query {query!r} ranks a document twice", "mend the run file")
        rows.append(np.array([known[name] for name, _ in entries], dtype=np.int64))
        scores.append(np.array([score for _, score in entries], dtype=np.float64))
    return Ranking(rows, scores)


def card_of(kind: Any, facts: dict[str, Any]) -> Any:
    """A card as a record holds it: what was not set is null there, and absent in a card."""
    return toml_parser.convert_value(
        kind, _set(json.loads(json.dumps(facts))), toml_parser.CardLocation(Path(RECORD), "")
    )


def _set(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _set(one) for key, one in value.items() if one is not None}
    return [_set(one) for one in value] if isinstance(value, list) else value


def need_task(task: str | None) -> str:
    """A foreign run does not say what it ranks."""
    if task is None:
        raise UsageError("a TREC run holds no judgments", "name the collection: --task TASK")
    return task
