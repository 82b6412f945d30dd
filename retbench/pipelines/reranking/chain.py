"""One reranked cell (a first stage, a reranker, a record), and chains of rerankers.

In a chain every reranker has its own cell and reads the run before it. So every stage has its own score on the
leaderboard, and an interrupted chain continues where it stopped.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.cards.reranker_settings import SETTINGS_CLASSES, RerankerRequest, describe_settings, parse_reranker
from retbench.cards.task import TaskCard
from retbench.corpora.open_collection import require_texts
from retbench.corpora.texts import join_fields
from retbench.engines.memory import get_peak_memory_mb
from retbench.errors import RetbenchError, UsageError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.reranking.base import ModelResolver, RerankerSpec
from retbench.pipelines.runs.build_record import RunInputs, build_record
from retbench.pipelines.runs.load_or_run import load_or_run
from retbench.pipelines.runs.saved_run import SavedRun
from retbench.records.cell import Cell
from retbench.records.failure import format_label
from retbench.records.output import RunOutput
from retbench.records.phase_timer import PhaseTimer
from retbench.records.record import Record, compute_settings_id
from retbench.records.results_folder import ResultsFolder, RunFiles
from retbench.records.unexpected_errors import reraise_unexpected_errors
from retbench.rerankers.candidates import RerankedRanking, rerank_queries
from retbench.retrievers.score_ranking import score_ranking


def parse_rerankers(arguments: tuple[str, ...]) -> list[RerankerRequest]:
    """Parse and check all `--rerank` arguments before any work begins."""
    return [parse_reranker(argument) for argument in arguments]


def find_unread_settings(requests: list[RerankerRequest], overrides: dict[str, Any]) -> list[str]:
    """A sentence for each value of `--set` that a reranker with its own model does not read, with its own option."""
    sentences = []
    for request in requests:
        settings, default = request.settings, SETTINGS_CLASSES[request.name]()
        for key in ("dtype", "max_length"):
            if key not in overrides or not getattr(settings, "model", None) or not hasattr(settings, key):
                continue
            if getattr(settings, key) == getattr(default, key):
                option = f"{request.spelling},{key}={overrides[key]}"
                with suppress(UsageError):  # a value that the reranker does not know is not offered
                    parse_reranker(option)
                    sentences.append(
                        f"--set {key}={overrides[key]} is for the first stage; for the reranker write --rerank {option}"
                    )
    return sentences


def rerank_cells(
    first_stage: SavedRun,
    request: RerankerRequest,
    first_stage_model: ResolvedModel | None,
    resolver: ModelResolver,
    output: RunOutput,
) -> Iterator[Cell]:
    """Yield the cells of the reranker's baselines, then its own."""
    from retbench.pipelines.reranking.factory import build_reranker_spec  # torch, which only a reranker needs

    record = first_stage.record
    spec = build_reranker_spec(request, first_stage, first_stage_model, resolver)
    for stage in (*spec.list_baselines(), spec):
        output.log_status(" · ".join((record.model, record.method, record.task, stage.request.spelling)))
        yield RerankingJob(first_stage, stage, output).load_or_run()


@dataclass(frozen=True)
class RerankerChain:
    """Rerankers applied in order, each to the run before it."""

    requests: list[RerankerRequest]
    resolver: ModelResolver
    output: RunOutput

    def rerank_cell(
        self,
        cell: Cell,
        card: TaskCard,
        load_stage: Callable[[Path], SavedRun],
        first_stage_model: ResolvedModel | None = None,
    ) -> Iterator[Cell]:
        """Yield the cells of all rerankers, starting from the run of `cell`; stop after a failed one."""
        for request in self.requests:
            rerankers = (*cell.rerank, request.spelling)
            finished: list[Cell] = []
            try:
                with reraise_unexpected_errors():
                    first_stage = load_stage(Path(cell.record or ""))
                    require_texts(first_stage.collection, card, f"the reranker {request.name}")
                    for stage in rerank_cells(first_stage, request, first_stage_model, self.resolver, self.output):
                        finished.append(stage)
                        yield stage
            except RetbenchError as error:
                yield self.output.record_failure(error, cell.model, cell.method, card, cell.sample, rerankers)
                return
            cell = finished[-1]
            ResultsFolder(self.output.out).remove_failures(
                Path(cell.record or ""), format_label(cell.method, rerankers)
            )


@dataclass(frozen=True)
class RerankingJob:
    """One reranked cell that is found on disk or computed."""

    first_stage: SavedRun
    spec: RerankerSpec
    output: RunOutput

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that may change a score; its digest is the settings-id."""
        first_stage_settings = self.first_stage.record.settings
        request = self.spec.request
        reranker_settings = {"rerank": request.spelling, **describe_settings(request.settings), **self.spec.describe()}
        return {**first_stage_settings, "rerankers": [*first_stage_settings["rerankers"], reranker_settings]}

    @property
    def folder(self) -> Path:
        """The folder of the record."""
        record = self.first_stage.record
        return ResultsFolder(self.output.out).get_run_folder(
            record.suite, record.task, record.model, compute_settings_id(self.settings)
        )

    def load_or_run(self) -> Cell:
        """Return the finished record on disk, or rerank and write one."""
        return load_or_run(ResultsFolder(self.output.out), self.folder, self._rerank_and_score, self.output.progress)

    def _rerank_and_score(self, timer: PhaseTimer) -> tuple[Record, RunFiles]:
        card, collection = self.first_stage.card, self.first_stage.collection
        reranker = self.spec.load(self.first_stage, timer)
        queries = [join_fields(row, ("text",)) for row in collection.queries]
        with timer.time_phase(f"rerank {self.spec.request.name}", "queries") as advance:
            reranked = rerank_queries(self.first_stage.ranking, queries, reranker, lambda: advance(1, len(queries)))
        with timer.time_phase("score"):
            scored = score_ranking(reranked.ranking, collection, card)
        sample = {"rerank": self.spec.request.spelling, **reranker.sample()}
        inputs = RunInputs.from_record(self.first_stage.record)
        inputs = inputs.add_cards(rerankers=[*inputs.cards.get("rerankers", []), *self.spec.list_model_cards()])
        cost = self._compute_cost(timer, reranked, reranker.collect_statistics())
        record = build_record(inputs, self.settings, cost, scored.compute_means(), self.output.command)
        return record, scored.to_run_files(sample)

    def _compute_cost(self, timer: PhaseTimer, reranked: RerankedRanking, collected: dict[str, Any]) -> dict[str, Any]:
        first_stage_cost = self.first_stage.record.cost
        reranker_statistics = {
            "rerank": self.spec.request.spelling,
            **collected,
            "latency": summarize_latency(reranked.seconds_per_query),
        }
        seconds = {phase: round(spent, 3) for phase, spent in timer.seconds.items()}
        return {
            **first_stage_cost,
            "seconds": {
                **first_stage_cost["seconds"],
                **_rename_repeated_phases(seconds, first_stage_cost["seconds"]),
            },
            "peak_memory_mb": max(round(get_peak_memory_mb(), 1), first_stage_cost["peak_memory_mb"] or 0.0),
            "rerank": [*first_stage_cost.get("rerank", []), reranker_statistics],
        }


def summarize_latency(seconds: list[float]) -> dict[str, float]:
    """Return mean, median and longest seconds per query."""
    latency = {"mean": statistics.fmean(seconds), "median": statistics.median(seconds), "longest": max(seconds)}
    return {name: round(value, 5) for name, value in latency.items()}


def _rename_repeated_phases(seconds: dict[str, float], earlier: dict[str, float]) -> dict[str, float]:
    """Append " again" to the name of a phase that an earlier stage also had, so that both times are kept."""
    return {(f"{name} again" if name in earlier else name): spent for name, spent in seconds.items()}
