"""One reranked cell (a first stage, a reranker, a record), and chains of rerankers.

In a chain every reranker has its own cell and reads the run before it. So every stage has its own score on the
leaderboard, and an interrupted chain continues where it stopped.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retbench.cards.reranker_settings import RerankerRequest, parse_reranker
from retbench.cards.task import TaskCard
from retbench.corpora.texts import join_fields
from retbench.engines.memory import free_pages, peak_mb, reset_peak
from retbench.errors import RetbenchError, reraise_resource_errors
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.reranking.base import ModelResolver, RerankerSpec
from retbench.pipelines.reranking.factory import build_reranker_spec
from retbench.pipelines.runs.saved_run import First
from retbench.records import machine
from retbench.records.cell import Cell, of_record
from retbench.records.failure import labelled
from retbench.records.output import Place
from retbench.records.phase_timer import Meter
from retbench.records.record import Record
from retbench.records.results_folder import Ledger, Run
from retbench.rerankers.candidates import RerankedRanking, rerank_queries
from retbench.scoring.metrics import mean_scores, score_run
from retbench.store.digest import compute_digest


def parse_rerankers(arguments: tuple[str, ...]) -> list[RerankerRequest]:
    """Parse and check all `--rerank` arguments before any work begins."""
    return [parse_reranker(argument) for argument in arguments]


def rerank_cells(
    first_stage: First,
    request: RerankerRequest,
    first_stage_model: ResolvedModel | None,
    resolver: ModelResolver,
    output: Place,
) -> Iterator[Cell]:
    """Yield the cells of the reranker's baselines, then its own."""
    record = first_stage.record
    spec = build_reranker_spec(request, first_stage, first_stage_model, resolver)
    for stage in (*spec.list_baselines(), spec):
        output.say(" · ".join((record.model, record.method, record.task, stage.request.spelling)))
        yield RerankingJob(first_stage, stage, output).load_or_run()


@dataclass(frozen=True)
class RerankerChain:
    """Rerankers applied in order, each to the run before it."""

    requests: list[RerankerRequest]
    resolver: ModelResolver
    output: Place

    def rerank_cell(
        self,
        cell: Cell,
        card: TaskCard,
        load_run: Callable[[Path], First],
        first_stage_model: ResolvedModel | None = None,
    ) -> Iterator[Cell]:
        """Yield the cells of all rerankers, starting from the run of `cell`; stop after a failed one."""
        for request in self.requests:
            rerankers = (*cell.rerank, request.spelling)
            finished: list[Cell] = []
            try:
                with reraise_resource_errors():
                    first_stage = load_run(Path(cell.record or ""))
                    for stage in rerank_cells(first_stage, request, first_stage_model, self.resolver, self.output):
                        finished.append(stage)
                        yield stage
            except RetbenchError as error:
                yield self.output.failed(error, cell.model, cell.method, card, cell.sample, rerankers)
                return
            cell = finished[-1]
            Ledger(self.output.out).forget(Path(cell.record or ""), labelled(cell.method, rerankers))


@dataclass(frozen=True)
class RerankingJob:
    """One reranked cell that is found on disk or computed."""

    first_stage: First
    spec: RerankerSpec
    output: Place

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that may change a score; its digest is the settings-id."""
        first_stage_settings = self.first_stage.record.settings
        request = self.spec.request
        reranker_settings = {"rerank": request.spelling, **asdict(request.settings), **self.spec.describe()}
        return {**first_stage_settings, "rerankers": [*first_stage_settings["rerankers"], reranker_settings]}

    @property
    def folder(self) -> Path:
        """The folder of the record."""
        record = self.first_stage.record
        return Ledger(self.output.out).folder(
            record.suite, record.task, record.model, compute_digest(self.settings)[:12]
        )

    def load_or_run(self) -> Cell:
        """Return the finished record on disk, or rerank and write one."""
        if record := Ledger(self.output.out).find(self.folder):
            return of_record(record, str(self.folder), cached=True)
        Ledger(self.output.out).need_writable()
        meter = Meter(self.output.show)
        free_pages()
        reset_peak()
        record, run = self._rerank_and_score(meter)
        return of_record(record, str(Ledger(self.output.out).write(record, run)), cached=False)

    def _rerank_and_score(self, meter: Meter) -> tuple[Record, Run]:
        card, collection = self.first_stage.card, self.first_stage.collection
        reranker = self.spec.load(self.first_stage, meter)
        queries = [join_fields(row, ("text",)) for row in collection.queries]
        with meter.phase(f"rerank {self.spec.request.name}", "queries") as advance:
            reranked = rerank_queries(self.first_stage.ranking, queries, reranker, lambda: advance(1, len(queries)))
        with meter.phase("score"):
            rankings = reranked.ranking.to_document_ids(collection)
            per_query = score_run(rankings, collection.judgments, card.depth, card.relevant_from)
        raw_scores = dict(zip(rankings, (scores.tolist() for scores in reranked.ranking.scores), strict=True))
        sample = {"rerank": self.spec.request.spelling, **reranker.sample()}
        record = self._build_record(meter, reranked, reranker.collect_statistics(), mean_scores(per_query))
        return record, Run(rankings, raw_scores, per_query, sample)

    def _build_record(
        self, meter: Meter, reranked: RerankedRanking, collected: dict[str, Any], scores: dict[str, float]
    ) -> Record:
        first_stage_record = self.first_stage.record
        reranker_statistics = {
            "rerank": self.spec.request.spelling,
            **collected,
            "latency": summarize_latency(reranked.seconds_per_query),
        }
        seconds = {phase: round(spent, 3) for phase, spent in meter.seconds.items()}
        cost = {
            **first_stage_record.cost,
            "seconds": {
                **first_stage_record.cost["seconds"],
                **_rename_repeated_phases(seconds, first_stage_record.cost["seconds"]),
            },
            "peak_memory_mb": max(round(peak_mb(), 1), first_stage_record.cost["peak_memory_mb"] or 0.0),
            "rerank": [*first_stage_record.cost.get("rerank", []), reranker_statistics],
        }
        return replace(
            first_stage_record,
            settings_id=compute_digest(self.settings)[:12],
            settings=self.settings,
            cards={
                **first_stage_record.cards,
                "rerankers": [*first_stage_record.cards.get("rerankers", []), *self.spec.list_model_cards()],
            },
            machine=machine.describe(),
            cost=cost,
            scores=scores,
            command=self.output.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def summarize_latency(seconds: list[float]) -> dict[str, float]:
    """Return mean, median and longest seconds per query."""
    latency = {"mean": statistics.fmean(seconds), "median": statistics.median(seconds), "longest": max(seconds)}
    return {name: round(value, 5) for name, value in latency.items()}


def _rename_repeated_phases(seconds: dict[str, float], earlier: dict[str, float]) -> dict[str, float]:
    """Append " again" to the name of a phase that an earlier stage also had, so that both times are kept."""
    return {(f"{name} again" if name in earlier else name): spent for name, spent in seconds.items()}
