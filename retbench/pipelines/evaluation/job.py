"""The bench: one cell on its way from cards to record."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retbench.cards import ann_settings
from retbench.cards.method import Method
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.open_collection import open_collection
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.engines.memory import free_pages, peak_mb, reset_peak
from retbench.pipelines.evaluation.request import Request
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.prompt_examples import example
from retbench.pipelines.models.search import rank
from retbench.records import machine
from retbench.records.cell import Cell, of_record
from retbench.records.phase_timer import Meter, Silent
from retbench.records.record import Record
from retbench.records.results_folder import Ledger, Run
from retbench.retrievers.ranking import Ranking
from retbench.scoring.metrics import mean_scores, score_run
from retbench.store.digest import compute_digest


@dataclass
class EvaluationJob:
    """One cell on its way."""

    request: Request
    candidate: ResolvedModel
    method: Method
    card: TaskCard

    def __post_init__(self) -> None:
        self.collection: Collection = open_collection(self.card, self.request.sample)
        self.spec: EncoderSpec | None = None
        if not self.candidate.lexical:
            self.spec = self.candidate.spec(self.method, self.card, self.request.overrides)
        self.settings = self._settings()
        self.settings_id = compute_digest(self.settings)[:12]

    def _settings(self) -> dict[str, Any]:
        """Everything that may change a score; not versions, not the machine."""
        lexical = self.candidate.lexical
        return {
            "encoder": self.spec.describe() if self.spec else None,
            "lexical": lexical.describe() if lexical else None,
            "retriever": self.method.name if lexical else self._retriever(),
            "engine": "bm25s" if lexical else self.candidate.engine.settings_name,
            "rerankers": [],
            "fields": self.card.fields,
            "same_id": self.card.same_id,
            "excluded": self.card.excluded,
            "relevant_from": self.card.relevant_from,
            "depth": self.card.depth,
            "protocol": self.card.protocol,
            "split": self.card.split,
            "sample": self.request.sample,
            "collection": self.collection.fingerprint,
        }

    def _retriever(self) -> str:
        wanted = ann_settings.parse_ann_settings(self.request.overrides.get("search", "exact"))
        return ann_settings.format_ann_settings(wanted) if wanted else "dense"

    def found(self) -> Record | None:
        """The finished record on disk."""
        return Ledger(self.request.out).find(self.folder)

    @property
    def folder(self) -> Path:
        """Where its record lies."""
        ledger = Ledger(self.request.out)
        return ledger.folder(self.card.suite, self.card.name, self.candidate.card.name, self.settings_id)

    def cell(self) -> Cell:
        """The finished record on disk, or a new one."""
        if found := self.found():
            return of_record(found, str(self.folder), cached=True)
        Ledger(self.request.out).need_writable()
        meter = Meter(self.request.show)
        free_pages()
        reset_peak()
        record, run = self._run(meter)
        return of_record(record, str(Ledger(self.request.out).write(record, run)), cached=False)

    def draft(self) -> Record:
        """The record before anything was run, for those who only want to see what would be."""
        return self._record(Meter(Silent()), {}, {})

    def _run(self, meter: Meter) -> tuple[Record, Run]:
        sample = example(self.candidate, self.spec, self.card, self.collection)
        ranking, texts = self._rank(meter)
        with meter.phase("score"):
            ranking = ranking.filter_and_cut(self.collection, self.card.same_id == "drop", self.card.depth)
            rankings = ranking.to_document_ids(self.collection)
            per_query = score_run(rankings, self.collection.judgments, self.card.depth, self.card.relevant_from)
        raw = dict(zip(rankings, (scores.tolist() for scores in ranking.scores), strict=True))
        return self._record(meter, texts, mean_scores(per_query)), Run(rankings, raw, per_query, sample)

    def _rank(self, meter: Meter) -> tuple[Ranking, dict[str, Any]]:
        k = self.card.depth + (self.card.same_id == "drop") + self.collection.max_excluded
        return rank(self.candidate, self.method, self.card, self.collection, self.request.overrides, meter, k)

    def _record(self, meter: Meter, texts: dict[str, Any], scores: dict[str, float]) -> Record:
        collection = {
            "documents": len(self.collection.corpus),
            "queries": len(self.collection.queries),
            "judgments": sum(map(len, self.collection.judgments.values())),
            "fingerprint": self.collection.fingerprint,
            "corpus": self.collection.corpus.fingerprint,
        }
        return Record(
            self.candidate.card.name, self.method.name, self.card.name, self.card.suite,
            self.settings_id, self.settings, self._cards(), collection, texts, machine.describe(),
            self._cost(meter, texts), scores, self.request.command, datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip

    def _cards(self) -> dict[str, Any]:
        """The cards' content; where weights or a collection lie on this machine is nobody's business."""
        model, task = asdict(self.candidate.card), asdict(self.card)
        for place in (model["weights"], task["source"]):
            if place and place["path"]:
                place["path"] = Path(place["path"]).name
        return {"model": model, "method": asdict(self.method), "task": task}

    def _cost(self, meter: Meter, texts: dict[str, Any]) -> dict[str, Any]:
        document = texts.get("document")
        embedding = document["seconds"] if document else meter.seconds.get("index documents", 0.0)
        return {
            "seconds": {phase: round(seconds, 3) for phase, seconds in meter.seconds.items()},
            "tokens_per_second": round(document["tokens"] / embedding, 1) if document and embedding else None,
            "documents_per_second": round(len(self.collection.corpus) / embedding, 1) if embedding else None,
            "peak_memory_mb": max(round(peak_mb(), 1), document["peak_memory_mb"] if document else 0.0),
            "parameters": self.candidate.card.parameters,
            "weights_mb": round(self.candidate.local.bytes / 1e6, 1) if self.candidate.local else None,
        }
